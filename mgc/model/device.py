"""The device of a process, and the settings of PyTorch and the C library that a fit or an inference starts with.

On a GPU in float32, convolutions use TF32 (float32's range and sums, ten bits of each factor), PyTorch's own default;
the linear layer, a thousandth of the work, is float32 throughout. In deterministic mode all of it is. With
``precision`` bfloat16, convolutions and the linear layer compute in bfloat16 during training; norms, the loss, the
weights and Adam's moments are float32 always.
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
    """Set how this process computes on a device; on the CPU, have it keep freed memory.

    Parameters
    ----------
    device
        The CPU or a GPU.
    deterministic
        On a GPU: the same results each time, bit for bit, by float32 without TF32 and kernels that are not chosen by
        timing them. On the CPU they are the same anyway.
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


def keep_freed_memory() -> None:
    """Have glibc keep freed memory: otherwise a step's activations, hundreds of MB, are mapped and zeroed each time.

    With channels_last this makes a step of 32 clips on two cores 2.6 times as fast (docs/log.md). Other C libraries are
    left as they are.
    """
    m_mmap_max, m_trim_threshold = -4, -1
    with suppress(OSError, AttributeError):  # another C library
        libc = ctypes.CDLL("libc.so.6")
        libc.mallopt(m_mmap_max, 0)
        libc.mallopt(m_trim_threshold, -1)
