"""Every clip is scored once, every test-set evaluation counted, every leak named."""

import json
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from statistics import mean, stdev

import mlflow
import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from helpers.feature_sets import GENRES, make_features
from helpers.runs import CONFIG, draw_nothing, other_fingerprint, parent_of, trained

from mgc.config import TrainConfig
from mgc.core.errors import InputError, MgcError
from mgc.dataset import clips
from mgc.dataset import protocols as learning
from mgc.evaluation.evaluate import evaluate
from mgc.evaluation.metrics import score
from mgc.model import checkpoint
from mgc.tracking.runs import Run

LEAK = {"by": "id", "artist_id": "7", "artist_name": "AWOL", "splits": {"training": 2, "test": 1}}


@pytest.fixture(scope="module")
def own(features, tmp_path_factory):
    """The small set under a fingerprint of this module's, so that counts are its own."""
    return other_fingerprint(features, tmp_path_factory.mktemp("own") / "set", "a")


@pytest.fixture(scope="module")
def run(own):
    return trained(own)


@pytest.fixture(scope="module")
def result(run, own):
    return evaluate(run.id, own.folder)


@pytest.fixture(scope="module")
def seeds(own):
    return parent_of(own, seed=[0, 1, 2])


@pytest.fixture(scope="module")
def together(seeds, own):
    with pytest.MonkeyPatch.context() as patch:
        draw_nothing(patch)
        return evaluate(seeds[0].id, own.folder)


@pytest.fixture
def undrawn(monkeypatch):
    draw_nothing(monkeypatch)


def client(run):
    return mlflow.MlflowClient(run.uri)


def said(run, features, split="test"):
    """What a run's model says of a split, by PyTorch alone."""
    with tempfile.TemporaryDirectory() as folder:
        model, _ = checkpoint.read(run.checkpoint(Path(folder)))
    mel = clips.load(features, split).mel_NFT
    with torch.inference_mode():
        return model(torch.from_numpy(mel.astype(np.float32))[:, None]).softmax(1).numpy()


def predictions(run, split="test"):
    with tempfile.TemporaryDirectory() as folder:
        return pq.read_table(run.fetch(f"predictions_{split}.parquet", Path(folder)))


# One run


def test_a_split_is_scored_by_what_the_model_says_of_each_clip(result, run, own):
    labels = clips.load(own, "test").labels_N
    expected = score(labels, said(run, own), GENRES)
    assert result.n == 13 == sum(map(sum, result.confusion))
    assert result.accuracy == expected.accuracy
    assert result.ci95 == expected.ci95
    assert result.confusion == expected.confusion
    assert result.ece == pytest.approx(expected.ece, abs=1e-6)
    assert tuple(result.per_genre) == GENRES
    assert (result.run_id, result.split, result.leaky) == (run.id, "test", False)
    assert sum(each.clips for each in result.reliability) == 13
    json.dumps(result.to_dict())


def test_the_figures_and_pictures_are_kept_with_the_run(result, run):
    record = run.record()
    figures = {name: record.metrics[f"test_{name}"] for name in ("accuracy", "macro_f1", "ece", "clips")}
    assert figures == pytest.approx(
        {name: getattr(result, name) for name in ("accuracy", "macro_f1", "ece")} | {"clips": 13}
    )
    assert (record.metrics["test_ci95_low"], record.metrics["test_ci95_high"]) == pytest.approx(result.ci95)
    kept = {item.path for item in client(run).list_artifacts(run.id, "pictures")}
    assert kept == {"pictures/confusion_test.png", "pictures/reliability_test.png"}
    assert record.status == "FINISHED"
    assert "mgc.leaky" not in record.tags
    assert Path(result.report.removeprefix("file://")).name == "report.html"


def test_the_predictions_are_kept_so_that_nobody_must_look_again(result, run, own):
    table, expected = predictions(run), clips.load(own, "test")
    assert table["track_id"].to_pylist() == expected.track_ids_N.tolist()
    assert table["path"].to_pylist() == list(expected.paths)
    assert table["label"].to_pylist() == expected.labels_N.tolist()
    assert str(table.schema.field("probabilities").type) == "list<element: float>"
    assert np.allclose(table["probabilities"].to_pylist(), said(run, own), atol=1e-6)
    metadata = table.schema.metadata
    assert json.loads(metadata[b"genres"]) == list(GENRES)
    assert metadata[b"fingerprint"] == b"a" * 64
    assert metadata[b"protocol"] == b"official"


def test_a_result_prints_the_interval_and_the_count_of_test_set_evaluations(result):
    text = str(result)
    assert f"accuracy {result.accuracy:.3f} [{result.ci95[0]:.3f}, {result.ci95[1]:.3f}] of 13" in text
    assert f"test-set evaluations so far: {result.test_evaluations}" in text
    assert "LEAKY" not in text
    for genre in GENRES:
        assert genre in text


# Test-set evaluations


def test_each_test_set_evaluation_is_counted_whatever_the_run(features, tmp_path, undrawn):
    fresh = other_fingerprint(features, tmp_path / "set", "b")
    one, other = trained(fresh), trained(fresh, seed=1)
    assert evaluate(one.id, fresh.folder, split="validation").test_evaluations == 0
    assert evaluate(one.id, fresh.folder).test_evaluations == 1
    assert evaluate(other.id, fresh.folder).test_evaluations == 2
    assert evaluate(one.id, fresh.folder).test_evaluations == 3
    assert evaluate(one.id, fresh.folder, split="training").test_evaluations == 0
    renamed = other_fingerprint(fresh, tmp_path / "other", "c")
    assert evaluate(one.id, renamed.folder).test_evaluations == 1


def test_a_test_set_evaluation_is_logged_and_counts_though_deleted(features, tmp_path, undrawn):
    fresh = other_fingerprint(features, tmp_path / "set", "d")
    run = trained(fresh)
    result = evaluate(run.id, fresh.folder)
    experiment = client(run).get_experiment_by_name("mgc-evaluations").experiment_id
    (witness,) = client(run).search_runs([experiment], f"tags.`mgc.evaluated_run` = '{run.id}'")
    assert witness.info.status == "FINISHED"
    assert witness.data.tags["mgc.step"] == "evaluate"
    assert witness.data.tags["mgc.features.fingerprint"] == "d" * 64
    assert witness.data.tags["mgc.protocol"] == "official"
    assert witness.data.metrics["test_accuracy"] == result.accuracy
    client(run).delete_run(witness.info.run_id)
    assert evaluate(run.id, fresh.folder).test_evaluations == 2


def test_evaluations_at_one_time_are_both_counted(features, tmp_path, undrawn):
    fresh = other_fingerprint(features, tmp_path / "set", "e")
    runs = [trained(fresh, seed=seed) for seed in (0, 1)]
    with ThreadPoolExecutor(2) as pool:
        counts = [each.test_evaluations for each in pool.map(lambda run: evaluate(run.id, fresh.folder), runs)]
    assert max(counts) == 2
    assert evaluate(runs[0].id, fresh.folder).test_evaluations == 3


def test_a_refused_evaluation_does_not_count(run, own, tmp_path, undrawn):
    before = evaluate(run.id, own.folder).test_evaluations
    other = other_fingerprint(own, tmp_path / "other", "a")
    manifest = other.folder.path / "manifest.json"
    manifest.write_text(manifest.read_text().replace("Blues", "Zydeco"))
    with pytest.raises(InputError, match="other genres"):
        evaluate(run.id, other.folder)
    assert evaluate(run.id, own.folder).test_evaluations == before + 1


def test_a_split_that_cannot_be_read_does_not_count(features, tmp_path, undrawn):
    fresh = other_fingerprint(features, tmp_path / "set", "0")
    run = trained(fresh)
    (shard,) = fresh.folder.path.glob("shards/test-*")
    hidden = shard.rename(tmp_path / "hidden")
    with pytest.raises(MgcError, match="test-00000"):
        evaluate(run.id, fresh.folder)
    hidden.rename(shard)
    assert evaluate(run.id, fresh.folder).test_evaluations == 1


# Several models


def test_an_ensemble_is_the_mean_of_its_members_probabilities(together, seeds, own):
    parent, children = seeds
    labels = clips.load(own, "test").labels_N
    each = [said(child, own) for child in children]
    expected = score(labels, np.mean(each, axis=0), GENRES)
    assert together.accuracy == expected.accuracy
    assert together.confusion == expected.confusion
    accuracies = [float((one.argmax(1) == labels).mean()) for one in each]
    assert [member.accuracy for member in together.members] == accuracies
    assert [member.seed for member in together.members] == [0, 1, 2]
    assert [member.run_id for member in together.members] == [child.id for child in children]
    assert together.accuracy_mean == pytest.approx(mean(accuracies))
    assert together.accuracy_sd == pytest.approx(stdev(accuracies))
    assert len(set(accuracies)) > 1
    assert np.allclose(predictions(parent)["probabilities"].to_pylist(), np.mean(each, axis=0), atol=1e-6)
    json.dumps(together.to_dict())


def test_parent_and_members_keep_their_figures(together, seeds):
    parent, children = seeds
    record = parent.record()
    assert record.metrics["test_accuracy"] == pytest.approx(together.accuracy)
    assert record.metrics["test_accuracy_mean"] == pytest.approx(together.accuracy_mean)
    assert record.metrics["test_accuracy_sd"] == pytest.approx(together.accuracy_sd)
    for child, member in zip(children, together.members, strict=True):
        assert child.record().metrics["test_accuracy"] == pytest.approx(member.accuracy)
        assert child.fetch("predictions_test.parquet", Path(tempfile.mkdtemp()))
    assert f"{together.accuracy_mean:.3f} ± {together.accuracy_sd:.3f} (mean ± sd of 3)" in str(together)


def test_one_evaluation_of_a_parent_counts_once(features, tmp_path, undrawn):
    fresh = other_fingerprint(features, tmp_path / "set", "9")
    parent, _ = parent_of(fresh, seed=[0, 1])
    assert evaluate(parent.id, fresh.folder).test_evaluations == 1


def test_runs_that_did_not_finish_do_not_count_and_one_alone_is_refused(own, undrawn):
    parent, children = parent_of(own, seed=[0, 1, 2], status=["FINISHED", "FAILED", "FINISHED"])
    found = evaluate(parent.id, own.folder).members
    assert [member.run_id for member in found] == [children[0].id, children[2].id]
    parent, _ = parent_of(own, seed=[0, 1], status=["FINISHED", "RUNNING"])
    with pytest.raises(InputError, match=f"run {parent.id}: 1 of its runs finished"):
        evaluate(parent.id, own.folder)


def test_folds_are_evaluated_on_the_test_split_and_each_clip_by_who_did_not_learn_it(own, undrawn):
    parent, children = parent_of(own, step="folds", fold=[1, 2, 3], folds=[3, 3, 3])
    found = evaluate(parent.id, own.folder)
    assert [member.fold for member in found.members] == [1, 2, 3]
    assert found.n == 13
    for run_id in (parent.id, children[0].id):
        with pytest.raises(InputError, match=rf"`split=training`: run {run_id} is of folds"):
            evaluate(run_id, own.folder, split="training")
    assert evaluate(children[0].id, own.folder).n == 13

    whole = evaluate(parent.id, own.folder, split="validation")
    assert whole.test_evaluations == 0
    assert "each clip by a model not trained on it" in str(whole)
    kept = predictions(parent, "validation")
    learnt_from = clips.load(own, "training", "validation").track_ids_N
    assert whole.n == len(kept) == len(learnt_from)
    assert sorted(kept["track_id"].to_pylist()) == sorted(learnt_from.tolist())
    right = 0
    for fold, child in enumerate(children, 1):
        data = learning.learning_set(own, TrainConfig(folds=3, fold=fold))
        of_fold = predictions(child, "validation")
        assert sorted(of_fold["track_id"].to_pylist()) == sorted(data.clips.track_ids_N[data.validation].tolist())
        alone = evaluate(child.id, own.folder, split="validation")
        assert alone.accuracy == whole.members[fold - 1].accuracy
        right += round(alone.accuracy * alone.n)
    assert whole.accuracy == pytest.approx(right / whole.n)


def test_folds_of_another_set_are_not_validated(features, own, undrawn):
    parent, _ = parent_of(features, step="folds", fold=[1, 2], folds=[2, 2])
    with pytest.raises(InputError, match=r"the folds of run .* are of another feature set"):
        evaluate(parent.id, own.folder, split="validation")


# Leaks


def test_a_random_split_is_leaky_everywhere_and_evaluated_on_its_own_test_clips(own):
    run = trained(own, split="random")
    found = evaluate(run.id, own.folder)
    assert found.leaky is True
    assert "LEAKY" in str(found)
    assert run.record().tags["mgc.leaky"] == "true"
    assert "LEAKY" in Path(found.report.removeprefix("file://")).read_text()
    ids = predictions(run)["track_id"].to_pylist()
    assert ids == learning.held_out(own, "test", "random").track_ids_N.tolist()
    assert set(ids) != set(clips.load(own, "test").track_ids_N.tolist())
    data = learning.learning_set(own, TrainConfig(split="random"))
    assert not set(ids) & set(data.clips.track_ids_N[np.concatenate([data.training, data.validation])].tolist())
    assert predictions(run).schema.metadata[b"protocol"] == b"random"


def test_a_random_split_has_a_count_of_its_own(own, run, undrawn):
    before = evaluate(run.id, own.folder).test_evaluations
    leaky = trained(own, split="random")
    first = evaluate(leaky.id, own.folder).test_evaluations
    assert evaluate(leaky.id, own.folder).test_evaluations == first + 1
    assert evaluate(run.id, own.folder).test_evaluations == before + 1


def test_artists_in_two_splits_make_a_result_leaky(tmp_path):
    leaking = make_features(tmp_path / "leaky", leaks=(LEAK,))
    run = trained(leaking)
    found = evaluate(run.id, leaking.folder)
    assert found.leaky is True
    assert run.record().tags["mgc.leaky"] == "true"
    page = Path(found.report.removeprefix("file://")).read_text()
    assert "LEAKY: 1 artist is in more than one split: AWOL (test 1, training 2)" in page


# Refusals


def test_an_unknown_run_is_named(own, run):
    with pytest.raises(InputError, match="run no-such-run"):
        evaluate("no-such-run", own.folder)


def test_a_run_without_a_model_is_named(own, run):
    bare = Run.start(run.uri, "mgc", name=None, step="tune", config=CONFIG.to_dict())
    with pytest.raises(InputError, match=f"run {bare.id}: this run kept no checkpoint"):
        evaluate(bare.id, own.folder)
