"""The champion: who becomes it, who does not, and that what is registered is what was tested."""

import json
import os
import tempfile
from dataclasses import replace
from pathlib import Path

import mlflow
import numpy as np
import pytest
import soundfile
import torch
from helpers.feature_sets import GENRES
from helpers.runs import draw_nothing, other_fingerprint, parent_of, trained

from mgc.config import ModelConfig
from mgc.core.errors import InputError
from mgc.dataset import clips
from mgc.evaluation import promote as module
from mgc.evaluation.evaluate import evaluate, evaluate_once
from mgc.evaluation.predictions import Predictions, Source
from mgc.evaluation.promote import promote
from mgc.library.predict import predict
from mgc.model import checkpoint
from mgc.model.cnn import Ensemble, GenreCNN
from mgc.tracking import registry, store
from mgc.tracking.runs import CHECKPOINT, Run

CLIPS = 100
SMALL = ModelConfig(channels=(4, 8), head="avgmax")
WORSE, BETTER, SAME = range(40), range(20, 95), range(3, 45)
"""Clips that a run has right: the second beats the first beyond chance, the third does not."""


@pytest.fixture
def undrawn(monkeypatch):
    draw_nothing(monkeypatch)


@pytest.fixture
def uri(features):
    return store.open_store(features.folder)


@pytest.fixture
def name(request):
    """A registered model of this test's own."""
    return f"mgc-{request.node.name.partition('[')[0]}"


@pytest.fixture
def default_name(uri):
    """The registered model that commands know, gone after the test."""
    yield registry.REGISTERED
    if client(uri).search_registered_models(f"name = '{registry.REGISTERED}'"):
        client(uri).delete_registered_model(registry.REGISTERED)


@pytest.fixture
def programs(monkeypatch):
    """Models that are kept in MLflow's form take seconds; here a call is counted, and an empty one is made."""
    calls = []

    def model(run, network, shape, n_genres, tags=None):
        for output in run._client.get_run(run.id).outputs.model_outputs:
            return output.model_id
        calls.append(type(network))
        experiment = run._client.get_run(run.id).info.experiment_id
        made = run._client.create_logged_model(experiment, name="model", source_run_id=run.id, tags=tags)
        run._client.log_outputs(run.id, [mlflow.entities.LoggedModelOutput(made.model_id, 0)])
        return made.model_id

    monkeypatch.setattr(Run, "model", model)
    return calls


def client(uri):
    return mlflow.MlflowClient(uri)


def mlflow_variables():
    return {key: value for key, value in os.environ.items() if key.startswith("MLFLOW")}


def versions(uri, name):
    return client(uri).search_model_versions(f"name = '{name}'")


def keep(run, right, **source):
    """Give a run predictions of a test split that have just these clips right."""
    rows = np.arange(CLIPS)
    labels = rows % 4
    said = np.where(np.isin(rows, right), labels, (labels + 1) % 4)
    about = replace(Source("test", GENRES, "F", "f" * 64, "official", "", 1), **source)
    Predictions(about, rows, tuple(map(str, rows)), labels, np.eye(4, dtype=np.float32)[said]).keep(run)
    return run


def challenger(features, right, **source):
    return keep(trained(features), right, **source)


# Who becomes champion


def test_the_first_one_is_champion_and_then_only_who_is_better(features, uri, name, programs):
    first, better, same = (challenger(features, right) for right in (WORSE, BETTER, SAME))
    result = promote(first.id, name=name)
    assert result.to_dict() == {
        "run_id": first.id,
        "champion": first.id,
        "version": "1",
        "crowned": True,
        "promoted": True,
        "reason": "There was no champion.",
        "comparison": None,
    }
    result = promote(same.id, name=name)
    assert (result.champion, result.promoted, result.version) == (first.id, False, "1")
    assert "not shown to be better: +2.0 points" in result.reason
    assert result.comparison.p > 0.05
    assert len(versions(uri, name)) == 1

    result = promote(better.id, name=name)
    assert (result.champion, result.promoted, result.version) == (better.id, True, "2")
    assert f"better than the champion before, run {first.id}: +35.0 points, p = " in result.reason
    assert (result.comparison.a.run_id, result.comparison.b.run_id) == (first.id, better.id)
    assert client(uri).get_model_version_by_alias(name, "champion").tags["mgc.run_id"] == better.id
    json.dumps(result.to_dict())

    result = promote(first.id, name=name)  # significantly different, and worse
    assert (result.champion, result.promoted) == (better.id, False)
    assert result.comparison.p < 0.05
    assert "-35.0 points" in str(result)
    assert f"champion: run {better.id}, version 2" in str(result)
    assert (len(versions(uri, name)), len(programs)) == (2, 2)


def test_of_the_champion_there_is_nothing_to_do(features, uri, name, programs):
    run = challenger(features, WORSE)
    promote(run.id, name=name)
    again = promote(run.id, name=name)
    assert (again.champion, again.promoted, again.version, again.comparison) == (run.id, False, "1", None)
    assert again.reason == "It is the champion already."
    assert (len(versions(uri, name)), len(programs)) == (1, 1)


def test_a_version_says_what_is_known_of_it(features, uri, name, programs):
    run = challenger(features, WORSE)
    promote(run.id, name=name)
    (version,) = versions(uri, name)
    assert version.run_id == run.id
    said = [version.tags[f"mgc.{key}"] for key in ("run_id", "models", "test_accuracy", "test_clips", "looks")]
    assert said == [run.id, run.id, "0.4", "100", "1"]
    low, high = (float(version.tags[f"mgc.test_ci95_{bound}"]) for bound in ("low", "high"))
    assert low < 0.4 < high
    assert json.loads(version.tags["mgc.genres"]) == list(GENRES)
    assert version.tags["mgc.features.fingerprint"] == "f" * 64


def test_one_that_is_promoted_in_the_meantime_is_the_one_to_beat(features, uri, name, programs, monkeypatch):
    slow, quick, keeps = challenger(features, WORSE), challenger(features, BETTER), Run.model

    def meanwhile(run, *arguments):
        monkeypatch.setattr(Run, "model", keeps)
        assert promote(quick.id, name=name).promoted is True
        return run.model(*arguments)

    monkeypatch.setattr(Run, "model", meanwhile)
    result = promote(slow.id, name=name)
    assert (result.champion, result.promoted) == (quick.id, False)
    assert len(versions(uri, name)) == 1


# What cannot be compared


def test_a_champion_of_other_clips_stays(features, uri, name, programs):
    first, better = challenger(features, WORSE), challenger(features, BETTER)
    promote(first.id, name=name)
    for change, said in [
        ({"genres": ("w", "x", "y", "z"), "features": "OTHER"}, "OTHER"),
        ({"protocol": "random"}, "random"),
    ]:
        keep(first, WORSE, **change)
        result = promote(better.id, name=name)
        assert (result.champion, result.version, result.promoted) == (first.id, "1", False)
        assert result.reason.startswith("The champion stays, for the two cannot be compared: ")
        assert said in result.reason
        assert result.comparison is None
    assert len(versions(uri, name)) == 1
    keep(first, WORSE)
    assert promote(better.id, name=name).promoted is True


@pytest.mark.parametrize("how", ["deleted", "gone", "unknown"])
def test_a_champion_whose_run_is_no_more_stays(features, uri, name, programs, how):
    name = f"{name}-{how}"
    first, better = challenger(features, WORSE), challenger(features, BETTER)
    promote(first.id, name=name)
    champion_id = first.id
    if how == "deleted":
        client(uri).delete_run(first.id)
    elif how == "gone":
        champion_id = "0" * 32
        client(uri).set_model_version_tag(name, "1", "mgc.run_id", champion_id)
    else:  # a version that somebody made by hand
        client(uri).delete_model_version_tag(name, "1", "mgc.run_id")
        client(uri).delete_run(first.id)
    result = promote(better.id, name=name)
    assert (result.champion, result.version, result.promoted) == (champion_id, "1", False)
    assert f"its run {champion_id} is gone or deleted" in result.reason
    client(uri).delete_registered_model_alias(name, "champion")
    assert promote(better.id, name=name).promoted is True


# Who may not


def test_a_run_that_is_not_evaluated_or_not_there_is_refused(features, uri, name, programs):
    run = trained(features)
    with pytest.raises(InputError, match=rf"run {run.id}: not evaluated on split «test» yet; evaluate it first"):
        promote(run.id, name=name)
    with pytest.raises(InputError, match="run no-such-run"):
        promote("no-such-run", name=name)
    bare = keep(Run.start(uri, "mgc", name=None, step="baseline", config={}), WORSE)
    with pytest.raises(InputError, match="kept no checkpoint"):
        promote(bare.id, name=name)
    deleted = challenger(features, WORSE)
    client(uri).delete_run(deleted.id)
    with pytest.raises(InputError, match=f"run {deleted.id}: is deleted"):
        promote(deleted.id, name=name)
    assert registry.champion(uri, name) is None
    assert not client(uri).search_registered_models(f"name = '{name}'")


def test_what_leaks_is_never_registered(features, uri, name, programs):
    leaky = challenger(features, BETTER, leak="LEAKY: so")
    tagged = challenger(features, BETTER)
    tagged.tag({"mgc.leaky": "true"})
    sweep = Run.start(uri, "mgc", name="sweep", step="tune", config={}, tags={"mgc.leaky": "true"})
    trial = keep(trained(features, step="trial", parent=sweep.id), BETTER)
    for run in (leaky, tagged, trial):
        with pytest.raises(InputError, match=f"run {run.id}: its figures are LEAKY") as caught:
            promote(run.id, name=name)
        assert len(str(caught.value).splitlines()) == 1
    assert not client(uri).search_registered_models(f"name = '{name}'")


def test_a_random_split_is_not_registered(features, tmp_path, name, undrawn, programs):
    fresh = other_fingerprint(features, tmp_path / "set", "6")
    run = trained(fresh, split="random")
    evaluate(run.id, fresh.folder)
    with pytest.raises(InputError, match="LEAKY"):
        promote(run.id, name=name)


def test_what_was_tested_elsewhere_or_of_other_models_is_refused(features, uri, name, programs):
    run = challenger(features, BETTER, fingerprint="0" * 64)
    with pytest.raises(InputError, match=f"run {run.id}: was trained on another feature set"):
        promote(run.id, name=name)
    parent, _ = parent_of(features, seed=[0, 1])
    keep(parent, BETTER)  # predictions that are not said to be these models'
    with pytest.raises(InputError, match=f"run {parent.id}: was evaluated with other models"):
        promote(parent.id, name=name)


# What is registered


def test_an_ensemble_is_registered_as_it_was_tested(features, tmp_path, uri, name, undrawn):
    """By MLflow alone, ``models:/NAME@champion`` gives what was kept of the test split, on every clip."""
    fresh = other_fingerprint(features, tmp_path / "set", "5")
    parent, children = parent_of(fresh, seed=[0, 1, 2])
    evaluate(parent.id, fresh.folder)
    environment, ended = mlflow_variables(), client(uri).get_run(parent.id).info.end_time
    assert promote(parent.id, name=name).promoted is True
    assert mlflow_variables() == environment
    info = client(uri).get_run(parent.id).info
    assert (info.status, info.end_time) == ("FINISHED", ended)  # registering is no part of the run
    (version,) = versions(uri, name)
    assert (version.run_id, version.tags["mgc.models"]) == (parent.id, ",".join(child.id for child in children))

    mel = clips.load(fresh, "test").mel_NFT.astype(np.float32)[:, None]
    each = []
    for child in children:
        network, _ = checkpoint.read(child.checkpoint(Path(tempfile.mkdtemp())))
        with torch.inference_mode():
            each.append(network(torch.from_numpy(mel)).softmax(1).numpy())
    assert np.ptp(each, axis=0).max() > 1e-2  # else any one of them would do
    expected = np.mean(each, axis=0)
    with store.current(uri):
        loaded = mlflow.pyfunc.load_model(f"models:/{name}@champion")
    for batch in (mel, mel[:1]):
        logits = torch.from_numpy(np.asarray(loaded.predict(batch)))
        assert np.abs(logits.softmax(1).numpy() - expected[: len(batch)]).max() < 1e-5
    assert np.abs(Predictions.kept(parent, "test").probabilities_NG - expected).max() < 1e-5
    folder = Path(client(uri).get_logged_model(loaded.metadata.model_id).artifact_location.removeprefix("file://"))
    assert [file.name for file in (folder / "data").iterdir()] == ["model.pt2"]  # no pickle


def test_an_ensemble_votes_over_windows_as_its_members_do():
    torch.manual_seed(0)
    members = [GenreCNN(replace(SMALL, window=16), 3, (128, 40)).eval() for _ in range(3)]
    mel = torch.randn(2, 1, 128, 40)
    with torch.inference_mode():
        expected = torch.stack([member(mel).softmax(1) for member in members]).mean(0)
        assert torch.allclose(Ensemble(members).eval()(mel).softmax(1), expected, atol=1e-6)
        members[0].linear.bias += torch.tensor([0.0, 500.0, 0.0])  # a member that is sure beyond float32
        assert Ensemble(members)(mel).isfinite().all()


def test_a_single_runs_own_model_is_registered_and_not_kept_twice(features, uri, name):
    run = challenger(features, WORSE)
    (output,) = [run.model(checkpoint_of(run), features.manifest.spec.shape, 4)]
    promote(run.id, name=name)
    assert [each.model_id for each in client(uri).get_run(run.id).outputs.model_outputs] == [output]
    assert [version.source for version in versions(uri, name)] == [f"models:/{output}"]


def test_a_model_whose_upload_was_cut_off_is_not_taken_for_kept(features, uri):
    run = trained(features)
    experiment = client(uri).get_run(run.id).info.experiment_id
    half = client(uri).create_logged_model(experiment, name="model", source_run_id=run.id)
    client(uri).log_outputs(run.id, [mlflow.entities.LoggedModelOutput(half.model_id, 0)])
    whole = run.model(checkpoint_of(run), features.manifest.spec.shape, 4)
    assert whole != half.model_id
    assert run.model(checkpoint_of(run), features.manifest.spec.shape, 4) == whole


def checkpoint_of(run):
    with tempfile.TemporaryDirectory() as folder:
        return checkpoint.read(run.fetch(CHECKPOINT, Path(folder)))[0]


# Interrupted


@pytest.mark.parametrize("where", ["before", "between"])
def test_interrupted_it_is_done_by_the_same_call_and_there_is_one_version(
    features, uri, name, programs, monkeypatch, where
):
    name = f"{name}-{where}"
    first, better = challenger(features, WORSE), challenger(features, BETTER)

    def die(*_):
        raise KeyboardInterrupt

    for number, run in enumerate((first, better), 1):
        with monkeypatch.context() as patch:
            patch.setattr(module.registry, {"before": "register", "between": "set_champion"}[where], die)
            with pytest.raises(KeyboardInterrupt):
                promote(run.id, name=name)
        there = registry.champion(uri, name)
        assert there is None if number == 1 else there.run_id == first.id
        result = promote(run.id, name=name)
        assert (result.champion, result.promoted, result.version) == (run.id, True, str(number))
        assert sorted(version.tags["mgc.run_id"] for version in versions(uri, name)) == sorted(
            [first.id, better.id][:number]
        )
    assert len(programs) == 2


def test_a_champion_of_before_that_is_better_again_keeps_its_version(features, uri, name, programs):
    first, better = challenger(features, WORSE), challenger(features, BETTER)
    promote(first.id, name=name)
    promote(better.id, name=name)
    keep(better, range(10))
    result = promote(first.id, name=name)
    assert (result.promoted, result.version, len(versions(uri, name))) == (True, "1", 2)


# Test-set evaluations


def test_what_was_evaluated_is_not_evaluated_again(features, tmp_path, undrawn):
    fresh = other_fingerprint(features, tmp_path / "set", "4")
    parent, children = parent_of(fresh, seed=[0, 1])
    first = evaluate_once(parent.id, fresh.folder)
    assert first.test_evaluations == 1
    again = evaluate_once(parent.id, fresh.folder)
    assert again == first
    assert evaluate_once(children[0].id, fresh.folder).accuracy == first.members[0].accuracy
    assert evaluate(parent.id, fresh.folder).test_evaluations == 2
    grown = trained(fresh, parent=parent.id, seed=2)
    assert evaluate_once(parent.id, fresh.folder).test_evaluations == 3  # of other models than were evaluated
    assert grown.id in {member.run_id for member in evaluate_once(parent.id, fresh.folder).members}
    other = other_fingerprint(features, tmp_path / "other", "3")
    assert evaluate_once(parent.id, other.folder).test_evaluations == 1


# In a job


def test_killed_between_evaluation_and_promotion_the_same_calls_evaluate_once_and_promote(
    features, tmp_path, undrawn, programs, monkeypatch
):
    """In a Ray job the store is beside the feature set."""
    monkeypatch.setattr(store, "in_job", lambda: True)
    there = tmp_path / "there"
    there.mkdir()
    fresh = other_fingerprint(features, there / "set", "1")
    winner, _ = parent_of(fresh, seed=[0, 1])
    assert winner.uri == f"sqlite:///{there}/mlflow_runs/mlflow.db"

    def job():
        return evaluate_once(winner.id, fresh.folder), promote(winner.id, fresh.folder)

    with monkeypatch.context() as patch:
        patch.setattr(module, "registry", None)
        with pytest.raises(AttributeError):
            job()
    assert Predictions.kept(winner, "test").source.test_evaluations == 1
    test, result = job()
    assert (test.test_evaluations, test.run_id) == (1, winner.id)
    assert (result.champion, result.promoted) == (winner.id, True)
    assert job()[1].promoted is False
    assert len(versions(winner.uri, registry.REGISTERED)) == 1


# Predicting


def test_a_parent_run_and_the_champion_predict_by_the_mean_of_their_models(
    features, tmp_path, uri, default_name, undrawn, programs
):
    clip = tmp_path / "clip.wav"
    soundfile.write(clip, np.random.default_rng(0).normal(0, 0.1, 40_000), 22_050)  # two windows and a rest

    def said(model):
        return np.array(list(predict(model, [clip]).clips[0].probabilities.values()))

    with pytest.raises(
        InputError, match=r"`model=champion`: no run is champion yet; promote an evaluated one"
    ) as caught:
        predict("champion", [clip])
    assert len(str(caught.value).splitlines()) == 1
    fresh = other_fingerprint(features, tmp_path / "set", "2")
    parent, children = parent_of(fresh, seed=[0, 1, 2])
    evaluate(parent.id, fresh.folder)
    each = [said(child.id) for child in children]
    assert np.ptp(each, axis=0).max() > 1e-2
    assert np.abs(said(parent.id) - np.mean(each, axis=0)).max() < 1e-6
    promote(parent.id)
    assert np.array_equal(said("champion"), said(parent.id))
    for run in (parent, *children):  # the registered one is still there
        client(uri).delete_run(run.id)
    assert np.abs(said("champion") - np.mean(each, axis=0)).max() < 1e-6
