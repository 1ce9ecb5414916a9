import json
import math

import mlflow
import numpy as np
import pytest
from conftest import GENRES, SPEC, make_features

from mgc import checkpoint, tracking
from mgc.config import ModelConfig, OptimConfig, TrainConfig
from mgc.errors import InputError, RunError
from mgc.evaluate import evaluate
from mgc.train import train

CONFIG = TrainConfig(
    model=ModelConfig(channels=(4, 8), norm=True, head="avgmax"), optim=OptimConfig(lr=0.01, batch_size=8), epochs=6
)
PLAIN = TrainConfig(
    model=ModelConfig(channels=(4, 8), dropout=0.0, norm=True, head="avgmax"), optim=OptimConfig(batch_size=8), epochs=3
)
LEAK = {"by": "id", "artist_id": "7", "artist_name": "AWOL", "splits": {"training": 2, "test": 1}}


@pytest.fixture(scope="module")
def trained(features):
    return train(features.folder.path, CONFIG, run_name="a run")


@pytest.fixture(scope="module")
def client():
    return mlflow.MlflowClient(tracking.existing_store(tracking.Path.cwd()))


def artifacts(client, run_id, folder=""):
    return {item.path for item in client.list_artifacts(run_id, folder or None)}


def test_training_answers_with_the_contracts_keys(trained):
    assert {"run_id", "epochs", "best_epoch", "train_accuracy", "val_accuracy", "seconds", "checkpoint"} <= set(trained)
    assert trained["epochs"] == CONFIG.epochs
    assert trained["val_accuracy"] > 0.6
    json.dumps(trained)


def test_a_run_holds_all_that_is_needed_to_trust_it(trained, client, features):
    run = client.get_run(trained["run_id"])
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
    history = client.get_metric_history(trained["run_id"], "val_accuracy")
    assert [metric.step for metric in history] == list(range(1, CONFIG.epochs + 1))
    assert max(metric.value for metric in history) == trained["val_accuracy"]
    assert artifacts(client, trained["run_id"], "pictures") == {
        "pictures/curves.png",
        "pictures/confusion_validation.png",
        "pictures/spectrograms.png",
    }
    assert artifacts(client, trained["run_id"], "checkpoint") == {
        f"checkpoint/{checkpoint.CARD}",
        f"checkpoint/{checkpoint.WEIGHTS}",
    }


def test_mlflows_own_model_gives_the_checkpoints_logits_for_any_batch(trained, client, features):
    model_id = client.get_run(trained["run_id"]).outputs.model_outputs[0].model_id
    with tracking._current(client.tracking_uri):
        model = mlflow.pyfunc.load_model(f"models:/{model_id}")
        folder = tracking.Path(mlflow.artifacts.download_artifacts(f"models:/{model_id}"))
    assert model.metadata.signature.inputs.inputs[0].shape == (-1, 1, *SPEC.shape)
    assert [file.name for file in (folder / "data").iterdir()] == ["model.pt2"]
    network, _ = checkpoint.read(tracking.Path(trained["checkpoint"]))
    mel = features.load("test").mel_NFT[:5].astype(np.float32)[:, None]
    import torch

    with torch.inference_mode():
        expected = network(torch.from_numpy(mel)).numpy()
    assert np.allclose(model.predict(mel), expected, atol=1e-5)
    assert np.allclose(model.predict(mel[:1]), expected[:1], atol=1e-5)


def test_evaluation_counts_every_test_clip_and_is_kept_with_the_run(trained, client, features):
    result = evaluate(trained["run_id"], features.folder.path)
    contract = {"run_id", "split", "n", "accuracy", "ci95", "macro_f1", "per_genre", "confusion"}
    assert contract <= set(result)
    assert result["n"] == 13
    assert sum(map(sum, result["confusion"])) == 13
    assert tuple(result["per_genre"]) == GENRES
    assert result["ci95"][0] <= result["accuracy"] <= result["ci95"][1]
    data = client.get_run(trained["run_id"]).data
    assert data.metrics["test_accuracy"] == pytest.approx(result["accuracy"])
    assert "pictures/confusion_test.png" in artifacts(client, trained["run_id"], "pictures")
    page = tracking.Path(result["report"].removeprefix("file://")).read_text()
    assert f"{result['accuracy']:.1%} of 13 test clips right" in page
    assert "http" not in page.split("data:image")[0]


def test_two_workers_reach_what_one_process_reaches(features, ray_session):
    one = train(features.folder.path, PLAIN)
    two = train(features.folder.path, PLAIN, workers=2)
    assert two["train_accuracy"] == pytest.approx(one["train_accuracy"], abs=1e-6)
    assert two["val_accuracy"] == pytest.approx(one["val_accuracy"], abs=1e-6)
    uri = tracking.existing_store(tracking.Path.cwd())
    histories = []
    for result in (one, two):
        points = mlflow.MlflowClient(uri).get_metric_history(result["run_id"], "train_loss")
        assert [point.step for point in points] == [1, 2, 3]
        histories.append([point.value for point in points])
    assert histories[0] == pytest.approx(histories[1], abs=1e-4)


def test_a_leaking_set_is_refused_by_name_unless_allowed_and_then_tagged(tmp_path, client):
    leaking = make_features(tmp_path / "leaky", leaks=(LEAK,))
    with pytest.raises(InputError, match=r"AWOL.*--allow-leaks"):
        train(leaking.folder, PLAIN)
    allowed = train(leaking.folder, PLAIN, allow_leaks=True)
    assert client.get_run(allowed["run_id"]).data.tags["mgc.leaky"] == "true"
    assert (
        "LEAKY"
        in tracking.Path(
            client.download_artifacts(evaluate(allowed["run_id"], leaking.folder)["run_id"], "report_test.html")
        ).read_text()
    )


def test_more_gpus_than_there_are_is_refused_before_anything_is_written(features, client):
    experiments = [client.get_experiment_by_name(tracking.EXPERIMENT).experiment_id]
    before = len(client.search_runs(experiments))
    with pytest.raises(InputError, match=r"--gpus 99: there (is|are) \d+ here"):
        train(features.folder.path, PLAIN, gpus=99)
    with pytest.raises(InputError, match="--gpus 1 --workers 2"):
        train(features.folder.path, PLAIN, gpus=1, workers=2)
    with pytest.raises(InputError, match="--workers 0"):
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


def test_an_unknown_run_is_named(features):
    with pytest.raises(InputError, match="run no-such-run"):
        evaluate("no-such-run", features.folder.path)


def test_a_run_is_not_evaluated_on_other_genres(trained, tmp_path):
    other = make_features(tmp_path / "other")
    text = (other.folder.path / "manifest.json").read_text().replace("Blues", "Zydeco")
    (other.folder.path / "manifest.json").write_text(text)
    with pytest.raises(InputError, match="other genres"):
        evaluate(trained["run_id"], other.folder)
