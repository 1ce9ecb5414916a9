"""Runs are found by their key, resumed if they were interrupted, and read as they were written."""

from contextlib import nullcontext
from dataclasses import dataclass

import mlflow
import pytest
from helpers.runs import trained

from mgc.core.errors import InputError
from mgc.tracking import store
from mgc.tracking.runs import Run, flatten, run_id_of


@pytest.fixture(scope="module")
def run(features):
    return trained(features)


@pytest.fixture
def uri(features):
    return store.open_store(features.folder)


@pytest.fixture
def experiment(request):
    """An experiment of this test's own."""
    return request.node.name


def started(uri, experiment, status=None, key="k1"):
    made = Run.start(uri, experiment, name=None, step="train", config={}, key=key)
    if status:
        made.finish(status)
    return made


def resume(uri, experiment, **more):
    return Run.resume_or_start(uri, experiment, "k1", name="again", step="train", config={"epochs": 3}, **more)


@pytest.mark.parametrize("status", [None, "KILLED"])
def test_an_interrupted_run_is_resumed_without_the_tags_of_its_end(uri, experiment, status):
    """None: still RUNNING, for its process died without a word."""
    interrupted = started(uri, experiment, status)
    interrupted.tag({"mgc.error": "Killed: by me", "mgc.outcome": "stopped", "mgc.reason": "so", "own": "stays"})
    assert resume(uri, experiment) == (interrupted, True)
    record = interrupted.record()
    assert (record.status, record.tags["mgc.key"], record.tags["own"]) == ("RUNNING", "k1", "stays")
    assert not {"mgc.error", "mgc.outcome", "mgc.reason"} & record.tags.keys()


@pytest.mark.parametrize("status", ["FINISHED", "FAILED"])
def test_what_ended_or_has_another_key_is_not_resumed(uri, experiment, status):
    ended = started(uri, experiment, status)
    other = started(uri, experiment, key="k2")
    run, resumed = resume(uri, experiment, tags={"mgc.place": "cpu"}, parent=other.id)
    assert (resumed, run in (ended, other)) == (False, False)
    record = run.record()
    assert (record.name, record.status, record.params) == ("again", "RUNNING", {"epochs": "3"})
    tags = ("mgc.key", "mgc.step", "mgc.place", "mlflow.parentRunId")
    assert [record.tags[tag] for tag in tags] == ["k1", "train", "cpu", other.id]
    assert ended.record().status == status


def test_the_newest_interrupted_run_is_resumed(uri, experiment):
    started(uri, experiment, "KILLED")
    newer = started(uri, experiment)
    started(uri, experiment, "FINISHED")
    assert resume(uri, experiment) == (newer, True)


def test_what_cannot_be_resumed_stays_and_a_new_run_is_started(uri, experiment):
    lost = started(uri, experiment, "KILLED")
    run, resumed = resume(uri, experiment, resumable=lambda found: found != lost)
    assert (resumed, lost.record().status) == (False, "KILLED")
    assert run != lost


def test_a_finished_run_is_found_by_its_key(uri, experiment):
    assert Run.finished(uri, experiment, "k1") is None  # no experiment yet
    started(uri, experiment, "FAILED")
    assert Run.finished(uri, experiment, "k1") is None
    finished = started(uri, experiment, "FINISHED")
    started(uri, experiment)
    assert Run.finished(uri, experiment, "k1") == finished


def test_an_unknown_run_is_named(uri):
    with pytest.raises(InputError, match=r"run nobody: .* has no such run"):
        Run.find(uri, "nobody")


@pytest.mark.parametrize(
    ("raised", "status"),
    [(None, "FINISHED"), (ValueError("so"), "FAILED"), (KeyboardInterrupt(), "KILLED"), (SystemExit(), "RUNNING")],
)
def test_a_run_ends_as_its_work_did(uri, experiment, raised, status):
    run = started(uri, experiment)
    with pytest.raises(type(raised)) if raised else nullcontext(), run.closing():
        if raised:
            raise raised
    record = run.record()
    assert record.status == status
    assert record.tags.get("mgc.error") == {"FAILED": "ValueError: so", "KILLED": "interrupted by SIGINT"}.get(status)


def test_a_history_has_each_epoch_once_in_order(run):
    names = ["epoch/train_loss", "epoch/val_accuracy"]
    points = run.history(names)
    assert points == [{"epoch": e, names[0]: 2 / e, names[1]: pytest.approx(0.1 * e)} for e in (1, 2, 3)]
    run.metrics({names[0]: 7.0}, epoch=4)  # without the other
    assert run.history(names) == points


def test_a_fit_that_began_before_and_ended_today_shows_its_kept_model(uri, experiment):
    """In MLflow a metric's value is that of its greatest step; old curves have the name of today's kept figure."""
    run = started(uri, experiment)
    for epoch in (1, 2):
        run.metrics({"train_loss": 1.0, "val_accuracy": 0.1 * epoch, "lr": 0.1}, epoch=epoch)
    assert run.record().metrics == {"epoch/train_loss": 1.0, "epoch/val_accuracy": 0.2, "epoch/lr": 0.1}
    for epoch in (1, 2, 3):
        run.metrics({"epoch/train_loss": 1.0, "epoch/val_accuracy": 0.1 * epoch, "epoch/lr": 0.1}, epoch=epoch)
    run.metrics({"val_accuracy": 0.3, "best_epoch": 3})
    record = run.record()
    assert (record.metrics["val_accuracy"], record.metrics["epoch/val_accuracy"]) == (0.3, pytest.approx(0.3))
    assert "lr" not in record.metrics
    assert [point["epoch/val_accuracy"] for point in run.history(["epoch/val_accuracy"])] == pytest.approx(
        [0.1, 0.2, 0.3]
    )


def test_a_point_that_is_logged_again_with_its_time_stands_once(uri, experiment):
    run = started(uri, experiment)
    for _ in range(2):
        run.metrics({"epoch/lr": 0.1}, epoch=1, at=1_000.0)
    assert len(mlflow.MlflowClient(uri).get_metric_history(run.id, "epoch/lr")) == 1


def test_what_is_not_there_is_not_fetched(run, tmp_path):
    assert run.fetch("no.txt", tmp_path) is None
    assert run.fetch("checkpoint/no.txt", tmp_path) is None
    assert run.fetch("checkpoint/model.json", tmp_path).read_text()


def test_a_run_without_a_checkpoint_is_named(uri, experiment, tmp_path):
    run = started(uri, experiment)
    with pytest.raises(InputError, match=f"run {run.id}: this run kept no checkpoint"):
        run.checkpoint(tmp_path)


def test_a_run_is_given_by_its_id_or_by_what_knows_it():
    @dataclass(frozen=True)
    class Known:
        run_id: str

    assert run_id_of("abc") == run_id_of(Known("abc")) == "abc"


def test_leaves_have_dotted_names():
    assert flatten({"a": {"b": {"c": 1}, "d": (2,)}, "e": 3}) == {"a.b.c": 1, "a.d": (2,), "e": 3}
