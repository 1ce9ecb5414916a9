"""BatchNorm over the whole batch, however many workers share it, on any device.

PyTorch's SyncBatchNorm needs a GPU; this one does the same over gloo, so that two CPU workers normalise, and learn, as
one process does. Workers may have different numbers of clips, or none.
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


class SyncedBatchNorm(nn.modules.batchnorm._BatchNorm):
    """BatchNorm with statistics of all ranks' clips; in evaluation, or alone, what its origin is."""

    @classmethod
    def convert(cls, module: nn.Module) -> None:
        """Make every BatchNorm below ``module`` a synced one, in place: weights, statistics and names stay."""
        for layer in module.modules():
            if isinstance(layer, nn.modules.batchnorm._BatchNorm):
                layer.__class__ = cls

    def _check_input_dim(self, values: Tensor) -> None:
        """Any number of dimensions: batch, channels, the rest."""

    def forward(self, values: Tensor) -> Tensor:
        """Normalise [shape=(B, C, ...)] by the mean and variance over B, over ranks and over the rest."""
        if not (self.training and distributed.is_initialized()):
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
        scale = (self.weight * torch.rsqrt(variance + self.eps)).float()
        shift = (self.bias - mean * scale).float()
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
