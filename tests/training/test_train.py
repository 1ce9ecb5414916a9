import json
import math
import os
import subprocess
import sys
import time
import warnings
from dataclasses import replace
from pathlib import Path

import mlflow
import numpy as np
import pytest
from helpers.feature_sets import SPEC, make_features, make_sharded
from helpers.long_fit import LONG, PLAIN

from mgc.config import ModelConfig, OptimConfig, TrainConfig
from mgc.core.errors import InputError, RunError
from mgc.core.storage import Folder
from mgc.dataset import clips
from mgc.evaluation import calibration, run_card
from mgc.evaluation.evaluate import evaluate
from mgc.evaluation.predictions import Predictions
from mgc.model import checkpoint
from mgc.sweep.tune import tune
from mgc.tracking import runs as tracking
from mgc.tracking import store
from mgc.training import loop
from mgc.training.fit_state import STATE
from mgc.training.train import TrainedRun, TrainedRuns, train

CONFIG = TrainConfig(
    model=ModelConfig(channels=(4, 8), norm=True, head="avgmax"), optim=OptimConfig(lr=0.01, batch_size=8), epochs=6
)
LEAK = {"by": "id", "artist_id": "7", "artist_name": "AWOL", "splits": {"training": 2, "test": 1}}


@pytest.fixture(scope="module")
def trained(features):
    return train(features.folder.path, CONFIG, run_name="a run")


@pytest.fixture(scope="module")
def client():
    return mlflow.MlflowClient(store.open_store(Folder.at(Path.cwd())))


def artifacts(client, run_id, folder=""):
    return {item.path for item in client.list_artifacts(run_id, folder or None)}


def test_training_answers_with_the_contracts_keys(trained):
    figures = ["epochs", "best_epoch", "train_accuracy", "val_accuracy", "val_loss", "val_clips", "seconds"]
    assert list(trained.to_dict()) == ["run_id", *figures, "checkpoint"]
    assert trained.epochs == CONFIG.epochs
    assert trained.val_accuracy > 0.6
    assert json.loads(json.dumps(trained.to_dict()))["checkpoint"] == str(trained.checkpoint)


def test_a_run_holds_all_that_is_needed_to_trust_it(trained, client, features):
    run = client.get_run(trained.run_id)
    assert run.info.status == "FINISHED"
    assert run.info.run_name == "a run"
    params = run.data.params
    assert params["model.channels"] == "[4, 8]"
    assert params["optim.lr"] == "0.01"
    assert params["seed"] == "0"
    tags = run.data.tags
    assert tags["mgc.step"] == "train"
    assert tags["mgc.features.fingerprint"] == features.manifest.fingerprint
    assert tags["mgc.version.torch"]
    assert "mgc.leaky" not in tags
    dataset = run.inputs.dataset_inputs[0].dataset
    assert features.manifest.fingerprint.startswith(dataset.digest)
    history = client.get_metric_history(trained.run_id, "epoch/val_accuracy")
    assert [metric.step for metric in history] == list(range(1, CONFIG.epochs + 1))
    assert max(metric.value for metric in history) == trained.val_accuracy
    assert artifacts(client, trained.run_id, "pictures") == {
        "pictures/curves.png",
        "pictures/confusion_validation.png",
        "pictures/spectrograms.png",
    }
    assert artifacts(client, trained.run_id, "checkpoint") == {
        f"checkpoint/{calibration.FILE}",
        f"checkpoint/{checkpoint.CARD}",
        f"checkpoint/{checkpoint.WEIGHTS}",
        f"checkpoint/{run_card.README}",
    }


def test_mlflows_own_model_gives_the_checkpoints_logits_for_any_batch(trained, client, features):
    model_id = client.get_run(trained.run_id).outputs.model_outputs[0].model_id
    with store.current(client.tracking_uri):
        model = mlflow.pyfunc.load_model(f"models:/{model_id}")
        folder = Path(mlflow.artifacts.download_artifacts(f"models:/{model_id}"))
    assert model.metadata.signature.inputs.inputs[0].shape == (-1, 1, *SPEC.shape)
    assert [file.name for file in (folder / "data").iterdir()] == ["model.pt2"]
    network, _ = checkpoint.read(Path(trained.checkpoint))
    mel = clips.load(features, "test").mel_NFT[:5].astype(np.float32)[:, None]
    import torch

    with torch.inference_mode():
        expected = network(torch.from_numpy(mel)).numpy()
    assert np.allclose(model.predict(mel), expected, atol=1e-5)
    assert np.allclose(model.predict(mel[:1]), expected[:1], atol=1e-5)


def test_what_a_run_keeps_of_its_validation_clips_is_what_evaluating_it_there_gives(trained, client, features):
    run = tracking.Run(client.tracking_uri, trained.run_id)
    kept = Predictions.kept(run, "validation")
    assert kept.score().accuracy == trained.val_accuracy
    assert evaluate(run.id, features.folder.path, split="validation").accuracy == trained.val_accuracy
    again = Predictions.kept(run, "validation")
    assert again.source == kept.source
    assert again.paths == kept.paths
    for name in ("track_ids_N", "labels_N"):
        assert np.array_equal(getattr(again, name), getattr(kept, name)), name
    np.testing.assert_allclose(again.probabilities_NG, kept.probabilities_NG, atol=1e-6)
    assert Predictions.kept(run, "test") is None


def test_a_finished_fit_reads_its_checkpoint_once_and_predicts_nothing_again(features, monkeypatch):
    """What is kept of the validation clips is what the fit predicted, on its own device."""
    reads, read = [], checkpoint.read
    monkeypatch.setattr(checkpoint, "read", lambda folder: reads.append(folder) or read(folder))
    predicted, validate = [], loop.validate
    monkeypatch.setattr(loop, "validate", lambda *each: predicted.append(validate(*each)) or predicted[-1])
    result = train(features, replace(PLAIN, epochs=1), run_name="one read")
    assert reads == [result.checkpoint]
    kept = Predictions.kept(tracking.Run(store.open_store(features.folder), result.run_id), "validation")
    assert np.array_equal(kept.probabilities_NG, predicted[-1].probabilities_NG)
    assert result.val_accuracy == predicted[-1].accuracy == (kept.probabilities_NG.argmax(1) == kept.labels_N).mean()


def test_the_kept_models_figures_have_the_same_names_in_every_run(trained, client):
    metrics = client.get_run(trained.run_id).data.metrics
    for name in ("best_epoch", "train_accuracy", "val_accuracy", "val_loss"):
        assert metrics[name] == getattr(trained, name), name
    assert metrics["gap"] == pytest.approx(trained.train_accuracy - trained.val_accuracy)
    curve = {"train_loss", "train_accuracy", "val_loss", "val_accuracy", "lr", "seconds"}
    assert {name for name in metrics if name.startswith("epoch/")} == {f"epoch/{name}" for name in curve}


def test_a_result_prints_as_a_table_and_as_plain_values():
    run = TrainedRun("abc", 6, 4, 0.75, 0.5, 1.25, 12, 3.5, Path("folder"))
    assert str(run).splitlines() == [
        "run                                training  validation    gap",
        "abc                                   0.750       0.500  0.250",
        "checkpoint: folder",
    ]
    other = replace(run, run_id="def", val_accuracy=0.25)
    runs = TrainedRuns("parent", 0.75, 0.375, 0.17678, 12, (0.15, 0.66), (run, other))
    assert str(runs).splitlines()[1:] == [
        "abc                                   0.750       0.500  0.250",
        "def                                   0.750       0.250  0.500",
        "mean                                  0.750       0.375  0.375",
        "validation 0.375 ± 0.177 (sd of 2 models); 95 % interval 0.150 to 0.660 for 12 clips; run parent",
    ]
    tree = json.loads(json.dumps(runs.to_dict()))
    assert list(tree) == [
        "run_id", "train_accuracy", "val_accuracy", "val_accuracy_sd", "val_clips", "val_ci95", "members"
    ]  # fmt: skip
    assert tree["members"][1] == other.to_dict()
    assert tree["members"][1]["checkpoint"] == "folder"


def test_two_workers_reach_what_one_process_reaches(features, ray_session):
    one = train(features.folder.path, PLAIN)
    two = train(features.folder.path, PLAIN, workers=2)
    assert two.train_accuracy == pytest.approx(one.train_accuracy, abs=1e-6)
    assert two.val_accuracy == pytest.approx(one.val_accuracy, abs=1e-6)
    uri = store.existing_store(Path.cwd())
    histories = []
    for result in (one, two):
        points = mlflow.MlflowClient(uri).get_metric_history(result.run_id, "epoch/train_loss")
        assert [point.step for point in points] == [1, 2, 3]
        histories.append([point.value for point in points])
    assert histories[0] == pytest.approx(histories[1], abs=1e-4)


def test_a_leaking_set_is_refused_by_name_unless_allowed_and_then_tagged(tmp_path, client):
    leaking = make_features(tmp_path / "leaky", leaks=(LEAK,))
    with pytest.raises(InputError, match=r"AWOL.*`allow_leaks=True`"):
        train(leaking.folder, PLAIN)
    allowed = train(leaking.folder, PLAIN, allow_leaks=True)
    assert client.get_run(allowed.run_id).data.tags["mgc.leaky"] == "true"
    assert (
        "LEAKY"
        in Path(client.download_artifacts(evaluate(allowed.run_id, leaking.folder).run_id, "report.html")).read_text()
    )


def test_more_gpus_than_there_are_is_refused_before_anything_is_written(features, client):
    experiments = [client.get_experiment_by_name(tracking.EXPERIMENT).experiment_id]
    before = len(client.search_runs(experiments))
    with pytest.raises(InputError, match=r"`gpus=99`: there (is|are) \d+ here"):
        train(features.folder.path, PLAIN, gpus=99)
    with pytest.raises(InputError, match="`gpus=1` `workers=2`"):
        train(features.folder.path, PLAIN, gpus=1, workers=2)
    with pytest.raises(InputError, match="`workers=0`"):
        train(features.folder.path, PLAIN, workers=0)
    assert len(client.search_runs(experiments)) == before


def test_a_failed_run_is_kept_as_failed_with_its_reason(features, client):
    wild = TrainConfig(
        model=ModelConfig(channels=(4,), dropout=0.0), optim=OptimConfig(lr=1e30, batch_size=8), epochs=3
    )
    with pytest.raises(RunError, match="loss is"):
        train(features.folder.path, wild, run_name="wild")
    experiment = client.get_experiment_by_name("mgc").experiment_id
    run = client.search_runs([experiment], "attributes.run_name = 'wild'")[0]
    assert run.info.status == "FAILED"
    assert "loss is" in run.data.tags["mgc.error"]
    assert not math.isnan(run.info.end_time)


def test_a_run_is_not_evaluated_on_other_genres(trained, tmp_path):
    other = make_features(tmp_path / "other")
    text = (other.folder.path / "manifest.json").read_text().replace("Blues", "Zydeco")
    (other.folder.path / "manifest.json").write_text(text)
    with pytest.raises(InputError, match="other genres"):
        evaluate(trained.run_id, other.folder)


COMMAND = """
import sys
from helpers.long_fit import LONG, PLAIN
from mgc.training import loop
from mgc.training.train import TrainedRun, TrainedRuns, train
print(train(sys.argv[1], LONG, run_name=sys.argv[2], seeds=int(sys.argv[3])).run_id)
"""


def command(features, name, seeds):
    """The same training as another process."""
    line = [sys.executable, "-c", COMMAND, str(features.folder.path), name, str(seeds)]
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[1])}
    return subprocess.Popen(line, env=environment, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)


def runs_named(client, name):
    experiment = client.get_experiment_by_name(tracking.EXPERIMENT).experiment_id
    return client.search_runs([experiment], f"attributes.run_name = '{name}'")


def steps(client, run_id):
    return [metric.step for metric in client.get_metric_history(run_id, "epoch/val_accuracy")]


def curve(client, run_id, name):
    return [metric.value for metric in client.get_metric_history(run_id, name)]


@pytest.fixture(scope="module")
def undisturbed(features):
    return train(features.folder.path, LONG, run_name="undisturbed")


@pytest.mark.slow
@pytest.mark.parametrize("moment", ["in an epoch", "before all is kept"])
def test_a_killed_training_goes_on_by_the_same_command(features, client, undisturbed, moment):
    victim = command(features, moment, 1)
    deadline = time.monotonic() + 120
    while True:
        assert time.monotonic() < deadline
        found = runs_named(client, moment)
        folder = Path("mlflow_runs/checkpoints") / found[0].info.run_id if found else None
        if folder and (folder / (STATE if moment == "in an epoch" else checkpoint.CARD)).exists():
            break
        time.sleep(0.02)
    victim.kill()
    victim.wait()
    before = client.get_run(found[0].info.run_id)
    assert before.info.status == "RUNNING"
    result = train(features.folder.path, LONG, run_name=moment)
    assert [run.info.run_id for run in runs_named(client, moment)] == [result.run_id] == [before.info.run_id]
    assert client.get_run(result.run_id).info.status == "FINISHED"
    assert steps(client, result.run_id) == list(range(1, LONG.epochs + 1))
    assert len(client.get_run(result.run_id).outputs.model_outputs) == 1
    for name in ("train_accuracy", "val_accuracy", "val_loss", "best_epoch"):
        assert getattr(result, name) == pytest.approx(getattr(undisturbed, name), abs=1e-3), name
    assert not (folder / STATE).exists()
    another = train(features.folder.path, replace(LONG, epochs=1), run_name=moment)  # another command: another run
    assert another.run_id != result.run_id


@pytest.mark.slow
def test_a_killed_training_of_several_seeds_trains_none_twice(features, client):
    victim = command(features, "two seeds", 2)
    deadline = time.monotonic() + 120
    while len(second := runs_named(client, "seed 1")) < 1 or not steps(client, second[0].info.run_id):
        assert time.monotonic() < deadline
        time.sleep(0.02)
    victim.kill()
    victim.wait()
    (first,) = runs_named(client, "seed 0")
    result = train(features.folder.path, LONG, run_name="two seeds", seeds=2)
    (parent,) = runs_named(client, "two seeds")
    assert result.run_id == parent.info.run_id
    assert parent.info.status == "FINISHED"
    assert [member.run_id for member in result.members] == [first.info.run_id, second[0].info.run_id]
    assert client.get_run(first.info.run_id).info.end_time == first.info.end_time
    for member in result.members:
        run = client.get_run(member.run_id)
        assert run.data.tags[tracking.PARENT_TAG] == parent.info.run_id
        assert steps(client, member.run_id) == list(range(1, LONG.epochs + 1))
    accuracies = [member.val_accuracy for member in result.members]
    assert result.val_accuracy == pytest.approx(sum(accuracies) / 2)
    assert result.val_accuracy_sd == pytest.approx(abs(accuracies[0] - accuracies[1]) / 2**0.5)
    assert parent.data.metrics["val_accuracy"] == pytest.approx(result.val_accuracy)
    assert "± " in str(result)


def test_the_same_training_twice_at_a_time_is_refused(features, client):
    def again(*_):
        with pytest.raises(InputError, match=r"this very training is running, .*wait until it is done"):
            train(features.folder.path, PLAIN, run_name="twice")
        raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("mgc.training.train.EpochLogger", lambda *_: again)
        with pytest.raises(KeyboardInterrupt):
            train(features.folder.path, PLAIN, run_name="twice")
    (run,) = runs_named(client, "twice")
    assert run.info.status == "KILLED"
    assert train(features.folder.path, PLAIN, run_name="twice").run_id == run.info.run_id  # Ctrl-C is gone on with


def test_folds_validate_each_clip_once_and_never_see_the_test_split(features, client):
    config = replace(PLAIN, epochs=1, folds=3)
    result = train(features.folder.path, config, run_name="folds")
    assert [member.val_clips for member in result.members] == [19, 19, 18]
    assert result.val_clips == 56
    right = sum(member.val_clips * member.val_accuracy for member in result.members)
    assert result.val_accuracy == pytest.approx(right / 56)
    assert result.val_ci95[0] < result.val_accuracy < result.val_ci95[1]
    (parent,) = runs_named(client, "folds")
    assert parent.data.tags["mgc.step"] == "folds"
    assert train(features.folder.path, replace(config, fold=2)).val_clips == 19


def test_what_no_fit_can_learn_from_leaves_no_run(tmp_path, client):
    two = make_sharded(
        tmp_path / "two", artist=lambda track: f"a{track % 4}", genre=lambda t: t % 2, training=(12,), validation=(8,)
    )
    before = len(store.search(client.tracking_uri, tracking.EXPERIMENT, {}))
    with pytest.raises(InputError, match=r"too few artists of «Blues» .2., «Folk» .2.; at most `folds=2`"):
        train(two, replace(PLAIN, folds=5))
    with pytest.raises(InputError, match="at most `folds=2`"):
        tune(two, replace(PLAIN, folds=5, fold=1), name="no folds")
    one = make_sharded(tmp_path / "one", genre=lambda _: 0, training=(12,), validation=(8,))
    for step in (train, tune):
        with pytest.raises(InputError, match="training clips of «Blues» alone"):
            step(one, PLAIN)
    assert len(store.search(client.tracking_uri, tracking.EXPERIMENT, {})) == before
    assert not Path("mlflow_runs/sweeps/no folds").exists()


def test_genres_that_a_split_lacks_are_said_before_anything_starts(tmp_path, capsys):
    some = make_sharded(
        tmp_path / "set", genre=lambda t: (t - 100) % 2 + (t >= 112), training=(12,), validation=(8,), test=(2,)
    )
    plain = replace(PLAIN, model=replace(PLAIN.model, channels=(4,)), epochs=1)
    run = train(some, plain)
    said = capsys.readouterr().err.splitlines()
    assert said[1] == "train: no training clips of «Jazz», «Rock»: they cannot be learnt"
    assert said[2].startswith("train: no validation clips of «Blues», «Rock»: ")
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        evaluate(run, some, split="validation")
    assert "evaluate: no validation clips of «Blues», «Rock»: their F1 counts as 0" in capsys.readouterr().err


def test_a_random_split_is_tagged_leaky(features, client):
    result = train(features.folder.path, replace(PLAIN, epochs=1, split="random"))
    assert client.get_run(result.run_id).data.tags["mgc.leaky"] == "true"
