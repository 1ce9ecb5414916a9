"""A project of before the rooms (tests/data/README.md) still opens: features, runs, champion, sweep, killed fit."""

import json
import os
import tarfile
from dataclasses import replace
from pathlib import Path

import pytest

from mgc.config import ModelConfig, OptimConfig, TrainConfig
from mgc.core.storage import Folder
from mgc.evaluation import run_card, run_page
from mgc.evaluation.compare import compare
from mgc.evaluation.evaluate import evaluate, evaluate_once
from mgc.evaluation.predictions import Predictions
from mgc.evaluation.promote import promote
from mgc.features.feature_set import FeatureSet
from mgc.features.verify import verify
from mgc.library.predict import predict
from mgc.sweep.report import report
from mgc.tracking import registry, store
from mgc.tracking.runs import EXPERIMENT, Run
from mgc.tracking.store import client, search
from mgc.training.train import train

CLIPS = ["collection/blues/10.wav", "collection/rock/11.wav"]
GENRES = ("Blues", "Folk", "Jazz", "Rock")


@pytest.fixture(scope="module")
def project(tmp_path_factory, working_directory):
    """The project's folder, in which this module works."""
    parent = tmp_path_factory.mktemp("before")
    with tarfile.open(Path(__file__).parent / "data" / "before_rooms.tar.xz") as archive:
        archive.extractall(parent, filter="data")
    folder = parent / "before_rooms"
    os.chdir(folder)
    yield folder
    os.chdir(working_directory)


@pytest.fixture(scope="module")
def uri(project):
    return store.open_store(Folder.at(project))


@pytest.fixture(scope="module")
def ids(project):
    return json.loads((project / "ids.json").read_text())


@pytest.fixture(scope="module")
def old(project, uri, ids):
    """What MLflow had on each run at the beginning, by the names of before."""
    stored = {name: client(uri).get_run(ids[name]).data.metrics for name in ("train", "seeds", "folds", "sweep")}
    assert stored["train"]["best_val_accuracy"] == stored["train"]["validation_accuracy"] == 0.625
    return {name: dict(metrics) for name, metrics in stored.items()}


def named(uri, name):
    """The run of a name."""
    (found,) = [run for run in search(uri, EXPERIMENT, {}) if run.info.run_name == name]
    return Run(uri, found.info.run_id)


def test_the_feature_set_opens_and_verifies(project):
    features = FeatureSet.open("features")
    assert features.manifest.genres == GENRES
    assert sum(sum(genres.values()) for genres in features.manifest.clips.values()) == 48
    result = verify("features").to_dict()
    assert result["ok"], result


def test_metrics_are_read_by_their_names_of_today(uri, ids, old):
    one = Run.find(uri, ids["train"])
    metrics = one.record().metrics
    before = old["train"]
    assert metrics["val_accuracy"] == before["best_val_accuracy"]
    assert metrics["train_accuracy"] == before["best_train_accuracy"]
    assert metrics["gap"] == before["best_gap"]
    assert metrics["epoch/val_accuracy"] == before["val_accuracy"]
    assert metrics["val_macro_f1"] == before["validation_macro_f1"]
    assert metrics["test_accuracy"] == before["test_accuracy"]
    assert not [name for name in metrics if name.startswith(("best_val", "best_train", "validation_"))]
    points = one.history(["epoch/train_loss", "epoch/val_accuracy"])
    assert [point["epoch"] for point in points] == [1, 2, 3]
    assert max(point["epoch/val_accuracy"] for point in points) == metrics["val_accuracy"]
    for name in ("seeds", "folds"):
        assert Run.find(uri, ids[name]).record().metrics["val_accuracy"] == old[name]["val_accuracy"]
    assert Run.find(uri, ids["sweep"]).record().metrics["val_accuracy"] == ids["sweep_result"]["val_accuracy"]


def test_kept_predictions_are_read_and_compared(uri, ids, old):
    kept = Predictions.kept(Run.find(uri, ids["train"]), "test")
    assert (kept.source.test_evaluations, kept.source.genres, len(kept.paths)) == (1, GENRES, 8)
    result = compare(ids["train"], ids["seeds"])
    assert (result.a.accuracy, result.b.accuracy) == (old["train"]["test_accuracy"], old["seeds"]["test_accuracy"])


@pytest.mark.parametrize("name", ["train", "seeds"])
def test_old_models_give_the_accuracies_that_were_kept(ids, old, name):
    once = evaluate_once(ids[name], "features")
    again = evaluate(ids[name], "features")
    for result in (once, again):
        assert result.accuracy == pytest.approx(old[name]["test_accuracy"])
        assert result.macro_f1 == pytest.approx(old[name]["test_macro_f1"])
        assert result.ece == pytest.approx(old[name]["test_ece"], abs=1e-4)
    assert once.test_evaluations <= 2 < again.test_evaluations  # two were counted before
    if name == "seeds":
        assert again.accuracy_mean == pytest.approx(old[name]["test_accuracy_mean"])


def test_a_cross_validation_is_scored_on_the_clips_that_each_model_was_not_trained_on(ids, old):
    result = evaluate(ids["folds"], "features", split="validation")
    assert (result.n, result.accuracy) == (40, pytest.approx(old["folds"]["val_accuracy"]))


def test_pages_are_made(uri, ids, project):
    page = run_page.make(Run.find(uri, ids["train"]), project / "one.html")
    text = (project / "one.html").read_text()
    assert page.split == "test"
    assert "test clips right" in text
    assert 'alt="Loss' in text  # the learning curves, from the metrics of before
    assert report(ids["train"], out=project / "same.html").run_id == ids["train"]
    card = Run.find(uri, ids["train"]).fetch(run_card.CARD, project).read_text()
    assert all(f"\n### {split} split\n" in card for split in ("Test", "Validation"))
    assert Run.find(uri, ids["train"]).checkpoint(project / "fetched").joinpath(run_card.README).read_text() == card


def test_the_page_of_the_sweep_is_made(uri, ids, project):
    page = report(ids["sweep"], out=project / "sweep.html")
    text = (project / "sweep.html").read_text()
    assert (page.run_id, page.split) == (ids["sweep"], "validation")
    for trial in ("trial 1", "trial 2", "trial 3"):
        assert trial in text
    assert "model.norm" in text


def test_the_champion_of_before_is_the_champion_and_predicts(uri, ids):
    assert registry.champion(uri).run_id == ids["seeds"]
    assert promote(ids["seeds"]).reason == "It is the champion already."
    result = promote(ids["train"])
    assert (result.champion, result.promoted, result.version) == (ids["seeds"], False, "1")
    assert result.comparison.split == "test"
    champion, seeds = (predict(model, CLIPS) for model in ("champion", ids["seeds"]))
    assert champion == seeds
    assert [clip.path for clip in champion.clips] == CLIPS
    checkpoint = Path("mlflow_runs", "checkpoints", ids["train"])
    folder, run = predict(checkpoint, CLIPS).clips, predict(ids["train"], CLIPS).clips
    assert [clip.genre for clip in folder] == [clip.genre for clip in run]
    assert all(clip.unsure for clip in folder)  # the run keeps validation predictions, by which it is calibrated


def test_a_fit_that_was_killed_before_goes_on_in_its_run(uri, project):
    """Not bit for bit: the state may be of another CPU."""
    killed = named(uri, "killed")
    assert killed.record().status == "RUNNING"
    curve = ["epoch/train_loss", "epoch/val_accuracy"]
    before = killed.history(curve)
    assert [point["epoch"] for point in before] == [1, 2]
    config = TrainConfig(
        model=ModelConfig(channels=(4, 8), head="avgmax"), optim=OptimConfig(lr=0.01, batch_size=8), epochs=4
    )
    train("features", replace(config, model=replace(config.model, norm=True, dropout=0.0)), gpus=0, run_name="killed")
    assert named(uri, "killed") == killed  # no other run of the name
    record, after = killed.record(), killed.history(curve)
    assert record.status == "FINISHED"
    assert [point["epoch"] for point in after] == [1, 2, 3, 4]
    assert after[:2] == before
    assert record.metrics["val_accuracy"] == max(point["epoch/val_accuracy"] for point in after)
    assert 1 <= record.metrics["best_epoch"] <= 4
    assert killed.fetch("checkpoint/model.json", project / "fetched")
