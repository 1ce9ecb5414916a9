"""MLflow's runs: what a run holds, how it is found again, and how a model is kept.

One process owns one run. MLflow is known in this room and nowhere else.
"""

from __future__ import annotations

import json
import time
from collections import defaultdict
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import mlflow
from mlflow.entities import Dataset, DatasetInput, InputTag, LifecycleStage, LoggedModelStatus, Metric, Param, RunTag
from mlflow.exceptions import MlflowException

from mgc.core.errors import InputError
from mgc.tracking.provenance import provenance
from mgc.tracking.store import client, current, make_experiment, search

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    import torch
    from matplotlib.figure import Figure

    from mgc.core.storage import Folder

EXPERIMENT = "mgc"
"""Of trainings and sweeps; preprocessing has its own, so that columns go together."""
FEATURES_EXPERIMENT = "mgc-features"
EVALUATIONS_EXPERIMENT = "mgc-evaluations"
"""Of looks at test splits."""
CHECKPOINT = "checkpoint"
"""Artifact folder of a run that holds what ``mgc.model.checkpoint`` writes."""
STEP_TAG = "mgc.step"
KEY_TAG = "mgc.key"
LEAKY_TAG = "mgc.leaky"
FINGERPRINT_TAG = "mgc.features.fingerprint"
FEATURES_TAG = "mgc.features.path"
PARENT_TAG = "mlflow.parentRunId"
OUTCOME_TAG = "mgc.outcome"
"""Of a trial: ``kept``, ``pruned``, ``failed`` or ``stopped``."""
REASON_TAG = "mgc.reason"
"""Why a trial's model was not kept, as a sentence."""
STAGE_TAG = "mgc.stage"
"""Of seeds trained after a search: ``again``, or ``without`` one field."""
OF_TAG = "mgc.of"
"""The run that these seeds repeat (``again``), or differ from by one field (``without``)."""
FIELD_TAG = "mgc.field"
VALUE_TAG = "mgc.value"
OFF_TAG = "mgc.off"
"""The field put off, what the winner has, and what it was put to."""
WINNER_TAG = "mgc.winner_run_id"
"""Of a sweep: the seeds of the best mean."""
BEST_TAG = "mgc.best_run_id"
"""Of a sweep: the best trial of the search."""


@dataclass(frozen=True)
class Record:
    """What the store says of a run, but for its artifacts."""

    name: str
    status: str
    """RUNNING, FINISHED, FAILED or KILLED."""
    started: float
    """In Unix seconds."""
    tags: dict[str, str]
    metrics: dict[str, float]
    """The last value of each."""
    deleted: bool
    """In MLflow's UI, which keeps it until it is told to collect its garbage."""
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
        """Begin a run: its whole configuration as parameters, and where the code and its libraries stand.

        Parameters
        ----------
        step
            What kind of run it is (``preprocess``, ``train``, ``seeds``, ``folds``, ``tune``, ``trial``, ``evaluate``),
            as the tag ``mgc.training.step``.
        config
            A tree of plain values; its leaves become parameters with dotted names.
        parent
            Id of the run this one is nested under.
        key
            What ``take_up`` and ``finished`` know the run by.
        """
        all_tags = {STEP_TAG: step, **provenance(), **(tags or {})}
        all_tags |= {name: value for name, value in ((PARENT_TAG, parent), (KEY_TAG, key)) if value is not None}
        connection = client(uri)
        run = connection.create_run(make_experiment(uri, experiment), run_name=name, tags=all_tags)
        params = [Param(key, str(value)) for key, value in flatten(config).items()]
        connection.log_batch(run.info.run_id, params=params, synchronous=True)
        return cls(uri, run.info.run_id)

    @classmethod
    def find(cls, uri: str, run_id: str) -> Run:
        """A run of the store by its id.

        Raises
        ------
        InputError
            The store has no such run.
        """
        try:
            client(uri).get_run(run_id)
        except MlflowException:
            raise InputError(f"run {run_id}: the MLflow store {uri} has no such run; «mgc ui» lists them") from None
        return cls(uri, run_id)

    @classmethod
    def take_up(cls, uri: str, experiment: str, key: str) -> Run | None:
        """The newest interrupted run of a key (killed, or its process died without a word), reopened; None if none."""
        run = cls._newest(uri, experiment, key, {"RUNNING", "KILLED"})
        if run:
            run.reopen()
        return run

    @classmethod
    def finished(cls, uri: str, experiment: str, key: str) -> Run | None:
        """The newest finished run of a key; None if there is none."""
        return cls._newest(uri, experiment, key, {"FINISHED"})

    @classmethod
    def _newest(cls, uri: str, experiment: str, key: str, status: set[str]) -> Run | None:
        found = (run.info for run in search(uri, experiment, {KEY_TAG: key}) if run.info.status in status)
        newest = max(found, key=lambda info: info.start_time, default=None)
        return newest and cls(uri, newest.run_id)

    @contextmanager
    def closing(self) -> Iterator[None]:
        """Mark the run finished when the block ends well, failed (with the reason) when it raises.

        A SystemExit, by which Ray Tune stops a trial, leaves it open: who stopped it says how it ended.
        """
        try:
            yield
        except SystemExit:
            raise
        except BaseException as error:
            self.tag({"mgc.error": f"{type(error).__name__}: {error}"[:5000]})
            self.finish("KILLED" if isinstance(error, KeyboardInterrupt) else "FAILED")
            raise
        self.finish("FINISHED")

    def finish(self, status: str) -> None:
        """Close the run as FINISHED, FAILED or KILLED."""
        self._client.set_terminated(self.id, status)

    def reopen(self) -> None:
        """Take an interrupted run up again."""
        self._client.update_run(self.id, status="RUNNING")
        for key in {"mgc.error", OUTCOME_TAG, REASON_TAG} & self._client.get_run(self.id).data.tags.keys():
            self._client.delete_tag(self.id, key)

    def tag(self, tags: Mapping[str, str]) -> None:
        """Set tags."""
        self._client.log_batch(self.id, tags=[RunTag(key, value) for key, value in tags.items()], synchronous=True)

    def metrics(self, values: Mapping[str, float], *, epoch: int = 0, at: float | None = None) -> None:
        """Log metrics, all at once, at one epoch, which ended ``at`` (Unix seconds, now by default).

        Logged again with the same ``at`` they stand once.
        """
        milliseconds = int(1000 * (time.time() if at is None else at))
        batch = [Metric(key, float(value), milliseconds, epoch) for key, value in values.items()]
        self._client.log_batch(self.id, metrics=batch, synchronous=True)

    def figure(self, figure: Figure, path: str) -> None:
        """Keep a picture as an artifact."""
        self._client.log_figure(self.id, figure, path)

    def text(self, text: str, path: str) -> None:
        """Keep a text as an artifact."""
        self._client.log_text(self.id, text, path)

    def file(self, file: Path, folder: str | None = None) -> None:
        """Keep a file as an artifact, in a folder of the run's artifacts."""
        self._client.log_artifact(self.id, str(file), folder)

    def features(self, folder: Folder, fingerprint: str, context: str) -> None:
        """Name the feature set, by its fingerprint, as the run's input."""
        source = json.dumps({"uri": folder.path.as_uri() if folder.path else str(folder)})
        dataset = Dataset(folder.name, digest=fingerprint[:36], source_type="local", source=source)
        self._client.log_inputs(self.id, [DatasetInput(dataset, [InputTag("mlflow.data.context", context)])])
        self.tag({FINGERPRINT_TAG: fingerprint, FEATURES_TAG: str(folder)})

    def model(
        self, model: torch.nn.Module, shape: tuple[int, int], n_genres: int, tags: Mapping[str, str] | None = None
    ) -> str:
        """Keep the model in MLflow's own form: a ``pt2`` program (no pickle) with signature and input example.

        It takes float32 [shape=(batch, 1, *shape)] and gives logits [shape=(batch, n_genres)]. Kept once: if the run
        has a finished model of these tags, that is it.

        Returns
        -------
        str
            MLflow's id of the model: ``models:/ID``.
        """
        run, tags = self._client.get_run(self.id), dict(tags or {})
        for output in run.outputs.model_outputs:
            logged = self._client.get_logged_model(output.model_id)
            if logged.status == LoggedModelStatus.READY and tags.items() <= logged.tags.items():
                return str(output.model_id)
        import numpy as np
        from mlflow.models import ModelSignature
        from mlflow.types import Schema, TensorSpec

        float32 = np.dtype(np.float32)  # unnamed tensors: with names the pytorch flavour is handed a dict and refuses
        signature = ModelSignature(
            inputs=Schema([TensorSpec(float32, (-1, 1, *shape))]),
            outputs=Schema([TensorSpec(float32, (-1, n_genres))]),
        )
        # made here, because log_model would open the run again, or without it take another experiment
        made = self._client.create_logged_model(
            run.info.experiment_id, name="model", source_run_id=self.id, tags=tags, params=run.data.params
        )
        with current(self.uri):
            mlflow.pytorch.log_model(
                model,
                model_id=made.model_id,
                run_id=self.id,
                serialization_format="pt2",
                signature=signature,
                # two rows: torch.export takes a batch of one for a constant
                input_example=np.zeros((2, 1, *shape), np.float32),
                pip_requirements=[f"torch=={version('torch').split('+')[0]}"],
            )
        return str(made.model_id)

    def record(self) -> Record:
        """What the store says of the run now."""
        run = self._client.get_run(self.id)
        info, data = run.info, run.data
        started, deleted = info.start_time / 1000, info.lifecycle_stage == LifecycleStage.DELETED
        tags, metrics, params = dict(data.tags), dict(data.metrics), dict(data.params)
        return Record(info.run_name, info.status, started, tags, metrics, deleted, params)

    def history(self, names: Sequence[str]) -> list[dict[str, float]]:
        """Metrics over epochs: a dict with ``epoch`` for each epoch that has all of them."""
        epochs: defaultdict[int, dict[str, float]] = defaultdict(dict)
        for name in names:
            for metric in self._client.get_metric_history(self.id, name):
                epochs[metric.step][name] = metric.value
        return [{"epoch": epoch, **epochs[epoch]} for epoch in sorted(epochs) if len(epochs[epoch]) == len(names)]

    def children(self) -> list[Run]:
        """The runs nested under this one, oldest first."""
        experiment = self._client.get_experiment(self._client.get_run(self.id).info.experiment_id)
        found = [run.info for run in search(self.uri, experiment.name, {PARENT_TAG: self.id})]
        return [Run(self.uri, info.run_id) for info in sorted(found, key=lambda info: info.start_time)]

    def fetch(self, path: str, destination: Path) -> Path | None:
        """Fetch an artifact, a file or a folder, and return where it is now; None if the run has none of this name."""
        if not any(item.path == path for item in self._client.list_artifacts(self.id, path.rpartition("/")[0] or None)):
            return None
        return Path(self._client.download_artifacts(self.id, path, str(destination)))

    def checkpoint(self, destination: Path) -> Path:
        """Fetch the run's checkpoint folder and return its path.

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
        """Where an artifact is; with the default store a ``file://`` address that a browser opens."""
        return f"{self._client.get_run(self.id).info.artifact_uri}/{path}"

    @property
    def _client(self) -> mlflow.MlflowClient:
        return client(self.uri)


def flatten(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """The leaves of a tree by their dotted names: ``{"model.dropout": 0.1}``."""
    leaves: dict[str, Any] = {}
    for key, value in tree.items():
        if isinstance(value, dict):
            leaves |= flatten(value, f"{prefix}{key}.")
        else:
            leaves[f"{prefix}{key}"] = value
    return leaves
