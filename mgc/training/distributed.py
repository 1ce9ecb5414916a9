"""The processes that train together under ``torch.distributed``; a single process is rank 0 of 1."""

from __future__ import annotations

from torch import Tensor, distributed, nn


def rank_and_world() -> tuple[int, int]:
    """Return the rank of this process and the number of processes."""
    if distributed.is_available() and distributed.is_initialized():
        return distributed.get_rank(), distributed.get_world_size()
    return 0, 1


def summed(values: Tensor) -> Tensor:
    """Return the sum of a tensor over all ranks, on the CPU.

    Parameters
    ----------
    values
        Of the same shape on each rank; may be overwritten.
    """
    if rank_and_world()[1] > 1:
        values = values.cuda() if distributed.get_backend() == "nccl" else values
        distributed.all_reduce(values)
    return values.cpu()


def share_buffers(model: nn.Module) -> None:
    """Give every rank rank 0's buffers: the running statistics of BatchNorm, which validation uses.

    Parameters
    ----------
    model
        The model that is validated.
    """
    if rank_and_world()[1] > 1:
        for buffer in model.buffers():
            distributed.broadcast(buffer, 0)
