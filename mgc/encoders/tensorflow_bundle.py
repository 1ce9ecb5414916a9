"""Read the tensors of a TensorFlow checkpoint (``*.index`` and ``*.data-00000-of-00001``) without TensorFlow.

The index is a table of LevelDB, of which each block has a checksum; its values are protocol buffers that say where a
tensor lies in the data file, and its own checksum. The formats are those of ``tensorflow/core/lib/io/format.cc``,
``tensorflow/core/protobuf/tensor_bundle.proto`` and ``tensorflow/core/lib/hash/crc32c.h``. Nothing in a checkpoint is
run, as a pickle would be.
"""

from __future__ import annotations

import math
from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np

from mgc.core.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

MAGIC = 0xDB4775248B80FB57
"""The last 8 bytes of a table."""
FOOTER = 48
"""Bytes of a table's footer."""
DTYPES = {
    1: "<f4", 2: "<f8", 3: "<i4", 4: "|u1", 5: "<i2", 6: "|i1", 9: "<i8", 10: "|b1", 17: "<u2", 19: "<f2",
    22: "<u4", 23: "<u8",
}  # fmt: skip
"""TensorFlow's numbers of the types that numpy has too (``tensorflow/core/framework/types.proto``)."""
LANE = 128
"""Bytes of a stretch whose checksum is computed beside those of all others."""


def read_bundle(index: bytes, data: bytes, source: str) -> dict[str, NDArray[Any]]:
    """Read all tensors of a checkpoint, and check each against its checksum.

    Parameters
    ----------
    index
        Content of the ``.index`` file.
    data
        Content of the only ``.data-00000-of-00001`` file.
    source
        Name of the checkpoint, for messages.

    Returns
    -------
    dict
        Arrays by the names of TensorFlow's variables.

    Raises
    ------
    InputError
        The checkpoint is damaged or cut, is compressed, has several data files, or holds a tensor of text or of a type
        that numpy has not.
    """
    try:
        entries = dict(_table(index))
        header = _message(entries.pop(b""))
        if header.get(1, 0) != 1 or header.get(2, 0) != 0:
            raise InputError("has several data files, or is big-endian")
        return {name.decode(): _tensor(_message(entry), data, name.decode()) for name, entry in entries.items()}
    except InputError as error:
        raise InputError(f"{source}: {error}") from None
    except (IndexError, KeyError, TypeError, ValueError) as error:  # what is not as the format says
        raise InputError(f"{source}: is no checkpoint of TensorFlow's, or damaged") from error


def crc32c(data: bytes) -> int:
    """Compute the CRC-32C (Castagnoli) of some bytes: some 20 ms for 3 MB.

    A CRC is linear: the checksums of stretches of ``LANE`` bytes are computed side by side, a byte of each at a time,
    and put together by what ``LANE`` zero bytes do to a checksum.

    Parameters
    ----------
    data
        Any bytes.

    Examples
    --------
    >>> hex(crc32c(b"123456789"))
    '0xe3069283'
    """
    steps, skips = _crc_tables()
    head = len(data) % LANE
    crc = 0xFFFFFFFF
    for byte in data[:head]:
        crc = steps[(crc ^ byte) & 0xFF] ^ crc >> 8
    for lane in _advance(np.frombuffer(data, np.uint8, offset=head).reshape(-1, LANE)).tolist():
        crc = skips[0][crc & 0xFF] ^ skips[1][crc >> 8 & 0xFF] ^ skips[2][crc >> 16 & 0xFF] ^ skips[3][crc >> 24] ^ lane
    return crc ^ 0xFFFFFFFF


@cache
def _crc_table() -> NDArray[np.uint32]:
    """What each value of a byte does to a checksum."""
    table = np.arange(256, dtype=np.uint32)
    for _ in range(8):
        table = np.where(table & 1, np.uint32(0x82F63B78), np.uint32(0)) ^ table >> 1
    return table


@cache
def _crc_tables() -> tuple[list[int], list[list[int]]]:
    """The table of a byte, and those of ``LANE`` zero bytes: one for each byte of the checksum."""
    zeros = np.zeros((256, LANE), np.uint8)
    skips = [_advance(zeros, np.arange(256, dtype=np.uint32) << np.uint32(8 * byte)).tolist() for byte in range(4)]
    return _crc_table().tolist(), skips


def _advance(bytes_NL: NDArray[np.uint8], crc_N: NDArray[np.uint32] | int = 0) -> NDArray[np.uint32]:
    """Each row's checksum without the inversions at start and end, from the given ones."""
    table = _crc_table()
    crc = np.zeros(len(bytes_NL), np.uint32) + np.uint32(crc_N)
    for byte in np.ascontiguousarray(bytes_NL.T):
        crc = table[(crc ^ byte) & 0xFF] ^ crc >> 8
    return crc


def _check(data: bytes, masked: int, what: str) -> None:
    """Compare a checksum as TensorFlow keeps it: rotated, and a constant added, for it may lie in what it sums."""
    rotated = masked - 0xA282EAD8 & 0xFFFFFFFF
    if crc32c(data) != (rotated >> 17 | rotated << 15 & 0xFFFFFFFF):
        raise InputError(f"is damaged: the checksum of {what} is wrong")


def _table(table: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Keys and values of a LevelDB table, in order."""
    if len(table) < FOOTER or int.from_bytes(table[-8:], "little") != MAGIC:
        raise InputError("is no index of a TensorFlow checkpoint, or cut off")
    footer = table[-FOOTER:]
    _, at = _varint(footer, 0)  # the block of statistics: offset and size
    _, at = _varint(footer, at)
    for _, handle in _block(table, footer[at:]):
        yield from _block(table, handle)


def _block(table: bytes, handle: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Keys and values of the block that a handle points to. A key shares its beginning with the one before."""
    start, at = _varint(handle, 0)
    size, _ = _varint(handle, at)
    stop = start + size
    if stop + 5 > len(table):
        raise InputError("is cut off")
    _check(table[start : stop + 1], int.from_bytes(table[stop + 1 : stop + 5], "little"), f"its block at byte {start}")
    if table[stop]:
        raise InputError("its index is compressed, which is not supported")
    block = table[start:stop]
    end = len(block) - 4 * (1 + int.from_bytes(block[-4:], "little"))  # behind the entries: where whole keys are
    key, at = b"", 0
    while at < end:
        shared, at = _varint(block, at)
        added, at = _varint(block, at)
        length, at = _varint(block, at)
        key = key[:shared] + block[at : at + added]
        at += added + length
        yield key, block[at - length : at]


def _tensor(entry: dict[int, Any], data: bytes, name: str) -> NDArray[Any]:
    """The array that a BundleEntryProto describes."""
    if 7 in entry or entry.get(1) not in DTYPES:
        raise InputError(f"its tensor {name} is in slices or of a type that is not supported")
    dtype = np.dtype(DTYPES[entry[1]])
    shape = [_message(dim).get(1, 0) for dim in _message(entry.get(2, b""), repeated=2).get(2, [])]
    offset, size = entry.get(4, 0), entry.get(5, 0)
    content = data[offset : offset + size]
    if len(content) != size:
        raise InputError(f"its data ends before its tensor {name} does")
    if size != math.prod(shape) * dtype.itemsize:
        raise InputError(f"its tensor {name} has {size} bytes, which is not shape {shape} of {dtype}")
    _check(content, entry[6], f"its tensor {name}")
    return np.frombuffer(content, dtype).reshape(shape)


def _message(data: bytes, repeated: int = 0) -> dict[int, Any]:
    """Fields of a protocol buffer by number: integers, or the bytes of what is nested; lists of the repeated one."""
    fields: dict[int, Any] = {}
    at = 0
    while at < len(data):
        tag, at = _varint(data, at)
        number, kind = tag >> 3, tag & 7
        value: int | bytes
        if kind == 0:
            value, at = _varint(data, at)
        elif kind == 2:
            size, at = _varint(data, at)
            value, at = data[at : at + size], at + size
        elif kind in (1, 5):
            size = 8 if kind == 1 else 4
            value, at = int.from_bytes(data[at : at + size], "little"), at + size
        else:
            raise ValueError(f"no wire type: {kind}")
        if number == repeated:
            fields.setdefault(number, []).append(value)
        else:
            fields[number] = value
    return fields


def _varint(data: bytes, at: int) -> tuple[int, int]:
    """An integer of seven bits a byte, the lowest first; and where the next thing begins."""
    value = shift = 0
    while True:
        byte = data[at]
        value |= (byte & 0x7F) << shift
        at, shift = at + 1, shift + 7
        if byte < 0x80:
            return value, at
