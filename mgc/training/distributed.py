"""The processes that train together under ``torch.distributed``; alone, rank 0 of 1."""

from __future__ import annotations

from torch import Tensor, distributed, nn


def rank_and_world() -> tuple[int, int]:
    """Rank of this process, and how many there are."""
    if distributed.is_available() and distributed.is_initialized():
        return distributed.get_rank(), distributed.get_world_size()
    return 0, 1


def summed(values: Tensor) -> Tensor:
    """The sum over ranks, on the CPU."""
    if rank_and_world()[1] > 1:
        values = values.cuda() if distributed.get_backend() == "nccl" else values
        distributed.all_reduce(values)
    return values.cpu()


def share_buffers(model: nn.Module) -> None:
    """Give every rank rank 0's running BatchNorm statistics, which validation uses."""
    if rank_and_world()[1] > 1:
        for buffer in model.buffers():
            distributed.broadcast(buffer, 0)
