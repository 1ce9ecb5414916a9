"""musicnn on one core: the quick way against plain convolutions of the same network, and beside decoding.

    python benchmarks/encoder.py [CLIP.mp3 ...] [--patches 10] [--rounds 7]

Both ways see the same patches in turn, in one process with one thread; the ratio is of their CPU seconds, the median
over the rounds. A clip of 30 s has ten patches. The weights are random: they change no time.
"""

from __future__ import annotations

import argparse
import copy
import os
import time
from pathlib import Path
from statistics import median

for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ[name] = "1"

import torch  # noqa: E402
from torch import nn  # noqa: E402

from mgc.audio import decode  # noqa: E402
from mgc.encoders.musicnn import MELS, WINDOW  # noqa: E402
from mgc.encoders.registry import untrained  # noqa: E402

SAMPLE_RATE = 16_000


def plainly(model: nn.Module) -> nn.Module:
    """The network with its first layer as convolutions, BatchNorm and maximum, one after the other."""
    model = copy.deepcopy(model)
    for branch in model.front:
        branch.forward = branch.plain
    return model


def main() -> None:
    """Time both ways in turn, and decoding, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("clips", nargs="*", type=Path)
    parser.add_argument("--patches", type=int, default=10)
    parser.add_argument("--rounds", type=int, default=7)
    options = parser.parse_args()
    torch.set_num_threads(1)
    mel_BFT = torch.rand(options.patches, MELS, WINDOW) * 4
    quick = untrained("musicnn_random")
    plain = plainly(quick)

    def decoding() -> None:
        for clip in options.clips:
            with clip.open("rb") as file:
                decode.load(file, sample_rate=SAMPLE_RATE, seconds=29.9)

    ways = {"plain": lambda: plain(mel_BFT), "quick": lambda: quick(mel_BFT)}
    if options.clips:
        ways["decoding"] = decoding
    seconds: dict[str, list[float]] = {way: [] for way in ways}
    with torch.inference_mode():
        away = float((ways["plain"]() - ways["quick"]()).abs().max())  # warms both up
        for _ in range(options.rounds):
            for way, work in ways.items():
                start = time.process_time()
                work()
                seconds[way].append((time.process_time() - start) / (len(options.clips) if way == "decoding" else 1))
    for way, each in seconds.items():
        what = f"a clip at {SAMPLE_RATE:,} Hz, of {len(options.clips)}" if way == "decoding" else "of the network"
        print(f"{way:<9} {1000 * median(each):6.0f} ms {what} (CPU, median of {options.rounds} rounds)")
    ratios = sorted(a / b for a, b in zip(seconds["plain"], seconds["quick"], strict=True))
    print(f"ratio     {median(ratios):.2f} ({ratios[0]:.2f} to {ratios[-1]:.2f}); {options.patches} patches; ", end="")
    print(f"at most {away:.1e} apart")


if __name__ == "__main__":
    main()
