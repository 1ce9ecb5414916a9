"""What a process sets before it trains: how a GPU computes, and memory that stays with the process on the CPU.

A GPU's float32: convolutions take TF32 tensor cores (float32's range and sums, ten bits of each factor), PyTorch's own
default; the linear layer, a thousandth of the work, is float32 throughout. In deterministic mode all of it is. Trained
with ``precision`` bfloat16, convolutions and the linear layer take bfloat16; the arithmetic of norms, the loss, the
weights and their moments are float32 always.
"""

from __future__ import annotations

import ctypes
import os
import warnings
from contextlib import suppress

import torch


def best_device() -> torch.device:
    """Return the GPU if there is one, else the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def prepare(device: torch.device, *, deterministic: bool = False) -> None:
    """Set how this process computes on a device.

    Parameters
    ----------
    deterministic
        On a GPU the same figures each time, bit for bit: no TF32, no choice of kernels by the clock. The CPU's are so
        anyway.
    """
    keep_freed_memory()
    if device.type != "cuda":
        return
    torch.backends.cudnn.allow_tf32 = not deterministic
    torch.backends.cuda.matmul.allow_tf32 = False
    torch.backends.cudnn.benchmark = not deterministic  # an epoch has two shapes at most: each is measured once
    if deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    warnings.filterwarnings(
        "ignore", message="This instance was constructed with capturable=True"
    )  # until it is recorded
    # no refusals: max pooling's backward counts as random because windows that overlap are; ours do not
    torch.use_deterministic_algorithms(deterministic, warn_only=True)


def free_memory(device: torch.device) -> int:
    """Bytes that this process may still take on a GPU; what it holds there of an earlier fit, unused, is free."""
    held = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return torch.cuda.mem_get_info(device)[0] + held


def keep_freed_memory() -> None:
    """Have glibc keep what is freed: a step's activations, hundreds of MB, are else mapped and zeroed anew each time.

    With channels_last this makes a step of 32 clips on two cores 2.6 times as fast (docs/log.md).
    """
    m_mmap_max, m_trim_threshold = -4, -1
    with suppress(OSError, AttributeError):  # another C library
        libc = ctypes.CDLL("libc.so.6")
        libc.mallopt(m_mmap_max, 0)
        libc.mallopt(m_trim_threshold, -1)
