"""Encoders by name."""

import shutil

import pytest
import torch

from mgc.audio.logmel import RECIPES
from mgc.core.errors import InputError
from mgc.encoders.registry import ENCODERS, cache_folder, load, untrained


@pytest.mark.parametrize("name", ENCODERS)
def test_an_encoder_is_as_it_says(name):
    encoder = ENCODERS[name]
    if name == "ast":
        pytest.importorskip("transformers")
    with torch.device("meta" if name == "ast" else "cpu"):  # what is large is not computed
        model = untrained(name)
        with torch.inference_mode():
            assert model(torch.rand(1, RECIPES[encoder.features].n_mels, encoder.window)).shape == (1, encoder.size)
    assert sum(each.numel() for each in model.parameters()) == encoder.n_parameters
    assert encoder.name == name
    assert not encoder.tags or len(encoder.tags) == model.output.out_features


def test_random_weights_follow_from_the_seed_alone():
    state = torch.random.get_rng_state()
    first, again, other = (untrained("musicnn_random", seed) for seed in (0, 0, 1))
    assert torch.equal(torch.random.get_rng_state(), state)
    assert not first.training
    loaded = load("musicnn_random")
    for name, values in first.named_parameters():
        assert torch.equal(values, again.get_parameter(name))
        assert torch.equal(values, loaded.get_parameter(name))
    assert not torch.equal(first.dense.weight, other.dense.weight)


def test_loaded_weights_are_not_random(weights):
    model = load("musicnn")
    assert not model.training
    assert not torch.equal(model.dense.weight, untrained("musicnn").dense.weight)


def test_weights_that_are_not_there_name_the_command(tmp_path, monkeypatch):
    monkeypatch.setenv("MGC_CACHE", str(tmp_path))
    with pytest.raises(InputError, match="«mgc download musicnn»"):
        load("musicnn")


def test_weights_that_are_damaged_are_named(weights, tmp_path, monkeypatch):
    shutil.copytree(weights, tmp_path, dirs_exist_ok=True)
    monkeypatch.setenv("MGC_CACHE", str(tmp_path))
    file = ENCODERS["musicnn"].weights
    file.write_bytes(file.read_bytes()[:-1000])
    with pytest.raises(InputError, match=r"musicnn\.safetensors: is damaged.*«mgc download musicnn»"):
        load("musicnn")


def test_an_unknown_encoder_is_told_those_that_are():
    with pytest.raises(InputError, match=r"`encoder=vgg`.*musicnn, musicnn_random, ast"):
        load("vgg")


def test_the_cache_is_where_the_user_says(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("MGC_CACHE", raising=False)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    assert cache_folder() == tmp_path / ".cache" / "mgc"
    monkeypatch.setenv("XDG_CACHE_HOME", "/elsewhere")
    assert str(cache_folder()) == "/elsewhere/mgc"
    monkeypatch.setenv("MGC_CACHE", "~/mine")
    assert cache_folder() == tmp_path / "mine"
    monkeypatch.setenv("MGC_CACHE", "~nobody-of-this-name/mine")
    with pytest.raises(InputError, match="set MGC_CACHE"):
        cache_folder()
