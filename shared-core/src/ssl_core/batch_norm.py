"""Batch norm over the joined batch of all processes, on a CPU too."""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor, nn

from ssl_core.distributed import is_on
from ssl_core.errors import ConfigError


class BatchNorm(nn.modules.batchnorm._BatchNorm):
    """Batch norm over the joined batch of all processes.

    The processes may hold different numbers of samples, including zero.

    For (b, d), (b, d, n), (b, c, h, w) and beyond. Outputs, gradients and running statistics are
    those of one process with the whole batch; in one process, and in eval mode, it is torch's.
    `nn.SyncBatchNorm` refuses CPU. Raises ConfigError, a ValueError, when the joined batch has a
    single value per channel.
    """

    def _check_input_dim(self, input: Tensor) -> None:
        if input.ndim < 2:
            raise ValueError(f"batch norm needs (b, d, …), got {tuple(input.shape)}")

    def forward(self, input: Tensor) -> Tensor:
        self._check_input_dim(input)
        if not self.training or not is_on():
            if self.training:
                check_count(input.numel() // max(1, input.shape[1]))
            return super().forward(input)
        out, mean, var, count = _JoinedNorm.apply(input, self.weight, self.bias, self.eps)  # type: ignore[misc]
        self._track(mean, var, count)
        return out

    @torch.no_grad()
    def _track(self, mean: Tensor, var: Tensor, count: Tensor) -> None:
        if self.running_mean is None or self.running_var is None or self.num_batches_tracked is None:
            return
        self.num_batches_tracked.add_(1)
        momentum = self.momentum
        if momentum is None:
            momentum = (1 / self.num_batches_tracked).to(self.running_mean.dtype)
        self.running_mean.lerp_(mean.to(self.running_mean.dtype), momentum)
        self.running_var.lerp_((var * count / (count - 1)).to(self.running_var.dtype), momentum)


def check_count(values: int) -> None:
    """Raises ConfigError unless the joined batch has two values per channel: one has no spread."""
    if values < 2:
        raise ConfigError(f"batch norm has {values} value per channel to train on: use --batch-size 2 or more")


class _JoinedNorm(torch.autograd.Function):
    """The normalisation by joined statistics.

    They are joined as means and squared deviations from them (Chan et al. 1979), in fp32 or wider.
    """

    @staticmethod
    def forward(ctx, x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float):  # type: ignore[override]
        wide = x.to(torch.promote_types(x.dtype, torch.float32))
        axes = [0, *range(2, x.ndim)]
        count, channels = x.numel() // max(1, x.shape[1]), x.shape[1]
        mean = wide.sum(axes) / max(1, count)
        deviation = (wide - _channels(mean, x)).square().sum(axes)
        own = torch.cat([mean, deviation, mean.new_tensor([count])])
        parts = [torch.empty_like(own) for _ in range(dist.get_world_size())]
        dist.all_gather(parts, own)
        means, deviations, counts = torch.stack(parts).split([channels, channels, 1], 1)
        total = counts.sum()
        check_count(int(total))
        mean = (counts * means).sum(0) / total
        var = (deviations + counts * (means - mean).square()).sum(0) / total
        scale = (var + eps).rsqrt()
        ctx.save_for_backward(x, weight, mean, scale, total)
        gain, shift = scale, -mean * scale
        if weight is not None:
            gain, shift = gain * weight, shift * weight
        if bias is not None:
            shift = shift + bias
        ctx.mark_non_differentiable(mean, var, total)
        return (wide * _channels(gain, x) + _channels(shift, x)).to(x.dtype), mean, var, total

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad: Tensor, *_: Tensor):  # type: ignore[override]
        x, weight, mean, scale, total = ctx.saved_tensors
        wide, axes = grad.to(mean.dtype), [0, *range(2, x.ndim)]
        normed = (x.to(mean.dtype) - _channels(mean, x)) * _channels(scale, x)
        bias_grad, weight_grad = wide.sum(axes), (wide * normed).sum(axes)
        joined = torch.cat([bias_grad, weight_grad])
        dist.all_reduce(joined)
        shift, slope = (joined / total).chunk(2)
        gain = scale if weight is None else scale * weight
        x_grad = (wide - _channels(shift, x) - normed * _channels(slope, x)) * _channels(gain, x)
        needs = ctx.needs_input_grad
        return x_grad.to(x.dtype), weight_grad if needs[1] else None, bias_grad if needs[2] else None, None


def _channels(values: Tensor, x: Tensor) -> Tensor:
    return values.view(-1, *[1] * (x.ndim - 2))


def sync_batch_norm(module: nn.Module) -> nn.Module:
    """`module` with every batch norm of torch's kind in it, and of kinds derived from it, replaced
    by `BatchNorm`; parameters, buffers and names stay."""
    if isinstance(module, nn.modules.batchnorm._BatchNorm) and not isinstance(module, BatchNorm):
        joined = BatchNorm(
            module.num_features, module.eps, module.momentum, module.affine, module.track_running_stats, device="meta"
        )
        joined._parameters, joined._buffers = module._parameters, module._buffers
        return joined.train(module.training)
    for name, child in module.named_children():
        setattr(module, name, sync_batch_norm(child))
    return module
