"""The SQLite file of a store: its address, how it is made, and its artifacts beside it, wherever the folder is moved.

MLflow knows artifacts by absolute addresses. A store whose folder was moved or copied is known by those of mgc's own
experiments, and all addresses are set right when it is opened.
"""

from __future__ import annotations

import os
import sqlite3
import tempfile
from contextlib import closing, suppress
from pathlib import Path
from urllib.parse import unquote, urlsplit

from sqlalchemy import URL, make_url

ARTIFACTS = "artifacts"
"""The folder of artifacts, beside the database."""
SECONDS = 30.0
"""How long to wait for another process that writes."""
_ADDRESSES = (
    ("experiments", "artifact_location"),
    ("runs", "artifact_uri"),
    ("logged_models", "artifact_location"),
    ("model_versions", "source"),
    ("model_versions", "storage_location"),
)
"""Columns of MLflow's tables that hold addresses of artifacts."""


def address(file: Path) -> str:
    """Return the URI of a database by its absolute path, escaped where the path has ``%``, ``?`` or ``#``."""
    plain = f"sqlite:///{file}"
    if make_url(plain).database == str(file):
        return plain
    # the other name of the same driver: of the short one MLflow takes the escaped path for a path, and makes its folder
    return URL.create("sqlite+pysqlite", database=str(file)).render_as_string()


def database(uri: str) -> Path | None:
    """Return the file of an SQLite store, absolute; None of a server, and of what only SQLite understands."""
    path = (make_url(uri).database or "") if uri.startswith("sqlite") else ""
    return None if path in ("", ":memory:") or path.startswith("file:") else Path(path).absolute()


def artifacts(file: Path) -> Path:
    """Return the folder of the artifacts of a database."""
    return file.parent / ARTIFACTS


def prepare(file: Path) -> None:
    """Make a database if there is none, and the folder of its artifacts; set the addresses of a moved one right.

    Parameters
    ----------
    file
        The database.

    Raises
    ------
    OSError, sqlite3.Error
        It can be neither made nor read, or was moved and cannot be written.
    """
    file.parent.mkdir(parents=True, exist_ok=True)
    if not file.exists():
        _make(file)
    with closing(sqlite3.connect(file, timeout=SECONDS, isolation_level=None)) as connection:
        for old in _recorded(connection, file):
            _rebase(connection, old, artifacts(file).as_uri())


def _make(file: Path) -> None:
    """Make MLflow's database aside, and then link it to its place.

    Its migrations take seconds, and a database of which a killed process made some is of no use to anybody.
    """
    from mgc.tracking.store import client

    with tempfile.TemporaryDirectory(dir=file.parent, prefix=".new-") as folder:
        fresh = Path(folder, file.name)
        client(address(fresh)).search_experiments(max_results=1)
        artifacts(file).mkdir(exist_ok=True)
        try:
            os.link(fresh, file)
        except FileExistsError:
            pass  # another process was quicker
        except OSError:  # a file system without links
            os.replace(fresh, file)


def _recorded(connection: sqlite3.Connection, file: Path) -> list[str]:
    """Where mgc's experiments say that the artifacts are, but for where they are."""
    found = "SELECT DISTINCT artifact_location FROM experiments WHERE name = 'mgc' OR name LIKE 'mgc-%'"
    if not connection.execute("SELECT 1 FROM sqlite_master WHERE name = 'experiments'").fetchone():
        return []
    here = artifacts(file)
    return [
        old
        for (old,) in connection.execute(found).fetchall()
        if str(old).startswith("file:") and old.endswith(f"/{ARTIFACTS}") and _moved(_path(old), here)
    ]


def _moved(there: Path, here: Path) -> bool:
    """Whether the artifacts are here, although they are said to be there, which is no other way to here."""
    if there == here or not (here.is_dir() or not there.exists()):
        return False
    with suppress(OSError):
        return not there.samefile(here)
    return True


def _rebase(connection: sqlite3.Connection, old: str, new: str) -> None:
    """Set all addresses of artifacts right, and paths in the project that tags hold, in one transaction."""

    def move(table: str, column: str, old: str | Path, new: str | Path, only: str = "TRUE") -> None:
        connection.execute(
            f"UPDATE {table} SET {column} = :new || substr({column}, length(:old) + 1) "  # noqa: S608 (our own names)
            f"WHERE {only} AND ({column} = :old OR substr({column}, 1, length(:old) + 1) = :old || '/')",
            {"old": str(old), "new": str(new)},
        )

    there, here = _path(old).parent, _path(new).parent
    connection.create_function("is_here", 1, lambda path: (here.parent / os.path.relpath(path, there.parent)).exists())
    connection.execute("BEGIN IMMEDIATE")
    for table, column in _ADDRESSES:
        move(table, column, old, new)
    move("tags", "value", there, here, "key = 'mgc.storage'")
    move("tags", "value", there.parent, here.parent, "key = 'mgc.features.path' AND is_here(value)")
    connection.execute("COMMIT")


def _path(uri: str) -> Path:
    return Path(unquote(urlsplit(uri).path))
