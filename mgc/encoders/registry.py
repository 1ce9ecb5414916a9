"""The encoders by name: what each was trained on, what it takes and gives, and how it is loaded."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from mgc.core.errors import InputError, path_error
from mgc.encoders import audio_transformer, musicnn

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import nn


@dataclass(frozen=True)
class Encoder:
    """A network that makes a vector of a stretch of spectrogram."""

    name: str
    """What it is called here."""
    trained_on: str
    """Music and labels that it learnt from; empty for random weights."""
    licence: str
    """Of the weights (SPDX); empty for random weights."""
    source: str
    """Paper, and where the weights come from."""
    features: str
    """Name of the spectrogram's recipe."""
    window: int
    """Frames that it takes at a time."""
    size: int
    """Values of the vector."""
    n_parameters: int
    """Weights that can be trained."""
    download_megabytes: int
    """Size of the download; 0 for random weights."""
    build: Callable[[], nn.Module]
    """Makes the network with fresh weights."""
    behind: tuple[str, ...] = ()
    """Its layers behind the vector, which nothing that is built on the vector sees."""
    tags: tuple[str, ...] = ()
    """What its own output names, if it has one of use."""

    @property
    def weights(self) -> Path:
        """The file where its weights are kept: in the cache."""
        return cache_folder() / "encoders" / f"{self.name}.safetensors"


ENCODERS = {
    "musicnn": Encoder(
        name="musicnn",
        trained_on="the Million Song Dataset with its 50 most frequent tags of Last.fm",
        licence="ISC",
        source="Pons and Serra, «musicnn: pre-trained convolutional neural networks for music audio tagging», 2019; "
        "MSD_musicnn of the package musicnn 0.1.0 on PyPI",
        features="musicnn",
        window=musicnn.WINDOW,
        size=musicnn.SIZE,
        n_parameters=787_159,
        download_megabytes=29,
        build=musicnn.Musicnn,
        behind=musicnn.BEHIND,
        tags=musicnn.TAGS,
    ),
    "musicnn_random": Encoder(
        name="musicnn_random",
        trained_on="",
        licence="",
        source="the layers of musicnn with random weights: what an encoder is worth without what it learnt",
        features="musicnn",
        window=musicnn.WINDOW,
        size=musicnn.SIZE,
        n_parameters=787_159,
        download_megabytes=0,
        build=musicnn.Musicnn,
        behind=musicnn.BEHIND,
    ),
    "ast": Encoder(
        name="ast",
        trained_on="AudioSet, 527 kinds of sound in YouTube's videos",
        licence="BSD-3-Clause",
        source="Gong, Chung and Glass, «AST: Audio Spectrogram Transformer», 2021; "
        f"{audio_transformer.REPOSITORY} of the Hugging Face hub",
        features="ast",
        window=audio_transformer.WINDOW,
        size=audio_transformer.SIZE,
        n_parameters=86_187_264,
        download_megabytes=346,
        build=audio_transformer.AudioTransformer,
    ),
}
"""All encoders by name."""


def encoder(name: str) -> Encoder:
    """Return what is known of an encoder.

    Parameters
    ----------
    name
        A key of ``ENCODERS``.

    Raises
    ------
    InputError
        There is no such encoder.

    Examples
    --------
    >>> encoder("musicnn").size
    1506
    """
    if name not in ENCODERS:
        raise InputError(f"`encoder={name}`: is none; choose from {', '.join(ENCODERS)}")
    return ENCODERS[name]


def load(name: str) -> nn.Module:
    """Return an encoder with its weights, in evaluation mode.

    Parameters
    ----------
    name
        A key of ``ENCODERS``. Those with random weights are ``untrained`` with seed 0.

    Returns
    -------
    nn.Module
        Gives vectors [shape=(B, size)] of spectrograms [shape=(B, mel bands, window)].

    Raises
    ------
    InputError
        There is no such encoder, a package that it needs is not installed, its weights were not downloaded, or their
        file is damaged or cannot be read.
    """
    from safetensors import SafetensorError  # here, because the training step runs where there is torch alone
    from safetensors.torch import load_file

    chosen = encoder(name)
    if not chosen.download_megabytes:
        return untrained(name)
    try:
        tensors = load_file(chosen.weights)
        model = chosen.build()
        model.load_state_dict(tensors)
    except FileNotFoundError:
        raise InputError(f"`encoder={name}`: has no weights here; run «mgc download {name}» first") from None
    except OSError as error:
        raise path_error(f"{chosen.weights}: {error.strerror or error}", error) from error
    except (SafetensorError, RuntimeError) as error:  # RuntimeError: other tensors than the network's
        raise InputError(f"{chosen.weights}: is damaged; remove it and run «mgc download {name}»") from error
    return model.eval()


def untrained(name: str, seed: int = 0) -> nn.Module:
    """Return an encoder with random weights, in evaluation mode.

    Parameters
    ----------
    name
        A key of ``ENCODERS``.
    seed
        Of the weights, which are PyTorch's default for each layer.

    Returns
    -------
    nn.Module
        As ``load`` returns it.

    Raises
    ------
    InputError
        There is no such encoder, or a package that it needs is not installed.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return encoder(name).build().eval()


def cache_folder() -> Path:
    """The folder for what can be downloaded again: ``MGC_CACHE``, or ``mgc`` in the user's cache folder.

    Raises
    ------
    InputError
        Neither is known: the user has no home folder.
    """
    own, caches = os.environ.get("MGC_CACHE"), os.environ.get("XDG_CACHE_HOME")
    try:
        return Path(own).expanduser() if own else Path(caches or "~/.cache").expanduser() / "mgc"
    except RuntimeError:
        raise InputError("there is no home folder for the cache; set MGC_CACHE to a folder") from None
