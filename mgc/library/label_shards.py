"""One shard of a label set: its files listened to, labelled and written whole; and such a file read as a record."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from mgc.core.errors import ClipError, InputError, StoreError, first_line
from mgc.features.decoding import each_clip
from mgc.features.layout import ShardEntry, parquet_bytes, read_table, storage_failure
from mgc.features.shards import FINGERPRINT_KEY, QUARANTINE_KEY, has_fingerprint
from mgc.library.labels import SCHEMA, Settings
from mgc.library.listening import Piece, Recording, answers

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from io import FileIO

    from mgc.audio.logmel import LogMelSpec
    from mgc.core.storage import Folder
    from mgc.library.genre_model import GenreModel
    from mgc.library.listening import Answer


@dataclass(frozen=True)
class Heard:
    """A file that was decoded."""

    path: str
    seconds: float
    """Of audio."""
    warning: str | None
    pieces: tuple[Piece, ...]


@dataclass(frozen=True)
class NotHeard:
    """A file that goes to quarantine; the fields are those of ``QUARANTINE_SCHEMA``."""

    path: str
    reason: str
    detail: str
    seconds: float | None


@dataclass(frozen=True)
class LabelRecord:
    """What a shard holds."""

    entry: ShardEntry
    genres: dict[str, int]
    """Rows by genre."""
    unsure: int
    quarantined: list[dict[str, Any]]
    """Rows of ``QUARANTINE_SCHEMA``."""

    def to_json(self) -> str:
        """Encode the record as a task returns it."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> LabelRecord:
        """Decode the JSON of ``to_json``."""
        fields = json.loads(text)
        return cls(ShardEntry(**fields.pop("entry")), **fields)


_PIECE = pa.struct([("start", pa.float64()), ("seconds", pa.float64()), ("mel", pa.large_binary())])
_HEARD = pa.struct(
    [
        ("path", pa.string()),
        ("seconds", pa.float64()),
        ("warning", pa.string()),
        ("pieces", pa.list_(_PIECE)),
        ("reason", pa.string()),
        ("detail", pa.string()),
    ]
)


def packed(heard: list[Heard | NotHeard]) -> pa.Array:
    """Put what was heard of a shard's files into one value of a table, as tasks pass it on."""
    files = []
    for each in heard:
        file: dict[str, Any] = {name: value for name, value in vars(each).items() if name != "pieces"}
        if isinstance(each, Heard):
            pieces = ({"start": one.start, "seconds": one.seconds, "mel": one.mel_FT.tobytes()} for one in each.pieces)
            file["pieces"] = list(pieces)
        files.append(file)
    return pa.array([files], pa.list_(_HEARD))


def unpacked(value: pa.ListScalar, spec: LogMelSpec) -> list[Heard | NotHeard]:
    """Take what was heard out of a value that ``packed`` made.

    Parameters
    ----------
    value
        The value.
    spec
        The log-Mel recipe of the model.
    """
    found: list[Heard | NotHeard] = []
    for file in value.as_py():
        if file["reason"] is not None:
            found.append(NotHeard(file["path"], file["reason"], file["detail"], file["seconds"]))
            continue
        mels = (np.frombuffer(one["mel"], np.float16).reshape(spec.shape) for one in file["pieces"])
        pieces = (Piece(one["start"], one["seconds"], mel) for one, mel in zip(file["pieces"], mels, strict=True))
        found.append(Heard(file["path"], file["seconds"], file["warning"], tuple(pieces)))
    return found


def listen(paths: Iterable[str], root: Folder, spec: LogMelSpec, clip_timeout: float) -> list[Heard | NotHeard]:
    """Decode files, each in a child process.

    Parameters
    ----------
    paths
        Of the files, relative to ``root``.
    root
        The library.
    spec
        The log-Mel recipe of the model.
    clip_timeout
        Seconds that decoding one file may take.

    Raises
    ------
    StoreError
        The object store does not answer.
    """

    def hear(clip: dict[str, Any], file: FileIO) -> Heard:
        recording = Recording(file, spec)
        pieces = tuple(recording.pieces())
        return Heard(clip["path"], recording.seconds, "; ".join(recording.warnings) or None, pieces)

    clips = [{"path": path} for path in paths]
    return [
        NotHeard(clip["path"], str(each.reason), each.detail, each.seconds) if isinstance(each, ClipError) else each
        for clip, each in zip(clips, each_clip(clips, root, hear, clip_timeout), strict=True)
    ]


def write(
    file: str, fingerprint: str, heard: list[Heard | NotHeard], model: GenreModel, settings: Settings, out: Folder
) -> LabelRecord:
    """Label the files of a shard and write it.

    Parameters
    ----------
    file
        The shard's file, relative to the set.
    fingerprint
        The shard's, by its plan.
    heard
        Its files.
    model
        The model; its network may be on a GPU.
    settings
        Of the set.
    out
        The folder of the set.

    Raises
    ------
    OSError, StoreError
        The shard cannot be written; nothing of it is left.
    """
    good = [each for each in heard if isinstance(each, Heard)]
    bad = [asdict(each) for each in heard if isinstance(each, NotHeard)]
    said = answers(model, [each.pieces for each in good])
    rows = [_row(each, answer, settings) for each, answer in zip(good, said, strict=True)]
    return _keep(file, fingerprint, pa.Table.from_pylist(rows, schema=SCHEMA), bad, out)


def prune(out: Folder, file: str, keep: Callable[[str], bool], before: str, after: str) -> None:
    """Drop rows of files that are gone or changed from a shard, without listening to the others again.

    Parameters
    ----------
    out
        The folder of the set.
    file
        The shard's file; one that is not there, or not as planned, is left alone: it will be written anew.
    keep
        Whether the file of a path stays.
    before, after
        Fingerprint of the shard until now, and without these rows.
    """
    if not has_fingerprint(out, file, before):
        return
    try:
        table = read_table(pa.BufferReader(out.read(file)))
    except (OSError, pa.ArrowException, ValueError):
        return
    quarantined = [row for row in json.loads(table.schema.metadata[QUARANTINE_KEY]) if keep(row["path"])]
    rows = table.filter(pa.array([keep(path) for path in table["path"].to_pylist()], pa.bool_()))
    _keep(file, after, rows, quarantined, out)


def read_record(out: Folder, file: str) -> LabelRecord:
    """Read the record of a written shard.

    Parameters
    ----------
    out
        The folder of the set.
    file
        The shard's file.

    Raises
    ------
    InputError
        The file is not there, or damaged.
    RunError
        The disk or the object store cannot be read.
    """
    try:
        data = out.read(file)
        table = read_table(pa.BufferReader(data), ["genre", "unsure"])
        return _record(file, table, json.loads(table.schema.metadata[QUARANTINE_KEY]), data)
    except (OSError, StoreError, pa.ArrowException, KeyError, TypeError, ValueError) as error:
        raise storage_failure(f"{out}/{file}", error) or InputError(
            f"{out}/{file}: damaged ({first_line(error)}); delete it and run the same «mgc label» again"
        ) from None


def _row(heard: Heard, answer: Answer, settings: Settings) -> dict[str, Any]:
    best = int(answer.probabilities_G.argmax())
    confidence = float(answer.probabilities_G[best])
    windows = [
        {
            "start": each.start,
            "end": each.end,
            "genre": settings.genres[int(each.probabilities_G.argmax())],
            "confidence": float(each.probabilities_G.max()),
        }
        for each in answer.windows
    ]
    return {
        "path": heard.path,
        "seconds": heard.seconds,
        "genre": settings.genres[best],
        "confidence": confidence,
        "unsure": settings.threshold is None or confidence < settings.threshold,
        "probabilities": answer.probabilities_G.tolist(),
        "windows": windows,
        "warning": heard.warning,
    }


def _keep(file: str, fingerprint: str, rows: pa.Table, bad: list[dict[str, Any]], out: Folder) -> LabelRecord:
    metadata = {FINGERPRINT_KEY: fingerprint.encode(), QUARANTINE_KEY: json.dumps(bad).encode()}
    data = parquet_bytes(rows.replace_schema_metadata(metadata))
    out.write(file, data)
    return _record(file, rows, bad, data)


def _record(file: str, rows: pa.Table, bad: list[dict[str, Any]], data: bytes | pa.Buffer) -> LabelRecord:
    entry = ShardEntry(file, "", len(rows), len(data), hashlib.sha256(data).hexdigest())
    genres = Counter(rows["genre"].to_pylist())
    return LabelRecord(entry, dict(genres), sum(rows["unsure"].to_pylist()), bad)
