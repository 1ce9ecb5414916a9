"""The model card: figures are the evaluation's, hubs can read it, and no training fails for it."""

from dataclasses import replace
from pathlib import Path
from statistics import mean

import mlflow
import pytest
import yaml
from helpers.feature_sets import GENRES, make_features
from helpers.pages import page_of
from helpers.runs import draw_nothing, other_fingerprint
from helpers.runs import trained as by_hand

from mgc.config import PRESETS, ModelConfig, OptimConfig, TrainConfig
from mgc.encoders.registry import ENCODERS
from mgc.evaluation import model_card, run_card
from mgc.evaluation.evaluate import evaluate
from mgc.evaluation.promote import promote
from mgc.evaluation.run_page import make
from mgc.evaluation.trained_models import read_models
from mgc.library import genre_model
from mgc.model import checkpoint
from mgc.tracking import store
from mgc.tracking.runs import Run
from mgc.training.train import train

CONFIG = TrainConfig(
    model=ModelConfig(channels=(4, 8), norm=True, head="avgmax"), optim=OptimConfig(lr=0.01, batch_size=8), epochs=2
)
NAME = "a | run <b>of</b> [mine](x)"
LEAK = {"by": "id", "artist_id": "7", "artist_name": "AWOL", "splits": {"training": 2, "test": 1}}


@pytest.fixture(scope="module")
def own(features, tmp_path_factory):
    return other_fingerprint(features, tmp_path_factory.mktemp("own") / "set", "ca")


@pytest.fixture(scope="module")
def trained(own):
    return train(own, CONFIG, run_name=NAME)


@pytest.fixture(scope="module")
def run(own, trained):
    return Run(store.open_store(own.folder), trained.run_id)


@pytest.fixture(scope="module")
def first(run):
    """The card that the training left."""
    return read(run)


@pytest.fixture(scope="module")
def evaluated(first, trained, own):
    return evaluate(trained, own)


@pytest.fixture(scope="module")
def several(own):
    return train(own, CONFIG, seeds=2, run_name="two seeds")


def read(run, file=run_card.CARD):
    """The text of an artifact."""
    return Path(run.artifact_uri(file).removeprefix("file://")).read_text()


def header(text):
    return yaml.safe_load(text.split("---\n")[1])


def section(text, title):
    """What is under a title, down to the next one of its level."""
    level = title.partition(" ")[0]
    return text.split(f"\n{title}\n")[1].split(f"\n{level} ")[0]


def table(text):
    """Rows of the only table of a text, by their first cell."""
    lines = [line.strip("| ").split(" | ") for line in text.splitlines() if line.startswith("|")]
    return {first: rest for first, *rest in lines[2:]}


def test_a_training_leaves_its_card_with_the_run_and_beside_the_weights(first, trained, run, own):
    assert read(run, f"checkpoint/{run_card.README}") == first
    assert "The test split was not evaluated" in first
    (result,) = header(first)["model-index"][0]["results"]
    assert (result["dataset"]["split"], result["dataset"]["revision"]) == ("validation", "ca" * 64)
    assert result["metrics"][0]["value"] == trained.val_accuracy
    details = table(section(first, "## Model details"))
    assert details["**run**"] == [f"`{trained.run_id}` (train)"]
    assert details["**track**"] == ["from scratch"]
    model, _ = checkpoint.read(trained.checkpoint)
    assert f"{sum(each.numel() for each in model.parameters()):,} parameters" in details["**network**"][0]
    clips = table(section(first, "## Training data"))
    assert clips["Blues"] == [str(own.manifest.clips[split]["Blues"]) for split in ("training", "validation", "test")]
    assert clips["all clips"] == ["44", "12", "13"]
    assert "`optim.lr` | 0.01 |" in first
    assert str(own.folder) not in first  # a card is published; the user's folders are not


def test_names_are_text_and_nothing_else(first):
    assert header(first)["model-index"][0]["name"] == NAME
    assert "\n# a \\| run &lt;b&gt;of&lt;/b&gt; \\[mine\\](x)\n" in first


def test_an_evaluation_adds_its_figures_and_its_count(evaluated, trained, run):
    text = read(run)
    assert Path(str(trained.checkpoint), run_card.README).read_text() == text
    assert read(run, f"checkpoint/{run_card.README}") == text
    part = section(text, "### Test split")
    low, high = evaluated.ci95
    assert f"Accuracy {evaluated.accuracy:.3f} [{low:.3f}, {high:.3f}] of 13 clips" in part
    assert f"Test-set evaluation {evaluated.test_evaluations} on this test set" in part
    assert f"with temperature {evaluated.calibrated.temperature:.2f}" in part
    assert f"error {evaluated.ece:.3f}" in part
    names = ("precision", "recall", "f1")
    expected = {
        genre: [str(row["support"]), *(f"{row[name]:.3f}" for name in names)]
        for genre, row in evaluated.per_genre.items()
    }
    assert table(part) == expected
    assert "The test split was not evaluated" not in text


def test_a_hub_reads_the_figures(evaluated, run):
    hub = pytest.importorskip("huggingface_hub")
    card = hub.ModelCard(read(run))
    data = card.data
    assert (data.library_name, data.license, data.model_name) == ("mgc", None, NAME)
    figures = {(each.dataset_split, each.metric_type): each.metric_value for each in data.eval_results}
    assert figures["test", "accuracy"] == evaluated.accuracy
    assert figures["test", "f1"] == evaluated.macro_f1
    assert figures.keys() == {(split, metric) for split in ("test", "validation") for metric in ("accuracy", "f1")}


def test_the_page_has_the_cards_limits(evaluated, run):
    text = page_of(evaluated).text
    card = run_card.model_card(run, read_models(run))
    for sentence in (*card.limits(), *model_card.OUT_OF_SCOPE):
        assert sentence in text
    assert "Fewer than 30 test clips: Blues (4), Folk (3), Jazz (3), Rock (3)." in card.limits()


def test_the_same_facts_give_the_same_text_also_where_the_features_are_gone(evaluated, run, own, tmp_path):
    before, models = read(run), read_models(run)
    assert run_card.model_card(run, models).text() == before
    folder = own.folder.path.rename(tmp_path / "elsewhere")
    try:
        assert run_card.model_card(run, models).text() == before
    finally:
        folder.rename(own.folder.path)


def test_a_checkpoint_is_read_with_a_card_or_without_one(trained, tmp_path):
    folder = Path(str(trained.checkpoint))
    assert (folder / run_card.README).exists()
    with_card = genre_model.load(folder)
    for name in (checkpoint.WEIGHTS, checkpoint.CARD, "calibration.json"):
        (tmp_path / name).write_bytes((folder / name).read_bytes())
    assert genre_model.load(tmp_path).fingerprint == with_card.fingerprint


def test_a_run_of_before_gets_a_card_by_its_report(own, monkeypatch):
    run = by_hand(own)
    card = run_card.keep(run)
    assert "No validation predictions are kept" in card.text()
    assert "model-index" not in card.header()
    assert make(run).run_id == run.id
    assert read(run) == card.text()


def test_a_parents_card_names_its_models_and_each_has_its_own(several, own):
    uri = store.open_store(own.folder)
    parent, members = Run(uri, several.run_id), [Run(uri, member.run_id) for member in several.members]
    trained = table(section(read(parent), "## Training").partition("setting")[0])
    assert [trained[f"seed {seed}"][-1] for seed in (0, 1)] == [f"`{member.id}`" for member in members]
    found = evaluate(several, own)
    text = read(parent)
    assert f"{found.accuracy_mean:.3f} ± {found.accuracy_sd:.3f} (mean ± standard deviation of 2)" in text
    assert f'print(mgc.predict("{parent.id}"' in text
    for member, its in zip(members, found.members, strict=True):
        card = read(member)
        assert f"Accuracy {its.accuracy:.3f} [" in section(card, "### Test split")
        assert table(section(card, "## Model details"))["**part of run**"] == [f"`{parent.id}`"]
    alone = header(text)["model-index"][0]["results"][0]["metrics"][2]["value"]
    assert alone == pytest.approx(mean(member.accuracy for member in found.members))


def test_a_promoted_models_version_has_the_card(evaluated, run, own, tmp_path):
    result = promote(run.id, own.folder, name="card-test")
    with store.current(run.uri):
        fetched = mlflow.artifacts.download_artifacts("models:/card-test@champion", dst_path=str(tmp_path))
    text = Path(fetched, run_card.README).read_text()
    assert result.version == "1"
    assert table(section(text, "## Model details"))["**registered as**"] == ["card-test, version 1"]
    assert read(run) == text


def test_leaky_figures_are_called_leaky_wherever_they_are(tmp_path, monkeypatch):
    draw_nothing(monkeypatch)
    leaking = make_features(tmp_path / "leaky", leaks=(LEAK,))
    run = by_hand(leaking)
    evaluate(run.id, leaking.folder)
    text = run_card.keep(run).text()
    assert "> **LEAKY: 1 artist is in more than one split: AWOL (test 1, training 2). The figures flatter.**" in text
    assert "### Test split, LEAKY" in text
    (result,) = header(text)["model-index"][0]["results"]
    assert [metric["name"] for metric in result["metrics"]] == ["Accuracy, LEAKY", "Macro-F1, LEAKY"]


def test_a_card_that_cannot_be_made_costs_no_model(own, monkeypatch, capfd):
    def fail(card):
        raise ZeroDivisionError("no such luck")

    monkeypatch.setattr(model_card.ModelCard, "text", fail)
    result = train(own, replace(CONFIG, epochs=1), run_name="without a card")
    assert Run(store.open_store(own.folder), result.run_id).record().status == "FINISHED"
    assert checkpoint.read(result.checkpoint)[1].genres == GENRES
    assert f"run {result.run_id}: no model card (ZeroDivisionError: no such luck)" in capfd.readouterr().err


@pytest.mark.parametrize(
    ("encoder", "track", "said"),
    [
        ("musicnn", "pretrained-musicnn", ["the Million Song Dataset", "| **encoder's licence** | ISC |"]),
        ("musicnn_random", "random-features-musicnn_random", ["nothing: random weights"]),
    ],
)
def test_an_encoders_origin_is_told(evaluated, run, encoder, track, said):
    card = run_card.model_card(run, read_models(run))
    run_id, facts = card.models[0]
    config = replace(PRESETS["musicnn"], model=replace(PRESETS["musicnn"].model, encoder=encoder))
    card = replace(card, encoder=ENCODERS[encoder], models=((run_id, replace(facts, config=config)),))
    assert track in card.header()["tags"]
    assert all(each in card.text() for each in said)
    heard = [sentence for sentence in card.limits() if sentence.startswith("The encoder may have heard")]
    assert len(heard) == (encoder == "musicnn")


def test_licences_are_counted_where_they_are_known(evaluated, run):
    card = run_card.model_card(run, read_models(run))
    for counts, said in (
        (
            {"training": {"CC-BY-4.0": 40, "unknown": 4}, "test": {"CC-BY-4.0": 13}},
            "| CC-BY-4.0 | 53 |\n| unknown | 4 |",
        ),
        ({}, "Licences of the tracks: unknown."),
    ):
        known = replace(card, manifest=replace(card.manifest, licenses=counts))
        assert said in section(known.text(), "## Training data")


def test_a_preset_is_known_whatever_its_seed():
    assert model_card.preset_of(replace(PRESETS["short_chunk"], seed=5, folds=4, fold=2)) == "short_chunk"
    assert model_card.preset_of(replace(PRESETS["short_chunk"], epochs=39)) is None
