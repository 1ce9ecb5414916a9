"""What it costs that a shard is on the disk before it counts: writes with and without fsync, in turn.

    python benchmarks/durable_write.py FOLDER [--shards 20] [--megabytes 21]

FOLDER is on the disk in question. The reference is the same write, by a temporary name and a rename, without fsync.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from pathlib import Path

from mgc.core import atomic_files
from mgc.core.storage import Folder

CLIP_SECONDS = 0.063
"""CPU-seconds of a clip on the machine of docs/benchmarks.md."""
CLIPS = 64
"""Clips in a shard."""


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--shards", type=int, default=20)
    parser.add_argument("--megabytes", type=int, default=21)
    options = parser.parse_args()
    data, sync = os.urandom(options.megabytes << 20), atomic_files._sync
    seconds: dict[bool, list[float]] = {True: [], False: []}
    with tempfile.TemporaryDirectory(dir=options.folder) as scratch:
        folder = Folder.at(scratch)
        for number in range(options.shards):
            for durable in (True, False) if number % 2 else (False, True):
                atomic_files._sync = sync if durable else lambda _: None
                os.sync()  # what the write before has left to do is not this one's
                start = time.monotonic()
                folder.write(f"{number}-{durable}", data)
                seconds[durable].append(time.monotonic() - start)
    with_it, without = (1e3 * statistics.median(seconds[durable]) for durable in (True, False))
    share = (with_it - without) / (1e3 * CLIPS * CLIP_SECONDS)
    print(f"{options.megabytes} MB: {with_it:.0f} ms with fsync, {without:.0f} without (medians of {options.shards})")
    print(f"{share:.1%} of the {CLIPS * CLIP_SECONDS:.1f} s that a shard of {CLIPS} clips takes a core")


if __name__ == "__main__":
    main()
