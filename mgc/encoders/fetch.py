"""Download the weights of an encoder: MSD_musicnn lies in a wheel on PyPI, AST on the Hugging Face hub.

pip checks the wheel against the hash below, and knows the user's mirror, proxy and offline folder (``PIP_INDEX_URL``,
``PIP_PROXY``, ``PIP_FIND_LINKS``); the hub's own client knows its mirror (``HF_ENDPOINT``). Of a wheel only the numbers
of a checkpoint are read, of a repository a checkpoint in safetensors: nothing that comes is run.
"""

from __future__ import annotations

import hashlib
import importlib.util
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING
from zipfile import BadZipFile, ZipFile

from safetensors import SafetensorError
from safetensors.torch import save

from mgc.core.atomic_files import replacing
from mgc.core.errors import InputError, RunError, first_line, path_error
from mgc.core.progress import say
from mgc.core.results import Result
from mgc.encoders.audio_transformer import FILES, REPOSITORY, from_hub, missing_extra
from mgc.encoders.musicnn import Musicnn, from_tensorflow
from mgc.encoders.registry import Encoder, encoder
from mgc.encoders.tensorflow_bundle import read_bundle

if TYPE_CHECKING:
    from torch import nn

PACKAGE = "musicnn==0.1.0"
SHA256 = "f38a4890c648c1ddbb141c5d96d2b0a8cfcd36746002d896989f7b88beb65cfa"
"""Of musicnn-0.1.0-py3-none-any.whl."""
CHECKPOINT = "musicnn/MSD_musicnn/"
"""Where the checkpoint is in the wheel."""


@dataclass(frozen=True)
class Fetched(Result):
    """Where an encoder's weights are."""

    name: str
    """The encoder."""
    path: str
    """The file with its weights."""
    licence: str
    """Of the weights."""
    already: bool
    """Whether the file was there before the call, which then did nothing."""
    seconds: float
    """How long the call took."""


def fetch(name: str) -> Fetched:
    """Download an encoder's weights to the cache, unless they are there.

    Parameters
    ----------
    name
        A key of ``ENCODERS`` that has weights: ``"musicnn"`` or ``"ast"``.

    Returns
    -------
    Fetched
        The file, and whether it was there already.

    Raises
    ------
    InputError
        There is no such encoder, its weights are random, this Python lacks what it needs (pip, or the extra
        ``encoders-hub``), or the cache cannot be written to.
    RunError
        The weights cannot be downloaded, or what came is not what it should be.
    """
    start, chosen = time.monotonic(), encoder(name)
    if not chosen.download_megabytes:
        raise InputError(f"`name={name}`: has random weights; there is nothing to download")
    target = chosen.weights
    if not (already := target.exists()):
        place, bring = ORIGINS[name]
        say(
            f"downloading {place}: {chosen.download_megabytes} MB, licence {chosen.licence}; "
            f"trained on {chosen.trained_on} …"
        )
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise path_error(f"{target.parent}: {error.strerror}; MGC_CACHE names another folder", error) from error
        with tempfile.TemporaryDirectory() as folder:
            model, origin = bring(Path(folder))
        if (count := sum(each.numel() for each in model.parameters())) != chosen.n_parameters:
            raise RunError(f"{place}: is not what it should be: {count} parameters, not {chosen.n_parameters}")
        _keep(model, chosen, origin)
    return Fetched(name, str(target), chosen.licence, already, time.monotonic() - start)


def _from_wheel(folder: Path) -> tuple[nn.Module, dict[str, str]]:
    """MSD_musicnn, and the hash of the wheel."""
    return _read(_download(folder)), {"wheel_sha256": SHA256}


def _from_hub(folder: Path) -> tuple[nn.Module, dict[str, str]]:
    """AST, and the hash of its file. No hash is known before: what the hub names by this name is taken."""
    if importlib.util.find_spec("transformers") is None:
        raise missing_extra()
    from huggingface_hub import hf_hub_download  # transformers needs it

    try:
        for file in FILES:
            hf_hub_download(REPOSITORY, file, local_dir=folder)
    except Exception as error:  # also those of the HTTP client beneath it
        reason = first_line(error.__cause__ or error)
        raise RunError(
            f"{REPOSITORY} cannot be downloaded: {reason}; look at the network, or set HF_ENDPOINT"
        ) from error
    try:
        sha256 = hashlib.sha256((folder / FILES[-1]).read_bytes()).hexdigest()
        return from_hub(folder), {"sha256": sha256}
    except (OSError, RuntimeError, SafetensorError, ValueError) as error:
        raise RunError(f"{REPOSITORY}: is not what it should be: {first_line(error)}") from error


ORIGINS = {
    "musicnn": (f"{PACKAGE} from PyPI", _from_wheel),
    "ast": (f"{REPOSITORY} from the Hugging Face hub", _from_hub),
}
"""What is downloaded, and by what."""


def _download(folder: Path) -> Path:
    """Have pip download the wheel and check its hash."""
    if importlib.util.find_spec("pip") is None:
        raise InputError(f"pip is not installed beside {sys.executable}, and it downloads the weights; add it")
    requirements = folder / "requirements.txt"
    requirements.write_text(f"{PACKAGE} --hash=sha256:{SHA256}\n")
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary", ":all:", "--require-hashes"]
    command += ["--disable-pip-version-check", "--no-input", "--dest", str(folder), "-r", str(requirements)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        errors = [line.removeprefix("ERROR: ") for line in done.stderr.splitlines() if line.startswith("ERROR: ")]
        reason = errors[0] if errors else f"exit code {done.returncode}"
        raise RunError(f"pip cannot download {PACKAGE}: {reason}; look at the network, or set PIP_INDEX_URL")
    return next(folder.glob("*.whl"))


def _read(wheel: Path) -> Musicnn:
    """Read the checkpoint in the wheel."""
    try:
        with ZipFile(wheel) as zipped:
            index, data = (zipped.read(CHECKPOINT + file) for file in (".index", ".data-00000-of-00001"))
        return from_tensorflow(read_bundle(index, data, f"{wheel.name}: {CHECKPOINT}"))
    except (BadZipFile, InputError, KeyError, RuntimeError) as error:
        raise RunError(f"{wheel.name}: is not what it should be: {error}") from error


def _keep(model: nn.Module, chosen: Encoder, origin: dict[str, str]) -> None:
    """Write the weights to the cache, whole or not at all."""
    metadata = {"source": chosen.source, "licence": chosen.licence, **origin}
    content = save({name: values.contiguous() for name, values in model.state_dict().items()}, metadata)
    target = chosen.weights
    try:
        with replacing(target) as temporary:
            temporary.write_bytes(content)
    except OSError as error:
        raise path_error(f"{target}: {error.strerror or error}; MGC_CACHE names another folder", error) from error
