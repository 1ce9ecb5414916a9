"""Seeded damage to files: bits, numbers, cuts, splices, MPEG headers, tags; hostile cells of tables."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

NUMBERS = (0, 1, 0x7F, 0x80, 0xFF, 0x7FFF, 0x8000, 0xFFFF, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF, 1 << 62, (1 << 64) - 1)
CELLS = (
    *("", " ", "\0", '"', '""', ",", "\n", "\r", "\ufeff", "\u202e", "\x1b[2J", "e\u0301", "é", "İ", "\U0001f3b5"),
    *("nan", "NaN", "inf", "-1", "0", "1e400", "9223372036854775808", "9" * 5000, "1_0", "٣", "0x10", "True"),
    *("../../../etc/passwd", "/etc/passwd", "~/x", "C:\\x", "//x", "a/../../b", ".", "s3://b/k", "x" * 300),
    *("x" * 200_000, "<script>alert(1)</script>", "=1+1", "{{7*7}}", "training", "Training", "test"),
)
VALUES: tuple[Any, ...] = (
    *(None, True, 0, -1, 1, 2**31, 2**63 - 1, 0.5, -1e308, float("nan"), float("inf"), "", "x", "training", "../../x"),
    *(
        "x" * 100_000,
        [],
        [1],
        {},
        {"a": [None]},
        "shards/../../../etc/passwd",
        "shards/training-00000-of-00001.parquet",
    ),
)


Damage = Callable[[bytearray, np.random.Generator, Sequence[bytes]], bytes | bytearray]


def _place(data: bytearray, random: np.random.Generator) -> int:
    """A place in the data; every second time within the header."""
    return int(random.integers(min(len(data), 256) if random.random() < 0.5 else len(data)) if data else 0)


def flip(data: bytearray, random: np.random.Generator, _: Sequence[bytes]) -> bytearray:
    """Flip single bits."""
    for _bit in range(int(2 ** random.uniform(0, 10)) if data else 0):
        data[_place(data, random)] ^= 1 << int(random.integers(8))
    return data


def number(data: bytearray, random: np.random.Generator, _: Sequence[bytes]) -> bytearray:
    """Write the numbers that programs stumble over."""
    for _edit in range(int(random.integers(1, 5))):
        size, at = int(random.choice([1, 2, 4, 8])), _place(data, random)
        value = NUMBERS[random.integers(len(NUMBERS))] % (1 << 8 * size)
        data[at : at + size] = value.to_bytes(size, "little" if random.random() < 0.5 else "big")
    return data


def cut(data: bytearray, random: np.random.Generator, _: Sequence[bytes]) -> bytearray:
    """Leave out the beginning, the middle or the end."""
    first, last = sorted((_place(data, random), _place(data, random)))
    return (data[first:], data[:first] + data[last:], data[:last])[random.integers(3)]


def splice(data: bytearray, random: np.random.Generator, others: Sequence[bytes]) -> bytearray:
    """Go on with another file."""
    other = others[random.integers(len(others))]
    return data[: _place(data, random)] + other[_place(bytearray(other), random) :]


def repeat(data: bytearray, random: np.random.Generator, _: Sequence[bytes]) -> bytearray:
    """Say a part again and again."""
    at = _place(data, random)
    return data[:at] + data[at : at + int(random.integers(1, 5000))] * int(random.integers(2, 40)) + data[at:]


def fill(data: bytearray, random: np.random.Generator, _: Sequence[bytes]) -> bytearray:
    """Overwrite a part by one byte, or by noise."""
    at, size = _place(data, random), int(2 ** random.uniform(2, 16))
    size = len(data[at : at + size])
    data[at : at + size] = (bytes(size), b"\xff" * size, random.bytes(size))[random.integers(3)]
    return data


def frames(data: bytearray, random: np.random.Generator, _: Sequence[bytes]) -> bytearray:
    """Change what headers of MPEG frames say: layer, bit rate, sample rate, channels."""
    starts = [at for at in range(len(data) - 4) if data[at] == 0xFF and data[at + 1] >= 0xE0][:2000]
    for at in random.choice(starts, min(len(starts), int(random.integers(1, 20)))) if starts else []:
        data[at + int(random.integers(1, 4))] = int(random.integers(256))
    return data


def tag(data: bytearray, random: np.random.Generator, _: Sequence[bytes]) -> bytes:
    """Put tags before and after, which may lie about their size."""
    size = int(2 ** random.uniform(0, 18))
    claimed = size if random.random() < 0.5 else int(random.integers(1 << 28))
    digits = bytes(claimed >> shift & 0x7F for shift in (21, 14, 7, 0))
    head = b"ID3" + bytes([random.integers(2, 5), 0, random.choice([0, 0x10, 0x80, 0xFF])]) + digits
    body = bytes(size) if random.random() < 0.5 else random.bytes(size)
    return head + body + data + (b"", b"TAG" + random.bytes(125), b"APETAGEX" + random.bytes(24))[random.integers(3)]


def counted(data: bytearray, random: np.random.Generator, _: Sequence[bytes]) -> bytearray:
    """Let an MP3's Xing, Info or VBRI header promise anything."""
    at = max(data.find(magic) for magic in (b"Xing", b"Info", b"VBRI"))
    if at >= 0:
        data[at + 4 : at + 12] = random.bytes(8) if random.random() < 0.5 else b"\xff" * 8
    return data


OF_CLIPS: tuple[Damage, ...] = (flip, number, cut, splice, repeat, fill, frames, tag, counted)
OF_TEXT: tuple[Damage, ...] = (flip, cut, splice, repeat, fill)
OF_PARQUET: tuple[Damage, ...] = (flip, number, cut, splice, fill)


def damaged(files: Sequence[bytes], damages: Sequence[Damage], seed: int, number: int) -> tuple[bytes, str]:
    """The file of a number, and how it was made; the same each time."""
    random = np.random.default_rng([seed, number])
    data, names = bytearray(files[random.integers(len(files))]), []
    for _ in range(int(random.integers(1, 4))):
        damage = damages[random.integers(len(damages))]
        data = bytearray(damage(data, random, files))
        names.append(damage.__name__)
    return bytes(data), "+".join(names)


# Files that are whole, and say what they should not


def hostile_json(data: bytes, random: np.random.Generator) -> bytes:
    """Replace, remove or add one value of a JSON file; ValueError where it holds none."""
    tree = json.loads(data)
    places: list[tuple[Any, Any]] = []
    waiting = [tree]
    while waiting:
        node = waiting.pop()
        keys = node if isinstance(node, dict) else range(len(node)) if isinstance(node, list) else ()
        places += [(node, key) for key in keys]
        waiting += [node[key] for key in keys]
    if not places:
        raise ValueError("no values")
    node, key = places[random.integers(len(places))]
    change = random.integers(4)
    if change == 0:
        del node[key]
    elif change == 1 and isinstance(node, dict):
        node[CELLS[random.integers(len(CELLS))][:50]] = 0
    else:
        node[key] = VALUES[random.integers(len(VALUES))]
    return json.dumps(tree).encode()


def hostile_parquet(data: bytes, random: np.random.Generator) -> bytes:
    """Change one column, the rows or the metadata of a Parquet file."""
    table = pq.read_table(pa.BufferReader(data))
    at = int(random.integers(table.num_columns))
    name, count = table.column_names[at], len(table)
    change = random.integers(7)
    if change == 0:
        table = table.drop_columns([name])
    elif change == 1:
        table = table.set_column(at, CELLS[random.integers(len(CELLS))][:50], table[name])
    elif change == 2:
        table = table.set_column(at, name, pa.nulls(count, table[name].type))
    elif change == 3:
        value = VALUES[random.integers(len(VALUES))]
        table = table.set_column(at, name, pa.array([json.dumps(value) if value == {} else value] * count))
    elif change == 4:
        table = table.take(random.integers(count, size=int(random.integers(0, 2 * count)))) if count else table
    elif change == 5:
        text = [CELLS[random.integers(len(CELLS))] for _ in range(count)]
        table = table.set_column(at, name, pa.array(text, pa.string()))
    else:
        metadata = dict(table.schema.metadata or {})
        key = list(metadata)[random.integers(len(metadata))] if metadata else b"mgc.format"
        value = metadata.get(key, b"{}")
        try:
            value = hostile_json(value, random)
        except ValueError:
            value = CELLS[random.integers(len(CELLS))].encode()
        table = table.replace_schema_metadata(metadata | {key: value})
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink)
    return sink.getvalue().to_pybytes()
