"""Where MLflow's store is, and how it is opened, made and searched; and where the files of unfinished work are.

The store is ``MLFLOW_TRACKING_URI`` or, without it, ``mlflow_runs/`` in the working directory: an SQLite database and
the artifacts beside it. In a Ray job, whose working directory is a copy, it is ``mlflow_runs/`` beside the feature set.
The driver opens the store before any other process does, because several processes that meet a fresh database crash
each other.
"""

from __future__ import annotations

import logging
import os
import sqlite3
from contextlib import contextmanager
from functools import lru_cache, wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import mlflow
from mlflow.entities import ViewType
from mlflow.exceptions import MlflowException
from sqlalchemy.exc import SQLAlchemyError

from mgc.core import signals
from mgc.core.errors import InputError, RunError, first_line, path_error
from mgc.core.ray_session import in_job, output_folder
from mgc.core.storage import Folder, without_password
from mgc.tracking.database import address, artifacts, database, prepare

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

HOME = "mlflow_runs"
STORAGE_VARIABLE = "MGC_STORAGE"


def storage(given: str | Path | None, beside: Folder) -> Folder:
    """Return the folder of what runs leave behind besides MLflow: states of fits, checkpoints, sweeps.

    Parameters
    ----------
    given
        Path or URI that the user gave; None takes ``MGC_STORAGE``, and without it the folder of the default store.
    beside
        The feature set at work; see ``home``.

    Raises
    ------
    InputError
        In a Ray job none is given and the feature set is in an object store; or the path is relative there.
    StoreError
        The object store does not answer.
    """
    place = given or os.environ.get(STORAGE_VARIABLE)
    if place:
        return output_folder("storage", place)
    if in_job() and beside.path is None:
        raise InputError("`storage`: is needed in a Ray job on features in an object store; give s3://bucket/folder")
    return Folder.at(home(beside))


def made(folder: Folder, name: str = "") -> Folder:
    """Make a folder for what is left behind, before anything is begun, and return it.

    Parameters
    ----------
    folder
        In the storage.
    name
        Relative path of a folder in it; the folder itself by default.

    Raises
    ------
    InputError, RunError
        It cannot be made or written.
    """
    try:
        folder.make_writable(name)
    except OSError as error:
        raise path_error(
            f"{folder}: cannot be written ({error.strerror}); `storage` says where states and checkpoints are to be",
            error,
        ) from None
    return folder


def home(beside: Folder) -> Path:
    """Return the folder of the default store.

    Parameters
    ----------
    beside
        The feature set at work, beside which the store is in a Ray job.

    Returns
    -------
    Path
        ``mlflow_runs``, absolute; it need not be there.

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
    """Open the store, created if need be.

    Parameters
    ----------
    beside
        The feature set at work; see ``home``.

    Returns
    -------
    str
        The store's URI, for the processes that are to use it.

    Raises
    ------
    InputError
        ``MLFLOW_TRACKING_URI`` is of a kind that MLflow does not know, or has no driver for.
    RunError
        The server does not answer, or the database cannot be opened.
    """
    for name in ("mlflow", "alembic"):
        logging.getLogger(name).setLevel(logging.ERROR)
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")  # standard output is for results
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")  # of a server that is not there, seconds, not minutes
    uri = _uri(beside)
    try:
        if file := database(uri):
            prepare(file)
        client(uri).search_experiments(max_results=1)
    except (MlflowException, SQLAlchemyError, sqlite3.Error, OSError, ImportError) as error:
        unknown = isinstance(error, ImportError) or getattr(error, "error_code", None) == "INVALID_PARAMETER_VALUE"
        kind = InputError if unknown else RunError
        raise kind(without_password(f"MLflow store {uri}: cannot be opened ({first_line(error)})")) from None
    return uri


def existing_store(beside: Folder) -> str:
    """Open the store, which must be there: asking for a run must not create an empty database.

    Parameters
    ----------
    beside
        The feature set at work; see ``home``.

    Returns
    -------
    str
        The store's URI.

    Raises
    ------
    InputError
        There is no store yet, or ``open_store`` raises it.
    RunError
        The store cannot be opened.
    """
    uri = _uri(beside)
    if (file := database(uri)) and not file.exists():
        raise InputError(f"{file}: no MLflow store here yet; train first, or set MLFLOW_TRACKING_URI")
    return open_store(beside)


@contextmanager
def answering(uri: str) -> Iterator[None]:
    """Turn a store's refusal to be written, in the block, into a RunError of one line.

    Parameters
    ----------
    uri
        Of the store.
    """
    try:
        yield
    except (MlflowException, SQLAlchemyError, OSError) as error:
        raise RunError(f"MLflow store {uri}: cannot be written ({first_line(error)})") from None


class _WholeCalls:
    """MLflow's client, whose calls no interrupt cuts short: a transaction left open would keep SQLite's lock."""

    def __init__(self, client: mlflow.MlflowClient) -> None:
        self._client = client

    def __getattr__(self, name: str) -> Any:
        call = getattr(self._client, name)

        @wraps(call)
        def whole(*arguments: Any, **named: Any) -> Any:
            with signals.held():
                return call(*arguments, **named)

        return whole


@lru_cache(maxsize=4)
def client(uri: str) -> mlflow.MlflowClient:
    """Return MLflow's client of a store, which is its model registry too; a call of it is interrupted when it is done.

    Parameters
    ----------
    uri
        Of the store.
    """
    return cast("mlflow.MlflowClient", _WholeCalls(mlflow.MlflowClient(uri, registry_uri=uri)))


@contextmanager
def current(uri: str) -> Iterator[None]:
    """Make a store MLflow's current one for a call that takes no client; the environment is restored after it."""
    before = os.environ.get("MLFLOW_TRACKING_URI")
    mlflow.set_tracking_uri(uri)
    try:
        yield
    finally:
        mlflow.set_tracking_uri(None)
        if before is not None:
            os.environ["MLFLOW_TRACKING_URI"] = before


def unreachable(uri: str) -> str | None:
    """Say why this process cannot reach a store that another has opened; None if it can.

    Parameters
    ----------
    uri
        Of the store.
    """
    if (file := database(uri)) and not file.exists():
        return "its disk has no such file"
    try:
        client(uri).search_experiments(max_results=1)
    except (MlflowException, SQLAlchemyError, OSError, ImportError) as error:
        return first_line(error)
    return None


def make_experiment(uri: str, name: str) -> str:
    """Return the id of an experiment, created if need be; an SQLite store has its artifacts beside the database.

    Parameters
    ----------
    uri
        Of the store.
    name
        Of the experiment.

    Returns
    -------
    str
        MLflow's id.
    """
    found = client(uri).get_experiment_by_name(name)
    if found is not None:
        return str(found.experiment_id)
    file = database(uri)
    return str(client(uri).create_experiment(name, artifact_location=artifacts(file).as_uri() if file else None))


def search(uri: str, experiment: str, tags: Mapping[str, str], *, deleted: bool = False) -> list[Any]:
    """Search an experiment for runs.

    Parameters
    ----------
    uri
        Of the store.
    experiment
        Name of the experiment.
    tags
        Tags that the runs must have.
    deleted
        Find runs too that were deleted in MLflow's UI.

    Returns
    -------
    list of mlflow.entities.Run
        All of them; none if there is no such experiment.
    """
    found = client(uri).get_experiment_by_name(experiment)
    if found is None:
        return []
    wanted = " and ".join(f"tags.`{name}` = '{value}'" for name, value in tags.items())
    view = ViewType.ALL if deleted else ViewType.ACTIVE_ONLY
    pages = [client(uri).search_runs([found.experiment_id], wanted, view)]
    while pages[-1].token:
        pages.append(client(uri).search_runs([found.experiment_id], wanted, view, page_token=pages[-1].token))
    return [run for page in pages for run in page]


def _uri(beside: Folder) -> str:
    return os.environ.get("MLFLOW_TRACKING_URI") or address(home(beside) / "mlflow.db")
