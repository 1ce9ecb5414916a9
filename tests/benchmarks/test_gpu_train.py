"""The benchmark for a GPU: it stands alone with torch and numpy, all but CUDA's part runs here, and it counts right."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from mgc.config import PRESETS
from mgc.model.cnn import GenreCNN

PROGRAM = Path(__file__).parents[2] / "benchmarks" / "gpu_train.py"
ABSENT = (
    "ray mlflow pyarrow pandas scipy sklearn safetensors librosa soundfile soxr matplotlib optuna tyro rich jinja2 yaml"
)
SITE = f"""
import sys

class Without:
    def __init__(self, finder):
        self.finder = finder

    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] not in {ABSENT.split()!r}:
            return self.finder.find_spec(name, path, target)

    def __getattr__(self, name):
        return getattr(self.finder, name)

sys.meta_path[:] = [Without(finder) for finder in sys.meta_path]
"""


@pytest.fixture
def alone(tmp_path):
    """Run the program, and what it starts, where nothing but torch and numpy is installed."""
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "sitecustomize.py").write_text(SITE)
    environment = {**os.environ, "PYTHONPATH": str(tmp_path / "site")}

    def run(*arguments):
        command = [sys.executable, *arguments]
        return subprocess.run(command, capture_output=True, text=True, env=environment, cwd=tmp_path, timeout=280)

    done = run("-c", "import pyarrow")
    assert "No module named 'pyarrow'" in done.stderr
    return run


@pytest.mark.slow
def test_a_dry_run_goes_through_all_of_it_with_torch_and_numpy_alone(alone):
    done = alone(PROGRAM, "--dry-run", "--presets", "plain_cnn", "short_chunk")
    assert done.returncode == 0, done.stderr
    assert "failed" not in done.stdout
    for words in ("DRY RUN", "measured: copy", "seed's way", "bfloat16, graph, device", "of floor, fused"):
        assert words in done.stdout
    for words in ("without recorded step", "without clips on the device", "2 seeds", "trials at once", "s in all"):
        assert words in done.stdout


def test_it_says_that_there_is_no_gpu(alone):
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    done = alone(PROGRAM)
    assert done.returncode == 1
    assert done.stderr == "no GPU here: --count and --dry-run need none\n"


@pytest.fixture(scope="module")
def program():
    """The program as a module."""
    sys.path.insert(0, str(PROGRAM.parent))
    import gpu_train

    yield gpu_train
    sys.path.remove(str(PROGRAM.parent))


@pytest.mark.parametrize("preset", list(PRESETS))
def test_operations_are_those_of_the_layers(program, preset):
    """Counted by hooks on a forward pass, layer by layer; backward is twice that but for what nobody asks for."""
    model, flops = GenreCNN(PRESETS[preset].model, 8), 0.0

    def note(layer, given, out):
        nonlocal flops
        if isinstance(layer, nn.Conv2d):
            first = layer.in_channels == 1 and not PRESETS[preset].model.input_norm
            flops += (2 if first else 3) * 2 * 9 * layer.in_channels * out[0].numel()
        if isinstance(layer, nn.Linear):
            flops += 3 * 2 * layer.weight.numel()

    for layer in model.modules():
        layer.register_forward_hook(note)
    model.eval()(torch.zeros(1, 1, 128, PRESETS[preset].model.window or 1288))
    counted = program.count(PRESETS[preset], 10, (128, 1288), 4)
    assert counted.flops == pytest.approx(10 * flops, rel=0.002)
    assert counted.fused < program.count(PRESETS[preset], 10, (128, 1288), 2).layers < counted.layers


def test_the_floor_is_the_longer_of_computing_and_moving(program):
    counted = program.Count(flops=100.0, layers=50.0, fused=20.0)
    assert counted.seconds(10.0, 10.0) == 10
    assert counted.seconds(100.0, 10.0) == 5
    assert counted.seconds(100.0, 10.0, fused=True) == 2


def test_made_up_clips_are_all_different_and_tell_their_genre(program):
    data = program.made_up(300, (16, 24))
    mel_NFT = data.clips.mel_NFT
    assert (len(data.training), len(data.validation)) == (300, 300)
    assert len({clip.tobytes() for clip in mel_NFT}) == 600
    assert set(data.clips.labels_N[data.validation]) == set(range(8))
