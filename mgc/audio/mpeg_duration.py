"""The duration that an MPEG audio file promises, by its headers and its size, without decoding it.

libsndfile (libmpg123) may end early on a damaged file and report no error. What it decoded is therefore compared with
what the file promises: the number of frames that its encoder wrote down, or the frames that are found in it.

An MPEG audio stream is a chain of frames; each begins with 4 bytes that give its length (ISO 11172-3, §2.4.1.3 and
§2.4.2.3; ISO 13818-3 for half the sampling rates; a quarter, «MPEG 2.5», is Fraunhofer's extension). By bits: 11 sync,
2 version, 2 layer, 1 no CRC; 4 bit rate, 2 sampling rate, 1 padding, 1 private; the last byte does not matter here.
The first frame may hold the encoder's count of the others in place of audio: in a Xing header, which LAME calls Info
where the bit rate is constant, or in Fraunhofer's VBRI header.
"""

from __future__ import annotations

import os
import re
from functools import cache
from typing import BinaryIO, NamedTuple

CHAIN = 4
"""Headers, each where the one before says, that make a stream: by chance one byte in 5,500 begins a header, one in
10¹⁹ a chain of four."""
SEARCH = 1 << 20
"""Bytes in which the next chain is searched for, at most: 26 s of 320 kb/s."""
RESYNC = 1 << 16
"""Bytes after the leading tags in which libmpg123 looks for the first frame; beyond them it gives up."""
TRIES = 10_000
"""False headers in a file after which the search ends; 1 MiB of random bytes has some 250."""
BLOCK, AHEAD = 1 << 15, 1 << 14
"""Bytes searched at once, and bytes read beyond them: a chain is at most 8.7 kB (Layer II, 160 kb/s, 8 kHz)."""

_HEADER = re.compile(rb"\xff[\xe2-\xe7\xf2-\xf7\xfa-\xff][\x10-\xeb]")
_ID3V2 = re.compile(rb"ID3[^\xff]{2}(.)([\x00-\x7f]{4})", re.DOTALL)
_KBPS = {
    (True, 1): (32, 64, 96, 128, 160, 192, 224, 256, 288, 320, 352, 384, 416, 448),
    (True, 2): (32, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320, 384),
    (True, 3): (32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320),
    (False, 1): (32, 48, 56, 64, 80, 96, 112, 128, 144, 160, 176, 192, 224, 256),
    (False, 2): (8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160),
    (False, 3): (8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160),
}
"""(MPEG 1?, layer) → kb/s of bit rate indices 1 to 14; 0 is free format, 15 is forbidden."""


class _Frame(NamedTuple):
    """What a header says."""

    kind: tuple[int, int]
    """The bits that all headers of a stream share: version and layer, sampling rate."""
    size: int
    """Bytes, header included."""
    seconds: float
    rate: int
    """Samples per second."""


def promised_seconds(file: BinaryIO, enough: float) -> float | None:
    """Duration that a file's headers and size promise.

    It is the larger of two: what a Xing, Info or VBRI header counts, and what a walk from header to header finds.
    After damage the walk goes on at the next chain of headers, and the bytes skipped count as frames of mean size.
    Bytes before the first frame, after the last and in ID3v2 tags count nothing.

    Parameters
    ----------
    file
        Open for reading in binary mode, and seekable; its position afterwards is undefined.
    enough
        Seconds after which to stop: a result of this or more is not the duration of the whole file.

    Returns
    -------
    float or None
        Seconds, with the encoder's delay and padding (1,100 to 2,300 samples, which decoders drop).
        None for what is not recognised as MPEG audio: no ``CHAIN`` headers in a row in the ``SEARCH`` bytes after the
        leading tags. Free format (bit rate index 0) and streams of fewer frames are not recognised.

    Raises
    ------
    OSError
        The file cannot be read. No content raises.

    Notes
    -----
    A truncated file promises the whole where its encoder wrote a count, else what is left. The count is not checked.
    The walk ends where version, layer or sampling rate change, before a gap longer than ``SEARCH``, and after
    ``TRIES`` false headers, so that of any file no more than about ``enough`` × 56 kB + ``SEARCH`` are read.

    References
    ----------
    ISO/IEC 11172-3 and 13818-3. Xing and Info: http://gabriel.mp3-tech.org/mp3infotag.html. VBRI and MPEG 2.5:
    https://www.codeproject.com/Articles/8295/MPEG-Audio-Frame-Header. ID3v2: https://id3.org/id3v2.4.0-structure.
    """
    stream = _Stream(file)
    found = stream.find(stream.after_tags(0))
    if found is None:
        return None
    position, first = found
    counted = _frame_count(stream.read(position, 64))
    if counted is not None:
        position += first.size  # this frame is no audio
    promise, walked = (counted or 0) * first.seconds, 0.0
    frames = frame_bytes = lost_bytes = 0
    while max(promise, walked) < enough:
        frame = stream.frame(position)
        if frame is None or frame.kind != first.kind:
            after = stream.after_tags(position)
            found = stream.find(after, first.kind)
            if found is None:
                break
            position, frame = found
            lost_bytes += position - after
        position += frame.size
        if position > stream.size:
            break
        frames += 1
        frame_bytes += frame.size
        walked = frames * first.seconds * (1 + lost_bytes / frame_bytes)
    return max(promise, walked)


def begins(file: BinaryIO) -> bool:
    """Whether a chain of MPEG frames begins near the start of a file, behind its tags and up to ``RESYNC`` other bytes.

    Parameters
    ----------
    file
        As ``promised_seconds`` takes it.
    """
    stream = _Stream(file)
    start = stream.after_tags(0)
    found = stream.find(start)
    return found is not None and found[0] - start < RESYNC


def change_of_format(file: BinaryIO, enough: float) -> str | None:
    """Where a stream goes on at another sample rate or with other channels: ``44100 Hz stereo, then 48000 Hz mono``.

    Parameters
    ----------
    file, enough
        As ``promised_seconds`` takes them.

    Returns
    -------
    str or None
        Both formats, for a person; None where the first one goes on.
    """
    stream = _Stream(file)
    found = stream.find(stream.after_tags(0))
    first = other = None
    seconds, row = 0.0, 0  # of frames of the other format; a single one is damage
    while found is not None and seconds < enough:
        position, frame = found
        this = (frame.rate, "mono" if stream.read(position, 4)[3:] >= b"\xc0" else "stereo")
        first = first or this
        row = 0 if this == first else row + 1 if this == other else 1
        other = this
        if row == CHAIN:
            return f"{first[0]} Hz {first[1]}, then {this[0]} Hz {this[1]}"
        seconds += frame.seconds
        position += frame.size
        following = stream.frame(position)
        found = stream.find(stream.after_tags(position)) if following is None else (position, following)
    return None


class _Stream:
    """A file by offset, read block by block, with a limit on false headers."""

    def __init__(self, file: BinaryIO) -> None:
        self.size = file.seek(0, os.SEEK_END)
        self._file = file
        self._block, self._start = b"", 0
        self._tries = TRIES

    def read(self, position: int, count: int) -> bytes:
        """Up to ``count`` (at most ``BLOCK + AHEAD``) bytes; fewer at the file's end."""
        end = min(position + count, self.size)
        if not self._start <= position <= end <= self._start + len(self._block):
            self._file.seek(position)
            self._block, self._start = self._file.read(BLOCK + AHEAD), position
        return self._block[position - self._start : end - self._start]

    def frame(self, position: int) -> _Frame | None:
        """The frame whose header is at this very place."""
        header = self.read(position, 3)
        return _parse(header[1], header[2]) if len(header) == 3 and header[0] == 0xFF else None

    def find(self, position: int, kind: tuple[int, int] | None = None) -> tuple[int, _Frame] | None:
        """The next place where ``CHAIN`` headers of one kind (of this kind) lead from one to the next."""
        for start in range(position, min(position + SEARCH, self.size), BLOCK):
            for match in _HEADER.finditer(self.read(start, BLOCK + 2)):
                frame = self._chained(start + match.start())
                if frame is not None and kind in (None, frame.kind):
                    return start + match.start(), frame
                self._tries -= 1
                if self._tries < 0:
                    return None
        return None

    def _chained(self, position: int) -> _Frame | None:
        first = frame = self.frame(position)
        for _ in range(CHAIN - 1):
            if first is None or frame is None:
                return None
            position += frame.size
            frame = self.frame(position)
            if frame is None or frame.kind != first.kind:
                return None
        return first

    def after_tags(self, position: int) -> int:
        """The end of the ID3v2 tags at this place; a tag that claims more than the file has is not believed."""
        for _ in range(100):
            tag = _ID3V2.match(self.read(position, 10))
            if tag is None:
                break
            size = 0
            for byte in tag[2]:
                size = size << 7 | byte
            end = position + 10 + size + (10 if tag[1][0] & 0x10 else 0)  # the flag of a footer, which size leaves out
            if end > self.size:
                break
            position = end
        return position


@cache
def _parse(second: int, third: int) -> _Frame | None:
    """What bytes 2 and 3 of a header say; None where they are reserved, forbidden or of free format."""
    version, layer = second >> 3 & 3, 4 - (second >> 1 & 3)
    kbps_index, rate_index, padding = third >> 4, third >> 2 & 3, third >> 1 & 1
    if second < 0xE0 or version == 1 or layer == 4 or kbps_index in (0, 15) or rate_index == 3:
        return None
    rate = (44_100, 48_000, 32_000)[rate_index] // {3: 1, 2: 2, 0: 4}[version]
    samples = 384 if layer == 1 else 576 if layer == 3 and version != 3 else 1152
    slot = 4 if layer == 1 else 1
    size = slot * (samples * 1000 * _KBPS[version == 3, layer][kbps_index - 1] // (8 * slot * rate) + padding)
    return _Frame((second & 0x1E, rate_index), size, samples / rate, rate)


def _frame_count(first: bytes) -> int | None:
    """The count in a Xing, Info or VBRI header (0 if it is left out); None where the first frame is audio."""
    for magic, count_at in ((b"Xing", 8), (b"Info", 8), (b"VBRI", 14)):
        at = first.find(magic, 4, 4 + 32 + 2 + 4)  # it follows 9 to 32 bytes of side information, and 2 of CRC if any
        if at >= 0:
            has_count = magic == b"VBRI" or int.from_bytes(first[at + 4 : at + 8], "big") & 1
            return int.from_bytes(first[at + count_at : at + count_at + 4], "big") if has_count else 0
    return None
