"""Batch norm over parts of the batch: what plain batch norm on several GPUs is, on any number of processes."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ssl_core import distributed
from ssl_core.config import ConfigError


class SplitBatchNorm(nn.BatchNorm2d):
    """In training, each of `splits` parts of the global batch is normalised by its own statistics.

    A process of W has splits / W of the parts. The running statistics are the mean over the parts: of this process
    after its pass, of all after `average_statistics`. Raises ConfigError when the processes do not divide the parts.
    """

    def __init__(self, num_features: int, splits: int, **options: float) -> None:
        super().__init__(num_features, **options)  # type: ignore[arg-type]
        self.splits = splits

    def forward(self, input: Tensor) -> Tensor:
        if not self.training:
            return super().forward(input)
        parts, rest = divmod(self.splits, distributed.world_size())
        if rest:
            raise ConfigError(
                f"bn_splits = {self.splits}: {distributed.world_size()} processes have to divide the parts evenly"
            )
        assert self.running_mean is not None and self.running_var is not None and self.num_batches_tracked is not None
        assert self.momentum is not None
        self.num_batches_tracked.add_(1)
        means, variances = self.running_mean.repeat(parts, 1), self.running_var.repeat(parts, 1)
        out = torch.cat([
            F.batch_norm(part, mean, var, self.weight, self.bias, True, self.momentum, self.eps)
            for part, mean, var in zip(input.tensor_split(parts), means, variances, strict=True)
        ])  # fmt: skip
        self.running_mean.copy_(means.mean(0))
        self.running_var.copy_(variances.mean(0))
        return out


def split_batch_norm(module: nn.Module, splits: int) -> nn.Module:
    """`module` with every `nn.BatchNorm2d` in it replaced by a `SplitBatchNorm` of the same names and values."""
    if type(module) is nn.BatchNorm2d:
        split = SplitBatchNorm(module.num_features, splits, eps=module.eps)
        split.load_state_dict(module.state_dict())
        return split
    for name, child in module.named_children():
        setattr(module, name, split_batch_norm(child, splits))
    return module


@torch.no_grad()
def average_statistics(module: nn.Module) -> None:
    """The running statistics of every `SplitBatchNorm` in `module`, averaged over the processes."""
    if not distributed.is_on():
        return
    norms = [m for m in module.modules() if isinstance(m, SplitBatchNorm)]
    buffers = [b for m in norms for b in (m.running_mean, m.running_var) if b is not None]
    if not buffers:
        return
    joined = distributed.all_reduce_sum(torch.cat(buffers)) / distributed.world_size()
    for buffer, mean in zip(buffers, joined.split([len(b) for b in buffers]), strict=True):
        buffer.copy_(mean)
