"""BatchNorm over the clips of all ranks, so that ranks that share a batch normalise, and learn, as one process does.

On GPUs that is PyTorch's SyncBatchNorm, which refuses tensors of the CPU; ``CpuSyncBatchNorm`` does the same over gloo.
Ranks may have different numbers of clips, or none.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, distributed, nn


class _SumOverRanks(torch.autograd.Function):
    """The sum over ranks; backward sums too, because every rank's loss depends on it."""

    @staticmethod
    def forward(ctx: Any, values: Tensor) -> Tensor:
        total = values.clone()
        distributed.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        total = gradient.clone()
        distributed.all_reduce(total)
        return total


def _sum_over_ranks(values: Tensor) -> Tensor:
    total: Tensor = _SumOverRanks.apply(values)  # type: ignore[no-untyped-call]
    return total


def sync_batchnorm(model: nn.Module) -> nn.Module:
    """Have every BatchNorm of a model take its statistics over all ranks of the process group.

    Parameters
    ----------
    model
        Is changed in place: weights, running statistics and the names in its state dict stay.

    Returns
    -------
    torch.nn.Module
        The model.
    """
    if distributed.get_backend() == "nccl":
        converted: nn.Module = nn.SyncBatchNorm.convert_sync_batchnorm(model)
        return converted
    for layer in model.modules():
        if isinstance(layer, nn.modules.batchnorm._BatchNorm):
            layer.__class__ = CpuSyncBatchNorm
    return model


class CpuSyncBatchNorm(nn.modules.batchnorm._BatchNorm):
    """BatchNorm with statistics of all ranks' clips, over gloo; plain BatchNorm in evaluation mode."""

    def _check_input_dim(self, values: Tensor) -> None:
        """Any number of dimensions: batch, channels, the rest."""

    def forward(self, values: Tensor) -> Tensor:
        """Normalise by the mean and variance over clips, ranks and places.

        Parameters
        ----------
        values
            This rank's share of a batch [shape=(B, C, ...)]; B may be 0.

        Returns
        -------
        torch.Tensor [shape=(B, C, ...)]
            Of the dtype of ``values``.
        """
        if not self.training:
            return super().forward(values)
        axes = [axis for axis in range(values.ndim) if axis != 1]
        count = torch.full([1], values.numel() / values.shape[1], dtype=torch.float64, device=values.device)
        exact = values.float()  # under autocast they are bfloat16, which no statistic may be
        if len(values):
            spread, centre = (each.double() for each in torch.var_mean(exact, axes, correction=0))
        else:
            spread = centre = exact.sum(axes).double()
        sums = _sum_over_ranks(torch.cat([centre * count, (spread + centre.square()) * count, count]))
        total, squares, counts = sums.split([values.shape[1], values.shape[1], 1])
        mean = total / counts
        variance = squares / counts - mean.square()
        self._remember(mean.detach(), (variance * counts / (counts - 1)).detach())
        shape = [1, -1] + [1] * (values.ndim - 2)
        scale, shift = torch.rsqrt(variance + self.eps), torch.zeros_like(mean)
        if self.affine:
            scale, shift = self.weight * scale, shift + self.bias
        scale, shift = scale.float(), (shift - mean * scale).float()
        normed: Tensor = exact * scale.view(shape) + shift.view(shape)
        return normed.to(values.dtype)

    def _remember(self, mean: Tensor, variance: Tensor) -> None:
        """Move the running statistics, as BatchNorm does: towards the unbiased variance."""
        assert self.running_mean is not None
        assert self.running_var is not None
        assert self.num_batches_tracked is not None
        self.num_batches_tracked.add_(1)
        self.running_mean.lerp_(mean.to(self.running_mean.dtype), self.momentum or 0.1)
        self.running_var.lerp_(variance.to(self.running_var.dtype), self.momentum or 0.1)
