"""How much audio a WAV, AIFF, AU or Ogg file announces, against what is there of it.

libsndfile takes what is left of a file that was cut off, and counts only that. What the file's own header says is read
here: the length of the chunk of samples, or in an Ogg file the mark that its last page bears.
"""

from __future__ import annotations

import math
import os
from typing import BinaryIO, Literal, NamedTuple, TypeAlias

STREAMED = 0x7FFF0000
"""From here on a length of 32 bits is what a program writes into a pipe, where it cannot come back to the header."""
OGG_PAGE = 65_307
"""Bytes of an Ogg page, at most."""

Order: TypeAlias = Literal["little", "big"]


class _Layout(NamedTuple):
    """How a format made of chunks is read."""

    first: int
    """Where the first chunk begins."""
    name: int
    """Bytes of a chunk's name."""
    length: int
    """Bytes of its length."""
    order: Order
    counts_header: bool = False
    """Whether the length counts the chunk's name and length too."""
    align: int = 2
    """A chunk begins at a multiple of this."""


_LAYOUTS = {
    b"RIFF": _Layout(12, 4, 4, "little"),
    b"RF64": _Layout(12, 4, 4, "little"),
    b"RIFX": _Layout(12, 4, 4, "big"),
    b"FORM": _Layout(12, 4, 4, "big"),
    b"riff": _Layout(40, 16, 8, "little", counts_header=True, align=8),  # W64
}
_AU: dict[bytes, Order] = {b".snd": "big", b"dns.": "little"}


def announced_share(file: BinaryIO) -> float:
    """How many times the audio that is there the file announces.

    Parameters
    ----------
    file
        Open for reading in binary mode, and seekable; its position afterwards is undefined.

    Returns
    -------
    float
        1 for a file that is whole, does not say, or is of another format; 2 for half a WAV, AIFF or AU file; infinity
        for an Ogg file whose last page is missing, which does not say how much is.

    References
    ----------
    WAV and RF64: EBU Tech 3306. AIFF: Apple, *Audio Interchange File Format* 1.3. AU: the Sun/NeXT header of 24 bytes.
    W64: Sony's RIFF with GUIDs for names. Ogg: RFC 3533, §6.
    """
    size = file.seek(0, os.SEEK_END)
    magic = _read(file, 0, 4)
    if magic == b"OggS":
        return 1.0 if _ends(file, size) else math.inf
    start, length = _samples(file, magic, size)
    return length / (size - start) if start < size < start + length else 1.0


def _samples(file: BinaryIO, magic: bytes, size: int) -> tuple[int, int]:
    """Where the samples begin and how many bytes they take; 0 bytes where that is not known."""
    if magic in _AU:
        start, length = (int.from_bytes(_read(file, at, 4), _AU[magic]) for at in (4, 8))
        return start, length if length < STREAMED else 0
    layout = _LAYOUTS.get(magic)
    position, wide = layout.first if layout else size, 0
    while layout and position < size:
        head = layout.name + layout.length
        header = _read(file, position, head)
        name = header[:4]
        length = int.from_bytes(header[layout.name :], layout.order) - (head if layout.counts_header else 0)
        if name in (b"data", b"SSND"):
            known = length < STREAMED or layout.length == 8
            return position + head, length if known else wide
        if name == b"ds64":  # holds the lengths that do not fit into 32 bits: of all, of the samples
            wide = int.from_bytes(_read(file, position + head + 8, 8), "little")
        position += head + max(length, 0)
        position += -position % layout.align
    return 0, 0


def _ends(file: BinaryIO, size: int) -> bool:
    """Whether the last page of an Ogg file is whole and bears the mark of the last."""
    tail = _read(file, max(0, size - 2 * OGG_PAGE), 2 * OGG_PAGE)
    page = tail[tail.rfind(b"OggS") :]
    segments = page[26] if len(page) > 26 else 0
    body = 27 + segments + sum(page[27 : 27 + segments])
    return 27 < body <= len(page) and bool(page[5] & 4)


def _read(file: BinaryIO, position: int, count: int) -> bytes:
    file.seek(position)
    return file.read(count)
