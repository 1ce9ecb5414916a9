"""What a pretrained encoder makes of the clips of a feature set: computed once for each shard, and kept.

A shard's file is named by the hash of the shard and that of the encoder's weights, so it serves each set that has this
shard, and an interrupted computation goes on.

Shape suffixes: N clips, B of them, D values of a vector, K windows of a clip, F mel bands, T frames, W of a window.
"""

from __future__ import annotations

import hashlib
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.numpy import load, save

from mgc.core.errors import path_error
from mgc.core.progress import Progress
from mgc.dataset import clips as clips_of
from mgc.encoders import registry
from mgc.model.device import best_device
from mgc.model.genre_network import windows
from mgc.model.inference import batch_size
from mgc.model.pretrained import check_encoder, vectors

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray
    from torch import nn

    from mgc.core.storage import Folder
    from mgc.dataset.clips import Clips
    from mgc.features.feature_set import FeatureSet
    from mgc.features.layout import ShardEntry

FOLDER = "embeddings"
"""Of the storage."""


def load_embedded(
    feature_set: FeatureSet,
    splits: Sequence[str],
    encoder: str,
    storage: Folder,
    *,
    device: torch.device | None = None,
) -> Clips:
    """Read the clips of some splits with an encoder's vectors in the place of their spectrograms.

    Parameters
    ----------
    feature_set, splits, encoder, storage, device
        As ``vectors_of`` takes them.

    Returns
    -------
    Clips
        ``mel_NFT`` are the vectors, and the encoder's weights are beside them.

    Raises
    ------
    InputError
        As ``vectors_of``, or a split has no clips.
    RunError
        As ``vectors_of``.
    """
    clips = clips_of.load(feature_set, *splits, lazily=True)
    vectors_NDK = vectors_of(feature_set, splits, encoder, storage, device=device)
    return replace(clips, mel_NFT=vectors_NDK, encoder=weights_of(encoder))


def weights_of(encoder: str) -> dict[str, NDArray[Any]]:
    """Read the weights of an encoder, by name.

    Parameters
    ----------
    encoder
        Its name.

    Raises
    ------
    InputError
        They are not here.
    """
    return {name: tensor.numpy() for name, tensor in registry.load(encoder).state_dict().items()}


def vectors_of(
    feature_set: FeatureSet,
    splits: Sequence[str],
    encoder: str,
    storage: Folder,
    *,
    device: torch.device | None = None,
) -> NDArray[np.float16]:
    """Compute what an encoder makes of the clips of some splits, but for those shards that are kept.

    Parameters
    ----------
    feature_set
        A finished feature set of the recipe that the encoder listens to.
    splits
        ``training``, ``validation`` or ``test``.
    encoder
        Name of the encoder.
    storage
        Where computed vectors are kept: ``embeddings/`` in it.
    device
        Where to compute; by default on a GPU, if there is one.

    Returns
    -------
    np.ndarray [shape=(N, D, K), dtype=float16]
        Vectors of the K windows of each clip, in the order of ``mgc.dataset.clips.load``.

    Raises
    ------
    InputError
        The set is of another recipe, the encoder's weights are not here, a shard is not what the manifest says, or the
        storage cannot be written.
    RunError
        The disk failed.
    """
    check_encoder(encoder, feature_set.manifest.spec)
    network, window = registry.load(encoder), registry.encoder(encoder).window
    digest = hashlib.sha256()
    for name, tensor in network.state_dict().items():
        digest.update(name.encode() + tensor.numpy().tobytes())
    folder = storage / FOLDER / f"{encoder}-{digest.hexdigest()[:12]}"
    entries = feature_set.manifest.shards_of(*splits)
    device = device or best_device()
    try:
        folder.make()
        parts = [_kept(folder, entry) for entry in entries]
        missing = sum(entry.rows for entry, found in zip(entries, parts, strict=True) if found is None)
        progress = Progress(encoder, missing, "clips")
        for place, entry in enumerate(entries):
            if parts[place] is None:
                vectors_NDK = encode(network.to(device), window, feature_set.spectrograms(entry), device)
                progress.advance(entry.rows)
                sha256 = np.frombuffer(hashlib.sha256(vectors_NDK.tobytes()).digest(), np.uint8)
                folder.write(_file(entry), save({"vectors": vectors_NDK, "sha256": sha256}))
                parts[place] = vectors_NDK
    except OSError as error:
        raise path_error(f"{folder}: cannot be used ({error.strerror or error})", error) from None
    finally:
        if device.type == "cuda":
            torch.cuda.empty_cache()  # for the fits that follow, which may be other processes
    return np.concatenate([found for found in parts if found is not None])


def _file(entry: ShardEntry) -> str:
    return f"{entry.sha256[:32]}.safetensors"


def _kept(folder: Folder, entry: ShardEntry) -> NDArray[np.float16] | None:
    """The vectors of a shard; None where they were not computed, or their file is damaged."""
    try:
        found = load(folder.read(_file(entry)))
        vectors_NDK: NDArray[np.float16] = found["vectors"]
        whole = hashlib.sha256(vectors_NDK.tobytes()).digest() == found["sha256"].tobytes()
    except (FileNotFoundError, SafetensorError, KeyError):
        return None
    return vectors_NDK if whole and len(vectors_NDK) == entry.rows else None


def encode(network: nn.Module, window: int, mel_NFT: NDArray[np.float16], device: torch.device) -> NDArray[np.float16]:
    """Compute the vectors of each window of some clips.

    Parameters
    ----------
    network
        The encoder, on ``device``, in evaluation mode.
    window
        Frames that it hears at a time.
    mel_NFT : np.ndarray [shape=(N, F, T), dtype=float16]
        Spectrograms.
    device
        The CPU or a GPU.

    Returns
    -------
    np.ndarray [shape=(N, D, K), dtype=float16]
        The vectors.
    """
    parts = []
    with torch.inference_mode():
        for mel_BFT in torch.from_numpy(mel_NFT.copy()).split(batch_size(device)):
            windows_KBFW = windows(mel_BFT.to(device).float(), window)
            vectors_ND = vectors(network, windows_KBFW.flatten(0, 1))
            parts.append(vectors_ND.unflatten(0, windows_KBFW.shape[:2]).permute(1, 2, 0).cpu())
    return torch.cat(parts).clamp(-65504, 65504).half().contiguous().numpy()
