"""Decode → log-Mel, against librosa's way, on one core.

    python benchmarks/logmel.py CLIP.mp3 [CLIP.mp3 ...]

Both ways see each clip in turn, warm, in one process with one thread; the ratio is of the medians over rounds, and the
largest difference in dB is printed with it.
"""

import os
import sys
import time
from statistics import median

for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMBA_NUM_THREADS"):
    os.environ[name] = "1"

import librosa  # noqa: E402
import numpy as np  # noqa: E402

from mgc.audio import decode as audio  # noqa: E402
from mgc.audio.logmel import LogMelSpec, log_mel  # noqa: E402

SPEC = LogMelSpec()
ROUNDS = 7


def reference(path: str) -> np.ndarray:
    """Librosa's way."""
    samples, _ = librosa.load(path, sr=SPEC.sample_rate, duration=SPEC.seconds)
    samples = librosa.util.fix_length(samples, size=SPEC.n_samples)
    power = librosa.feature.melspectrogram(
        y=samples, sr=SPEC.sample_rate, n_fft=SPEC.n_fft, hop_length=SPEC.hop_length, n_mels=SPEC.n_mels
    )
    return librosa.power_to_db(power)


def ours(path: str) -> np.ndarray:
    """What preprocessing does."""
    with open(path, "rb") as file:
        return log_mel(audio.load(file, sample_rate=SPEC.sample_rate, seconds=SPEC.seconds).samples, SPEC)


def main(paths: list[str]) -> None:
    """Time both ways in turn and print the table."""
    if not paths:
        sys.exit(__doc__)
    away = max(float(np.abs(reference(path) - ours(path)).max()) for path in paths)  # warms both up
    times: dict[str, list[float]] = {"librosa": [], "mgc": []}
    for _ in range(ROUNDS):
        for name, way in (("librosa", reference), ("mgc", ours)):
            start = time.perf_counter()
            for path in paths:
                way(path)
            times[name].append((time.perf_counter() - start) / len(paths))
    for name, seconds in times.items():
        print(f"{name:<8} {1000 * median(seconds):7.1f} ms a clip (median of {ROUNDS} rounds, {len(paths)} clips)")
    ratio = median(a / b for a, b in zip(times["librosa"], times["mgc"], strict=True))
    print(f"ratio    {ratio:.2f}× (median of the rounds' ratios); at most {away:.5f} dB apart")


if __name__ == "__main__":
    main(sys.argv[1:])
