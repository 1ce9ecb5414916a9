"""MLflow, known here and nowhere else: where the store is, what a run holds, how a model is kept.

The store is ``MLFLOW_TRACKING_URI`` or, without it, ``mlflow_runs/`` in the working directory: an SQLite database and
the artifacts beside it. In a Ray job, whose working directory is a copy, it is ``mlflow_runs/`` beside the feature set.
One process owns one run; the driver opens the store before any other process does, because several processes that meet
a fresh database crash each other.
"""

from __future__ import annotations

import getpass
import json
import logging
import os
import platform
import subprocess
import sys
import tempfile
import time
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import mlflow
from mlflow.entities import Dataset, DatasetInput, InputTag, Metric, Param, RunTag
from mlflow.exceptions import MlflowException

import mgc
from mgc.console import say
from mgc.errors import InputError, first_line
from mgc.ray_session import in_job

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    import torch
    from matplotlib.figure import Figure

    from mgc.folder import Folder

HOME = "mlflow_runs"
EXPERIMENT = "mgc"
"""Of trainings and sweeps; preprocessing has its own, so that columns go together."""
FEATURES_EXPERIMENT = "mgc-features"
CHECKPOINT = "checkpoint"
"""Artifact folder of a run that holds what ``mgc.checkpoint`` writes."""
SQLITE = "sqlite:///"
PARENT_TAG = "mlflow.parentRunId"
VERSIONS_OF = ("torch", "ray", "mlflow", "numpy", "pyarrow", "soundfile", "soxr")


def home(beside: Folder) -> Path:
    """The folder of the default store; ``beside`` is the feature set at work, for a Ray job.

    Raises
    ------
    InputError
        In a Ray job the feature set is in an object store, beside which no database can be.
    """
    if not in_job():
        return Path.cwd() / HOME
    if beside.path is None:
        raise InputError(f"{beside}: no MLflow store can be beside it; set MLFLOW_TRACKING_URI for the job")
    return beside.path.parent / HOME


def open_store(beside: Folder) -> str:
    """Create the store if need be and return its URI, which other processes are then given."""
    for name in ("mlflow", "alembic"):
        logging.getLogger(name).setLevel(logging.ERROR)
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")  # of a server that is not there, seconds, not minutes
    uri = _uri(beside)
    try:
        if uri.startswith(SQLITE):
            _make_database(_database(uri))
        _client(uri).search_experiments(max_results=1)
    except (MlflowException, OSError) as error:
        raise InputError(f"MLflow store {uri}: cannot be opened ({first_line(error)})") from None
    return uri


def existing_store(beside: Folder) -> str:
    """The URI of the store, which must be there: asking for a run must not make an empty database.

    Raises
    ------
    InputError
        There is no store yet.
    """
    uri = _uri(beside)
    if uri.startswith(SQLITE) and not _database(uri).exists():
        raise InputError(f"{_database(uri)}: no MLflow store here yet; train first, or set MLFLOW_TRACKING_URI")
    return open_store(beside)


def serve(uri: str, port: int) -> NoReturn:
    """Become MLflow's own UI on a store, on loopback.

    Raises
    ------
    InputError
        The store is a server, which has its UI already.
    """
    if uri.startswith("http"):
        raise InputError(f"MLFLOW_TRACKING_URI={uri}: is a server with its own UI; open it in a browser")
    say(f"MLflow UI of {uri}: http://127.0.0.1:{port}")
    server = [sys.executable, "-m", "mlflow", "server", "--backend-store-uri", uri, "--host", "127.0.0.1"]
    os.execv(sys.executable, [*server, "--port", str(port)])


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
    ) -> Run:
        """Begin a run: its whole configuration as parameters, and where the code and its libraries stand.

        Parameters
        ----------
        step
            What kind of run it is (``preprocess``, ``train``, ``tune``, ``trial``), as the tag ``mgc.step``.
        config
            A tree of plain values; its leaves become parameters with dotted names.
        parent
            Id of the run this one is nested under.
        """
        client = _client(uri)
        all_tags = {"mgc.step": step, **_provenance(), **(tags or {}), **({PARENT_TAG: parent} if parent else {})}
        run = client.create_run(_experiment(uri, experiment), run_name=name, tags=all_tags)
        params = [Param(key, str(value)) for key, value in flatten(config).items()]
        client.log_batch(run.info.run_id, params=params, synchronous=True)
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
            _client(uri).get_run(run_id)
        except MlflowException:
            raise InputError(f"run {run_id}: the MLflow store {uri} has no such run; «mgc ui» lists them") from None
        return cls(uri, run_id)

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
        for key in {"mgc.error", "mgc.pruned"} & self._client.get_run(self.id).data.tags.keys():
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
        self.tag({"mgc.features.fingerprint": fingerprint, "mgc.features.path": str(folder)})

    def model(self, model: torch.nn.Module, shape: tuple[int, int], n_genres: int) -> None:
        """Keep the model in MLflow's own form: a ``pt2`` program (no pickle) with signature and input example.

        It takes float32 [shape=(batch, 1, *shape)] and gives logits [shape=(batch, n_genres)]. Kept once.
        """
        if self._client.get_run(self.id).outputs.model_outputs:
            return
        import numpy as np
        from mlflow.models import ModelSignature
        from mlflow.types import Schema, TensorSpec

        float32 = np.dtype(np.float32)  # unnamed tensors: with names the pytorch flavour is handed a dict and refuses
        signature = ModelSignature(
            inputs=Schema([TensorSpec(float32, (-1, 1, *shape))]),
            outputs=Schema([TensorSpec(float32, (-1, n_genres))]),
        )
        with _current(self.uri), mlflow.start_run(run_id=self.id, log_system_metrics=False):
            mlflow.pytorch.log_model(
                model,
                name="model",
                serialization_format="pt2",
                signature=signature,
                # two rows: torch.export takes a batch of one for a constant
                input_example=np.zeros((2, 1, *shape), np.float32),
                pip_requirements=[f"torch=={version('torch').split('+')[0]}"],
            )

    def checkpoint(self, destination: Path) -> Path:
        """Fetch the run's checkpoint folder and return its path.

        Raises
        ------
        InputError
            The run kept none.
        """
        try:
            fetched = self._client.download_artifacts(self.id, CHECKPOINT, str(destination))
        except (MlflowException, OSError):
            raise InputError(f"run {self.id}: this run kept no checkpoint (is it a training run?)") from None
        return Path(fetched)

    def artifact_uri(self, path: str) -> str:
        """Where an artifact is; with the default store a ``file://`` address that a browser opens."""
        return f"{self._client.get_run(self.id).info.artifact_uri}/{path}"

    @property
    def _client(self) -> mlflow.MlflowClient:
        return _client(self.uri)


def flatten(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """The leaves of a tree by their dotted names: ``{"model.dropout": 0.1}``."""
    leaves: dict[str, Any] = {}
    for key, value in tree.items():
        if isinstance(value, dict):
            leaves |= flatten(value, f"{prefix}{key}.")
        else:
            leaves[f"{prefix}{key}"] = value
    return leaves


@lru_cache(maxsize=4)
def _client(uri: str) -> mlflow.MlflowClient:
    return mlflow.MlflowClient(uri)


@contextmanager
def _current(uri: str) -> Iterator[None]:
    """Make a store MLflow's current one for a call that takes no client, and leave no trace in the environment."""
    before = os.environ.get("MLFLOW_TRACKING_URI")
    mlflow.set_tracking_uri(uri)
    try:
        yield
    finally:
        mlflow.set_tracking_uri(None)
        if before is not None:
            os.environ["MLFLOW_TRACKING_URI"] = before


def _experiment(uri: str, name: str) -> str:
    """Id of an experiment, made if need be; of an SQLite store the artifacts lie beside the database."""
    client = _client(uri)
    found = client.get_experiment_by_name(name)
    if found is not None:
        return str(found.experiment_id)
    local = (_database(uri).parent / "artifacts").as_uri() if uri.startswith(SQLITE) else None
    return str(client.create_experiment(name, artifact_location=local))


def _uri(beside: Folder) -> str:
    return os.environ.get("MLFLOW_TRACKING_URI") or f"{SQLITE}{home(beside)}/mlflow.db"


def _database(uri: str) -> Path:
    """The file of an SQLite store."""
    return Path(uri.removeprefix(SQLITE)).absolute()


def _make_database(file: Path) -> None:
    """Make MLflow's database if there is none: aside, and then linked to its place.

    Its migrations take seconds, and a database of which a killed process made some is of no use to anybody.
    """
    file.parent.mkdir(parents=True, exist_ok=True)
    if file.exists():
        return
    with tempfile.TemporaryDirectory(dir=file.parent, prefix=".new-") as folder:
        fresh = Path(folder, file.name)
        _client(f"{SQLITE}{fresh}").search_experiments(max_results=1)
        try:
            os.link(fresh, file)
        except FileExistsError:
            pass  # another process was quicker
        except OSError:  # a file system without links
            os.replace(fresh, file)


def _provenance() -> dict[str, str]:
    """Who ran it, the commit of the code, whether it was changed since, and the libraries' versions."""
    tags = {f"mgc.version.{name}": version(name) for name in VERSIONS_OF}
    tags |= {"mgc.version.mgc": mgc.__version__, "mgc.version.python": platform.python_version()}
    tags |= {"mlflow.user": getpass.getuser(), "mlflow.source.name": "mgc", "mlflow.source.type": "LOCAL"}
    git = ["git", "-C", str(Path(__file__).parent)]
    head = subprocess.run([*git, "rev-parse", "HEAD"], capture_output=True, text=True, check=False)
    if head.returncode == 0:
        tags["mlflow.source.git.commit"] = head.stdout.strip()
        dirty = subprocess.run([*git, "status", "--porcelain"], capture_output=True, text=True, check=False)
        tags["mgc.git.dirty"] = str(bool(dirty.stdout.strip())).lower()
    return tags
