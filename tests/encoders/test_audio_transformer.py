"""AST by a tiny checkpoint with random weights, from a hub on this machine; the published weights were never here."""

import json
import sys
import threading
from dataclasses import replace
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
import safetensors
import torch
from helpers.wav_sets import finish, tracks
from safetensors.torch import load_file, save_file

import mgc
from mgc import cli
from mgc.audio.logmel import RECIPES
from mgc.config import PRESETS, ModelConfig
from mgc.core.errors import InputError, RunError
from mgc.core.storage import Folder
from mgc.dataset.embeddings import vectors_of
from mgc.encoders.audio_transformer import FILES, REPOSITORY, AudioTransformer, from_hub
from mgc.encoders.fetch import fetch
from mgc.encoders.registry import ENCODERS, load
from mgc.features.plan import Plan
from mgc.features.recipe import Recipe
from mgc.model import checkpoint
from mgc.model.inference import heard
from mgc.model.networks import build

transformers = pytest.importorskip("transformers")

SIZE = 32
SPEC = replace(RECIPES["ast"], seconds=12.0)
"""1198 frames: two windows."""


class Hub(SimpleHTTPRequestHandler):
    """The files of one repository, as the Hugging Face hub answers for them."""

    def translate_path(self, path):
        return str(Path(self.directory, path.removeprefix(f"/{REPOSITORY}/resolve/main/")))

    def end_headers(self):
        self.send_header("X-Repo-Commit", "a" * 40)
        self.send_header("ETag", '"b"')
        super().end_headers()

    def log_message(self, *_):
        """A test's output is its own."""


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """A classifier of the same architecture, and the folder of its checkpoint."""
    folder = tmp_path_factory.mktemp("published")
    config = transformers.ASTConfig(
        hidden_size=SIZE, intermediate_size=64, num_attention_heads=2, num_hidden_layers=2, num_labels=3
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        classifier = transformers.ASTForAudioClassification(config).eval()
    classifier.save_pretrained(folder)
    return classifier, folder


@pytest.fixture
def hub(tiny, tmp_path, monkeypatch):
    """The folder that a hub on this machine serves, empty; the encoder ``ast`` is of the tiny checkpoint's size."""
    import huggingface_hub.constants

    classifier, _ = tiny
    network = classifier.audio_spectrogram_transformer
    small = replace(
        ENCODERS["ast"],
        size=SIZE,
        n_parameters=network.num_parameters(),
        build=lambda: AudioTransformer(transformers.ASTModel(network.config)),
    )
    monkeypatch.setitem(ENCODERS, "ast", small)
    monkeypatch.setenv("MGC_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("no_proxy", "*")
    (tmp_path / "hub").mkdir()
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Hub, directory=tmp_path / "hub")) as server:
        template = f"http://127.0.0.1:{server.server_port}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
        monkeypatch.setattr(huggingface_hub.constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield tmp_path / "hub"
        server.shutdown()


def publish(tiny, hub, change=lambda tensors: tensors):
    """Put the tiny checkpoint on the hub, with other tensors."""
    (hub / FILES[0]).write_bytes((tiny[1] / FILES[0]).read_bytes())
    save_file(change(load_file(tiny[1] / FILES[1])), hub / FILES[1], {"format": "pt"})


def kept(tmp_path):
    return [path for path in (tmp_path / "cache").rglob("*") if path.is_file()]


def test_its_vectors_are_those_of_transformers(tiny):
    """The file has the names of the published one, which transformers has renamed since."""
    classifier, folder = tiny
    names = load_file(folder / FILES[1]).keys()
    assert "audio_spectrogram_transformer.encoder.layer.1.attention.attention.query.weight" in names
    mel_BFT = torch.randn(2, 128, 1024, generator=torch.Generator().manual_seed(0))
    model = from_hub(folder)
    assert not model.training
    with torch.inference_mode():
        last_BND = classifier.audio_spectrogram_transformer(mel_BFT.transpose(1, 2)).last_hidden_state
        torch.testing.assert_close(model(mel_BFT), last_BND[:, :2].mean(1))


def test_it_says_what_it_downloads_and_keeps_it_with_its_origin(tiny, hub, tmp_path, capsys):
    publish(tiny, hub)
    assert cli.run(["download", "ast", "--json"]) == 0
    output, said = capsys.readouterr()
    for what in (REPOSITORY, "Hugging Face", "346 MB", "licence BSD-3-Clause", "AudioSet"):
        assert what in said.splitlines()[0]
    assert kept(tmp_path) == [Path(json.loads(output)["path"])] == [ENCODERS["ast"].weights]
    with safetensors.safe_open(kept(tmp_path)[0], "pt") as file:
        assert file.metadata()["licence"] == "BSD-3-Clause"
        assert len(file.metadata()["sha256"]) == 64
    for name, tensor in tiny[0].audio_spectrogram_transformer.state_dict().items():
        assert torch.equal(load("ast").network.state_dict()[name], tensor)
    (hub / FILES[1]).unlink()
    assert fetch("ast").already


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda tensors: {name: each for name, each in tensors.items() if "layer.1" not in name}, r"lacks .*layers\.1"),
        (lambda tensors: {name: each[..., :8].clone() for name, each in tensors.items()}, "size"),
    ],
)
def test_a_checkpoint_that_does_not_fit_is_refused(tiny, hub, tmp_path, change, message):
    publish(tiny, hub, change)
    with pytest.raises(RunError, match=rf"{REPOSITORY}.* is not what it should be: .*{message}"):
        fetch("ast")
    assert not kept(tmp_path)


def test_another_network_than_the_published_one_is_refused(tiny, hub, tmp_path, monkeypatch):
    publish(tiny, hub)
    monkeypatch.setitem(ENCODERS, "ast", replace(ENCODERS["ast"], n_parameters=86_187_264))
    with pytest.raises(RunError, match=r"is not what it should be: \d+ parameters, not 86187264"):
        fetch("ast")
    assert not kept(tmp_path)


def test_a_hub_without_it_is_one_line(hub, tmp_path, capsys):
    assert cli.run(["download", "ast"]) == 1
    _, error = capsys.readouterr().err.splitlines()
    assert error.startswith(f"mgc: {REPOSITORY} cannot be downloaded: ")
    assert "404" in error
    assert not kept(tmp_path)
    with pytest.raises(InputError, match="«mgc download ast»"):
        load("ast")


def test_without_the_extra_it_is_named(monkeypatch, tmp_path):
    monkeypatch.setenv("MGC_CACHE", str(tmp_path))
    monkeypatch.setitem(sys.modules, "transformers", None)
    for call in (AudioTransformer, partial(fetch, "ast")):
        with pytest.raises(InputError, match=r"pip install 'mgc\[encoders-hub\]'"):
            call()


def test_from_files_to_predictions(tiny, hub, tmp_path):
    """Its spectrograms, its vectors, a classifier on them, and files that are heard by both together."""
    publish(tiny, hub)
    fetch("ast")
    music, out = tmp_path / "music", Folder.at(tmp_path / "features")
    table = tracks(music, {"training": 2, "validation": 1, "test": 1}, seconds=SPEC.seconds)
    features = finish(Plan.of(table, Recipe(spec=SPEC)), music, out)
    vectors_NDK = vectors_of(features, ("training", "validation"), "ast", Folder.at(tmp_path / "storage"))
    assert vectors_NDK.shape == (9, SIZE, 2)
    assert np.ptp(vectors_NDK.astype(float), axis=0).max() > 0.01
    preset = PRESETS["musicnn"]
    run = mgc.fit(features, replace(preset, model=replace(preset.model, encoder="ast"), epochs=1))
    for file in kept(tmp_path):
        file.unlink()  # who uses a model needs no download
    model, card = checkpoint.read(run.checkpoint)
    shard = features.manifest.shards[0]
    ((logits_NG, logits_KNG),) = heard(model, [torch.from_numpy(features.spectrograms(shard))])
    assert (card.spec, logits_KNG.shape) == (SPEC, (2, 6, 3))
    with torch.inference_mode():
        of_vectors_NG = model.classifier(torch.from_numpy(vectors_NDK[:6]).float()[:, None])
    torch.testing.assert_close(logits_NG, of_vectors_NG, atol=0.02, rtol=0)  # the kept vectors are float16
    paths = features.table(shard, ["path"])["path"].to_pylist()
    answers = mgc.predict(run, [music / path for path in paths]).clips
    assert [card.genres.index(clip.genre) for clip in answers] == logits_NG.argmax(1).tolist()


def test_fine_tuning_reaches_all_its_layers(tiny, hub):
    model = build(ModelConfig(encoder="ast", window=1024), 3, SPEC.shape).train()
    model(torch.randn(2, 1, *SPEC.shape)).sum().backward()
    assert all(each.grad is not None for each in model.parameters())
