"""Batch norm over parts of the batch: like plain batch norm on several GPUs, on any number."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ssl_core import distributed
from ssl_core.config import ConfigError


class SplitBatchNorm(nn.BatchNorm2d):
    """In training, each of `splits` parts of the global batch is normalised by its own statistics.

    Each of W processes has splits / W of the parts. The running statistics are the mean over the
    parts: those of this process after its forward pass, all of them after `average_statistics`.
    Raises ConfigError when the parts cannot be shared evenly among the processes, or when one has a
    single value per channel.
    """

    def __init__(self, num_features: int, splits: int, **options: float) -> None:
        super().__init__(num_features, **options)  # type: ignore[arg-type]
        self.splits = splits

    def forward(self, input: Tensor) -> Tensor:
        if not self.training:
            return super().forward(input)
        world = distributed.world_size()
        if self.splits % world:
            raise ConfigError(f"bn_splits = {self.splits}: {world} processes have to divide the parts evenly")
        assert self.running_mean is not None and self.running_var is not None and self.num_batches_tracked is not None

        # Every part updates its own copy of the running statistics.
        parts = input.tensor_split(self.splits // world)
        if parts[-1].numel() < 2 * input.shape[1]:  # the last part is the smallest
            what = f"{len(input)} samples cannot be split into {len(parts)} parts that have a batch norm each"
            raise ConfigError(f"{what}: use --batch-size {2 * self.splits} or more, or a smaller --bn-splits")
        means, variances = (x.repeat(len(parts), 1) for x in (self.running_mean, self.running_var))  # parts c
        self.num_batches_tracked.add_(1)
        outputs = [
            F.batch_norm(part, mean, var, self.weight, self.bias, True, self.momentum, self.eps)  # type: ignore[arg-type]
            for part, mean, var in zip(parts, means, variances, strict=True)
        ]
        self.running_mean.copy_(means.mean(0))
        self.running_var.copy_(variances.mean(0))
        return torch.cat(outputs)


def split_batch_norm(module: nn.Module, splits: int) -> nn.Module:
    """`module` with a `SplitBatchNorm` of the same values in place of every `nn.BatchNorm2d`."""
    if type(module) is nn.BatchNorm2d:
        split = SplitBatchNorm(module.num_features, splits, eps=module.eps)
        split.load_state_dict(module.state_dict())
        return split
    for name, child in module.named_children():
        setattr(module, name, split_batch_norm(child, splits))
    return module


@torch.no_grad()
def average_statistics(module: nn.Module) -> None:
    """Average the running statistics of every `SplitBatchNorm` in `module` over the processes."""
    norms = [m for m in module.modules() if isinstance(m, SplitBatchNorm)]
    if not distributed.is_on() or not norms:  # a ViT has no batch norm
        return
    # One all-reduce for all of them.
    buffers = [b for m in norms for b in (m.running_mean, m.running_var) if b is not None]
    joined = distributed.all_reduce_sum(torch.cat(buffers)) / distributed.world_size()
    for buffer, mean in zip(buffers, joined.split([len(b) for b in buffers]), strict=True):
        buffer.copy_(mean)
