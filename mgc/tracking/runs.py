"""MLflow's runs: started, found and resumed by a key, written to and read; and the names of their tags.

One process owns one run. MLflow is known in this room and nowhere else.
"""

from __future__ import annotations

import json
import time
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias

from mlflow.entities import Dataset, DatasetInput, InputTag, LifecycleStage, Metric, Param, RunTag
from mlflow.exceptions import MlflowException

from mgc.core import signals
from mgc.core.errors import InputError, RunError, WaitError, first_line
from mgc.core.storage import without_password
from mgc.tracking import metric_names
from mgc.tracking.model_program import log_program
from mgc.tracking.provenance import provenance
from mgc.tracking.store import answering, client, make_experiment, search

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    import mlflow
    import torch
    from matplotlib.figure import Figure

    from mgc.core.storage import Folder

EXPERIMENT = "mgc"
"""Experiment of trainings and sweeps; preprocessing has its own, so that columns go together."""
FEATURES_EXPERIMENT = "mgc-features"
EVALUATIONS_EXPERIMENT = "mgc-evaluations"
"""Experiment of test-set evaluations."""
CHECKPOINT = "checkpoint"
"""Artifact folder of a run that holds what ``mgc.model.checkpoint`` writes."""

STEP_TAG = "mgc.step"
"""What kind of run it is: ``preprocess``, ``train``, ``seeds``, ``folds``, ``tune``, ``trial``, ``evaluate``, …"""
KEY_TAG = "mgc.key"
"""Hash of all that decides a run, by which an interrupted one is found."""
PLACE_TAG = "mgc.place"
"""The devices of a training."""
STORAGE_TAG = "mgc.storage"
"""Path or URI of the folder with the state of a training's fit and its checkpoint."""
ERROR_TAG = "mgc.error"
"""What a failed run raised."""
TRACK_TAG = "mgc.track"
"""Where a model's knowledge is from: ``mgc.config.track``."""
LEAKY_TAG = "mgc.leaky"
"""``true`` where ``mgc.dataset.protocols.leak`` found a leak."""
FINGERPRINT_TAG = "mgc.features.fingerprint"
FEATURES_TAG = "mgc.features.path"
"""Fingerprint and location of the feature set."""
PROTOCOL_TAG = "mgc.protocol"
"""Of a test-set evaluation: ``official`` or ``random``."""
REGISTERED_TAG = "mgc.registered"
"""Of a promoted run: name and version in the model registry."""
EVALUATED_TAG = "mgc.evaluated_run"
"""Of a test-set evaluation: id of the run that was evaluated."""
PARENT_TAG = "mlflow.parentRunId"
OUTCOME_TAG = "mgc.outcome"
"""Of a trial: ``kept``, ``pruned``, ``failed`` or ``stopped``."""
REASON_TAG = "mgc.reason"
"""Why a trial's model was not kept, as a sentence."""
STAGE_TAG = "mgc.stage"
"""Of seeds trained after a search: ``again`` (retrained), or ``without`` (one field ablated)."""
OF_TAG = "mgc.of"
"""The run whose configuration these seeds retrain (``again``), or ablate (``without``)."""
FIELD_TAG = "mgc.field"
VALUE_TAG = "mgc.value"
OFF_TAG = "mgc.off"
"""Of an ablation: the field, its value in the winner, and its value here."""
WINNER_TAG = "mgc.winner_run_id"
"""Of a sweep: the run of seeds with the best mean."""
BEST_TAG = "mgc.best_run_id"
"""Of a sweep: the best trial of the search."""


class HasRunId(Protocol):
    """A result that knows its run: of a training, of an evaluation."""

    @property
    def run_id(self) -> str:
        """Id of an MLflow run."""


RunLike: TypeAlias = str | HasRunId
"""A run id, or anything with ``.run_id``."""


def run_id_of(run: RunLike) -> str:
    """Return the id of a run.

    Parameters
    ----------
    run : str or object with ``run_id``
        An id, or a result of a step that knows it.

    Returns
    -------
    str
        The id.
    """
    return run if isinstance(run, str) else run.run_id


@dataclass(frozen=True)
class Record:
    """What the store has on a run, but for its artifacts."""

    name: str
    status: str
    """RUNNING, FINISHED, FAILED or KILLED."""
    started: float
    """In Unix seconds."""
    tags: dict[str, str]
    metrics: dict[str, float]
    """The last value of each, by the names of today (``metric_names``)."""
    deleted: bool
    """Deleted in MLflow's UI, and still in the store."""
    params: dict[str, str]


@dataclass(frozen=True)
class Run:
    """One MLflow run; small and picklable, so that the worker that owns the run can be handed it."""

    uri: str
    id: str

    @classmethod
    def start(
        cls,
        uri: str,
        experiment: str,
        *,
        name: str | None,
        step: str,
        config: Mapping[str, Any],
        tags: Mapping[str, str] | None = None,
        parent: str | None = None,
        key: str | None = None,
    ) -> Run:
        """Start a run, with its configuration as parameters and its provenance as tags.

        Parameters
        ----------
        uri
            Of the store.
        experiment
            Name of the experiment, made if need be.
        name
            Name of the run; None takes one of MLflow's.
        step
            What kind of run it is, kept as the tag ``mgc.step``.
        config
            A tree of plain values; its leaves become parameters with dotted names.
        tags
            More tags.
        parent
            Id of the run that this one is nested under.
        key
            Hash of all that decides the run; ``resume_or_start`` and ``finished`` find it by it.

        Returns
        -------
        Run
            The new run, RUNNING.
        """
        all_tags = {STEP_TAG: step, **provenance(), **(tags or {})}
        all_tags |= {name: value for name, value in ((PARENT_TAG, parent), (KEY_TAG, key)) if value is not None}
        connection = client(uri)
        params = [Param(key, str(value)) for key, value in flatten(config).items()]
        with answering(uri):
            run = connection.create_run(make_experiment(uri, experiment), run_name=name, tags=all_tags)
            connection.log_batch(run.info.run_id, params=params, synchronous=True)
        return cls(uri, run.info.run_id)

    @classmethod
    def resume_or_start(
        cls,
        uri: str,
        experiment: str,
        key: str,
        *,
        name: str | None,
        step: str,
        config: Mapping[str, Any],
        tags: Mapping[str, str] | None = None,
        parent: str | None = None,
        resumable: Callable[[Run], bool] = lambda run: True,
    ) -> tuple[Run, bool]:
        """Reopen the newest interrupted run of a key, or start a new run.

        Interrupted are runs that were killed, and runs still RUNNING because their process died; that no other process
        is at work on it is for the caller to know (``Folder.claim``).

        Parameters
        ----------
        uri, experiment, name, step, config, tags, parent
            As of ``start``, for a new run.
        key
            Hash of all that decides the run.
        resumable
            Whether an interrupted run can be resumed; if not, a new run is started.

        Returns
        -------
        tuple of Run and bool
            The run, and whether it was resumed.
        """
        run = cls._newest(uri, experiment, key, {"RUNNING", "KILLED"})
        if run and resumable(run):
            run.reopen()
            return run, True
        return cls.start(uri, experiment, name=name, step=step, config=config, tags=tags, parent=parent, key=key), False

    @classmethod
    def find(cls, uri: str, run_id: str) -> Run:
        """Find a run of the store by its id.

        Parameters
        ----------
        uri
            Of the store.
        run_id
            Of the run.

        Returns
        -------
        Run
            The run.

        Raises
        ------
        InputError
            The store has no such run.
        RunError
            The store does not answer.
        """
        try:
            client(uri).get_run(run_id)
        except MlflowException as error:
            if error.error_code in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):  # unknown, or no id at all
                raise InputError(
                    f"run {run_id}: the MLflow store {without_password(uri)} has no such run; «mgc ui» lists them"
                ) from None
            raise RunError(without_password(f"MLflow store {uri}: does not answer ({first_line(error)})")) from None
        return cls(uri, run_id)

    @classmethod
    def finished(cls, uri: str, experiment: str, key: str) -> Run | None:
        """Return the newest finished run of a key.

        Parameters
        ----------
        uri
            Of the store.
        experiment
            Name of the experiment.
        key
            As of ``start``.

        Returns
        -------
        Run or None
            The run; None if none of the key is finished.
        """
        return cls._newest(uri, experiment, key, {"FINISHED"})

    @classmethod
    def _newest(cls, uri: str, experiment: str, key: str, status: set[str]) -> Run | None:
        found = (run.info for run in search(uri, experiment, {KEY_TAG: key}) if run.info.status in status)
        newest = max(found, key=lambda info: info.start_time, default=None)
        return newest and cls(uri, newest.run_id)

    @contextmanager
    def closing(self) -> Iterator[None]:
        """Mark the run FINISHED when the block ends well, else as ``ending`` does."""
        with self.ending():
            yield
        self.finish("FINISHED")

    @contextmanager
    def ending(self) -> Iterator[None]:
        """Write down what ends the run, if the block raises: FAILED with the reason, or KILLED, which can be resumed.

        KILLED it is by Ctrl-C, by SIGTERM and where a cluster was waited for in vain, and so are the runs under it,
        whose processes end with this one. A SystemExit, by which Ray Tune stops a trial, leaves it open: who stopped
        the trial sets its status.
        """
        try:
            yield
        except SystemExit:
            raise
        except KeyboardInterrupt:
            self._kill(f"interrupted by {signals.received()}")
            raise
        except WaitError as error:
            self._kill(str(error))
            raise
        except BaseException as error:
            self.tag({ERROR_TAG: f"{type(error).__name__}: {error}"[:5000]})
            self.finish("FAILED")
            raise

    def _kill(self, reason: str) -> None:
        for child in self.children():
            if child.record().status == "RUNNING":
                child._kill(reason)
        self.tag({ERROR_TAG: reason})
        self.finish("KILLED")

    def finish(self, status: str) -> None:
        """Close the run as FINISHED, FAILED or KILLED."""
        self._client.set_terminated(self.id, status)

    def reopen(self) -> None:
        """Set an interrupted run RUNNING again, without the tags of how it ended."""
        self._client.update_run(self.id, status="RUNNING")
        for key in {ERROR_TAG, OUTCOME_TAG, REASON_TAG} & self._client.get_run(self.id).data.tags.keys():
            self._client.delete_tag(self.id, key)

    def tag(self, tags: Mapping[str, str]) -> None:
        """Set tags."""
        self._client.log_batch(self.id, tags=[RunTag(key, value) for key, value in tags.items()], synchronous=True)

    def metrics(self, values: Mapping[str, float], *, epoch: int = 0, at: float | None = None) -> None:
        """Log metrics in one batch.

        Parameters
        ----------
        values
            Metrics by name.
        epoch
            The epoch that they belong to, from 1; 0 for figures of the kept model.
        at
            When the epoch ended, in Unix seconds; now by default. Logged again with the same time, a point stays one.
        """
        milliseconds = int(1000 * (time.time() if at is None else at))
        batch = [Metric(key, float(value), milliseconds, epoch) for key, value in values.items()]
        self._client.log_batch(self.id, metrics=batch, synchronous=True)

    def figure(self, figure: Figure, path: str) -> None:
        """Log a plot as an artifact.

        Parameters
        ----------
        figure
            The plot.
        path
            Of the artifact; its ending is the format.
        """
        self._client.log_figure(self.id, figure, path)

    def text(self, text: str, path: str) -> None:
        """Log a text as an artifact.

        Parameters
        ----------
        text
            The content.
        path
            Of the artifact.
        """
        self._client.log_text(self.id, text, path)

    def file(self, file: Path, folder: str | None = None) -> None:
        """Log a file as an artifact.

        Parameters
        ----------
        file
            On this machine.
        folder
            Of the run's artifacts; the topmost by default.
        """
        self._client.log_artifact(self.id, str(file), folder)

    def features(self, folder: Folder, fingerprint: str, context: str) -> None:
        """Log a feature set as the run's input.

        Parameters
        ----------
        folder
            Of the feature set.
        fingerprint
            Of the feature set.
        context
            What for: ``training``.
        """
        source = json.dumps({"uri": folder.path.as_uri() if folder.path else str(folder)})
        dataset = Dataset(folder.name, digest=fingerprint[:36], source_type="local", source=source)
        self._client.log_inputs(self.id, [DatasetInput(dataset, [InputTag("mlflow.data.context", context)])])
        self.tag({FINGERPRINT_TAG: fingerprint, FEATURES_TAG: str(folder)})

    def model(
        self, model: torch.nn.Module, shape: tuple[int, int], n_genres: int, tags: Mapping[str, str] | None = None
    ) -> str:
        """Log a model in MLflow's own form; see ``model_program.log_program``.

        Parameters
        ----------
        model
            On the CPU, in evaluation mode.
        shape
            (mel bands, frames) of its input.
        n_genres
            Logits of its output.
        tags
            Of the logged model.

        Returns
        -------
        str
            MLflow's id of the model: ``models:/ID``.
        """
        return log_program(self.uri, self.id, model, shape, n_genres, tags or {})

    def record(self) -> Record:
        """Read the run's name, status, tags, parameters and metrics; those of old runs by the names of today."""
        run = self._client.get_run(self.id)
        info, data = run.info, run.data
        started, deleted = info.start_time / 1000, info.lifecycle_stage == LifecycleStage.DELETED
        metrics = metric_names.translated(dict(data.metrics), self._points)
        return Record(info.run_name, info.status, started, dict(data.tags), metrics, deleted, dict(data.params))

    def history(self, names: Sequence[str]) -> list[dict[str, float]]:
        """Read metrics over epochs.

        Parameters
        ----------
        names
            Of the metrics: ``epoch/val_accuracy``.

        Returns
        -------
        list of dict
            For each epoch that has all of them, in order: ``epoch`` and the metrics by name.
        """
        curves = {name: metric_names.curve(name, self._points) for name in names}
        epochs = sorted(set.intersection(*(set(curve) for curve in curves.values())))
        return [{"epoch": epoch} | {name: curve[epoch] for name, curve in curves.items()} for epoch in epochs]

    def _points(self, name: str) -> list[tuple[int, float]]:
        """A metric's epochs and values, in the order of logging."""
        points = sorted(self._client.get_metric_history(self.id, name), key=lambda metric: metric.timestamp)
        return [(metric.step, metric.value) for metric in points]

    def children(self) -> list[Run]:
        """Return the runs nested under this one, oldest first."""
        experiment = self._client.get_experiment(self._client.get_run(self.id).info.experiment_id)
        found = [run.info for run in search(self.uri, experiment.name, {PARENT_TAG: self.id})]
        return [Run(self.uri, info.run_id) for info in sorted(found, key=lambda info: info.start_time)]

    def fetch(self, path: str, destination: Path) -> Path | None:
        """Fetch an artifact, a file or a folder.

        Parameters
        ----------
        path
            Of the artifact.
        destination
            A folder on this machine.

        Returns
        -------
        Path or None
            Where the artifact is now; None if the run has none of this path.
        """
        if not any(item.path == path for item in self._client.list_artifacts(self.id, path.rpartition("/")[0] or None)):
            return None
        return Path(self._client.download_artifacts(self.id, path, str(destination)))

    def checkpoint(self, destination: Path) -> Path:
        """Fetch the run's checkpoint folder into a folder of this machine, and return where it is now.

        Raises
        ------
        InputError
            The run kept none.
        """
        fetched = self.fetch(CHECKPOINT, destination)
        if fetched is None:
            raise InputError(f"run {self.id}: this run kept no checkpoint (is it a training run?)")
        return fetched

    def artifact_uri(self, path: str) -> str:
        """Return the address of an artifact; with the default store ``file://…``, which a browser opens."""
        return f"{self._client.get_run(self.id).info.artifact_uri}/{path}"

    @property
    def _client(self) -> mlflow.MlflowClient:
        return client(self.uri)


def flatten(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Flatten a tree to its leaves by dotted names.

    Parameters
    ----------
    tree
        Dictionaries within dictionaries.
    prefix
        Put before each name.

    Returns
    -------
    dict
        Leaves by name.

    Examples
    --------
    >>> flatten({"model": {"dropout": 0.1}, "epochs": 20})
    {'model.dropout': 0.1, 'epochs': 20}
    """
    leaves: dict[str, Any] = {}
    for key, value in tree.items():
        if isinstance(value, dict):
            leaves |= flatten(value, f"{prefix}{key}.")
        else:
            leaves[f"{prefix}{key}"] = value
    return leaves
