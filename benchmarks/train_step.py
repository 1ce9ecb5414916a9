"""A training step on the CPU: the plain way, and what `mgc.fit` does about memory and layout.

    python benchmarks/train_step.py [--preset regularized]

Each variant runs in a process of its own on synthetic clips of the true size (128 × 1288, batches of 32), in turn, in
rounds; printed are the median seconds a step and the ratio to the plain way.
"""

import argparse
import subprocess
import sys
import time
from statistics import median

VARIANTS = ("plain", "channels_last", "keep_memory", "both")
ROUNDS, STEPS, BATCH = 3, 3, 32


def one(variant: str, preset: str) -> None:
    """Run some steps and print the median."""
    import torch
    from torch.nn import functional

    from mgc import fit
    from mgc.config import PRESETS
    from mgc.model import GenreCNN

    if variant in ("keep_memory", "both"):
        fit._keep_freed_memory()
    torch.manual_seed(0)
    model = GenreCNN(PRESETS[preset].model, 8)
    if variant in ("channels_last", "both"):
        model = model.to(memory_format=torch.channels_last)
    optimizer = torch.optim.AdamW(model.parameters())
    mel, labels = torch.randn(BATCH, 128, 1288).half(), torch.randint(0, 8, (BATCH,))
    times = []
    for _ in range(1 + STEPS):
        start = time.perf_counter()
        loss = functional.cross_entropy(model(mel.float().unsqueeze(1)), labels)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        times.append(time.perf_counter() - start)
    print(median(times[1:]))


def main() -> None:
    """Run all variants in turn and print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--preset", default="baseline")
    parser.add_argument("--one", choices=VARIANTS)
    given = parser.parse_args()
    if given.one:
        return one(given.one, given.preset)
    seconds: dict[str, list[float]] = {variant: [] for variant in VARIANTS}
    for _ in range(ROUNDS):
        for variant in VARIANTS:
            line = [sys.executable, __file__, "--one", variant, "--preset", given.preset]
            seconds[variant].append(float(subprocess.run(line, capture_output=True, text=True, check=True).stdout))
    for variant, times in seconds.items():
        ratio = median(a / b for a, b in zip(seconds["plain"], times, strict=True))
        print(f"{variant:<14} {median(times):6.2f} s a step of {BATCH}   {ratio:.2f}×")
    return None


if __name__ == "__main__":
    main()
