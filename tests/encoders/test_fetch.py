"""``mgc download musicnn``."""

import hashlib
import json
import zipfile
from pathlib import Path

import pytest
import safetensors
import torch

from mgc import cli
from mgc.core.errors import InputError, RunError
from mgc.encoders import fetch as fetching
from mgc.encoders.fetch import CHECKPOINT, SHA256, fetch
from mgc.encoders.registry import ENCODERS

DATA = Path(__file__).parent / "data"


@pytest.fixture
def wheel(tmp_path, monkeypatch):
    """A wheel of the right name with another checkpoint in it, in a folder where pip finds it without a network."""
    path = tmp_path / "wheels" / "musicnn-0.1.0-py3-none-any.whl"
    path.parent.mkdir()
    with zipfile.ZipFile(path, "w") as zipped:
        for suffix in ("index", "data-00000-of-00001"):
            zipped.write(DATA / f"small.{suffix}", f"{CHECKPOINT}.{suffix}")
        zipped.writestr("musicnn-0.1.0.dist-info/METADATA", "Metadata-Version: 2.1\nName: musicnn\nVersion: 0.1.0\n")
        zipped.writestr("musicnn-0.1.0.dist-info/WHEEL", "Wheel-Version: 1.0\n")
    monkeypatch.setenv("MGC_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(path.parent))
    return path


def kept(tmp_path: Path) -> list[Path]:
    return [path for path in (tmp_path / "cache").rglob("*") if path.is_file()]


def test_the_weights_are_kept_with_their_origin_and_come_once(weights, downloaded, capsys):
    _, first = downloaded
    assert not first.already
    assert first.path == str(weights / "encoders" / "musicnn.safetensors")
    with safetensors.safe_open(first.path, "pt") as file:
        assert (file.metadata()["licence"], file.metadata()["wheel_sha256"]) == ("ISC", SHA256)
        tensors = sum(file.get_tensor(name).is_floating_point() for name in file.keys())  # noqa: SIM118
    before = Path(first.path).stat().st_mtime_ns
    assert cli.run(["download", "musicnn", "--json"]) == 0
    output, said = capsys.readouterr()
    assert json.loads(output)["already"]
    assert (said, Path(first.path).stat().st_mtime_ns, tensors) == ("", before, 64)


def test_it_says_what_it_downloads_before_it_does(wheel, tmp_path, capsys):
    wheel.unlink()
    assert cli.run(["download", "musicnn"]) == 1
    first, error = capsys.readouterr().err.splitlines()
    for what in ("musicnn==0.1.0", "29 MB", "licence ISC", "Million Song Dataset"):
        assert what in first
    assert error.startswith("mgc: pip cannot download musicnn==0.1.0: ")
    assert "PIP_INDEX_URL" in error
    assert not kept(tmp_path)


def test_a_wheel_of_another_hash_is_refused(wheel, tmp_path):
    with pytest.raises(RunError, match="HASHES"):
        fetch("musicnn")
    assert not kept(tmp_path)


def test_a_wheel_with_another_network_is_refused(wheel, tmp_path, monkeypatch):
    monkeypatch.setattr(fetching, "SHA256", hashlib.sha256(wheel.read_bytes()).hexdigest())
    with pytest.raises(RunError, match=r"musicnn-0\.1\.0.*conv2d/kernel"):
        fetch("musicnn")
    assert not kept(tmp_path)


def test_a_python_without_pip_is_told_so(wheel, monkeypatch):
    monkeypatch.setattr(fetching.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(InputError, match="pip is not installed"):
        fetch("musicnn")


def test_a_cache_that_is_a_file_is_named(wheel, tmp_path, monkeypatch):
    (tmp_path / "cache").write_text("")
    with pytest.raises(InputError, match="MGC_CACHE"):
        fetch("musicnn")


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("download musicnn --root there", "--root there: musicnn goes to the cache"),
        ("download fma_small", "--root: is needed"),
    ],
)
def test_a_folder_is_for_fma_alone(line, message, capsys):
    assert cli.run(line.split()) == 2
    assert message in capsys.readouterr().err


def test_every_encoder_with_weights_has_a_download():
    for name, encoder in ENCODERS.items():
        if encoder.download_megabytes:
            assert cli.parse(["download", name]).name == name
        else:
            with pytest.raises(InputError, match="random weights"):
                fetch(name)


def test_random_weights_are_never_looked_for_on_the_disk(tmp_path, monkeypatch):
    monkeypatch.setenv("MGC_CACHE", str(tmp_path))
    assert isinstance(ENCODERS["musicnn_random"].build(), torch.nn.Module)
    assert not kept(tmp_path)
