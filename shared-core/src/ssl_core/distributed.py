"""Processes that train together. Every function is a plain no-op in a single process."""

from __future__ import annotations

import gc
import os
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.rendezvous import rendezvous

T = TypeVar("T")


def is_on() -> bool:
    return dist.is_available() and dist.is_initialized()


def rank() -> int:
    return dist.get_rank() if is_on() else 0


def world_size() -> int:
    return dist.get_world_size() if is_on() else 1


def is_main() -> bool:
    return rank() == 0


@contextmanager
def process_group(timeout_seconds: float = 1800) -> Iterator[None]:
    """The process group that `torchrun` announces in the environment; nothing without it, or inside another one."""
    if is_on() or "RANK" not in os.environ or "WORLD_SIZE" not in os.environ:
        yield
        return
    cuda = torch.cuda.is_available()
    if cuda:
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
    timeout = timedelta(seconds=timeout_seconds)
    store, rank, world_size = next(rendezvous("env://", timeout=timeout))
    if os.environ.get("LOCAL_WORLD_SIZE") == os.environ["WORLD_SIZE"]:
        # torchrun keeps its store over a restart, and with it the addresses of the ranks that died (pytorch#135712).
        # On several machines this count is not the same for all: there TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1 helps.
        store = dist.PrefixStore(f"start-{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}", store)
    backend = "nccl" if cuda else "gloo"
    dist.init_process_group(backend, store=store, rank=rank, world_size=world_size, timeout=timeout)
    try:
        yield
    except BaseException as error:
        _let_go(error)
        raise
    finally:
        gc.collect()
        dist.destroy_process_group()


def _let_go(error: BaseException | None) -> None:
    """Free what the frames of an error hold, DDP among it.

    DDP has to go before its group: if its reducer is the last to hold the group, it waits with Python's lock for the
    group's threads, which wait for that lock.
    """
    while error is not None:
        traceback.clear_frames(error.__traceback__)
        error = error.__context__


def barrier() -> None:
    if is_on():
        dist.barrier()


def all_reduce_sum(x: Tensor) -> Tensor:
    """Sum over processes, in place and without gradient; returns `x`."""
    if is_on():
        dist.all_reduce(x)
    return x


def broadcast_object(value: T) -> T:
    """The main process's `value` on every process."""
    if not is_on():
        return value
    box = [value]
    dist.broadcast_object_list(box)
    return box[0]


def gather_objects(value: T) -> list[T]:
    """The value of every process, in the order of the ranks."""
    if not is_on():
        return [value]
    values: list[T] = [value] * world_size()
    dist.all_gather_object(values, value)
    return values


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x: Tensor, sizes: list[int]) -> Tensor:  # type: ignore[override]
        ctx.sizes = sizes
        longest = max(sizes)
        padded = x.new_zeros(longest, *x.shape[1:])
        padded[: x.shape[0]] = x
        parts = [torch.empty_like(padded) for _ in sizes]
        dist.all_gather(parts, padded)
        return torch.cat([part[:n] for part, n in zip(parts, sizes, strict=True)])

    @staticmethod
    def backward(ctx, grad: Tensor):  # type: ignore[override]
        grad = grad.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(grad)
        start = sum(ctx.sizes[: dist.get_rank()])
        return grad[start : start + ctx.sizes[dist.get_rank()]], None


def row_counts(x: Tensor) -> list[int]:
    """How many rows `x` has on every process, in the order of the ranks."""
    if not is_on():
        return [x.shape[0]]
    counts = [torch.zeros(1, dtype=torch.long, device=x.device) for _ in range(world_size())]
    dist.all_gather(counts, torch.tensor([x.shape[0]], device=x.device))
    return [int(n) for n in counts]


def gather(x: Tensor, counts: list[int] | None = None) -> Tensor:
    """Rows of every process, (n_total, …), in the order of the ranks, with gradient.

    Ranks may hold different numbers of rows: `counts` are these numbers, where `row_counts` was asked for them already.
    The backward pass sums what every rank sends to a row, so with DDP's mean over processes a loss over local anchors
    against gathered keys has the gradient of the one-process batch; with unequal ranks weight the local mean by
    n_rank · world / n_total.
    """
    if not is_on():
        return x
    return _Gather.apply(x, row_counts(x) if counts is None else counts)  # type: ignore[no-any-return]


def broadcast(x: Tensor) -> Tensor:
    """The main process's `x` on every process, in place; returns it."""
    if is_on():
        dist.broadcast(x, 0)
    return x


def batch_mean(x: Tensor) -> Tensor:
    """Mean of one value per sample, weighted so that DDP's mean over processes is the mean of the joined batch.

    With equal ranks it is the plain mean; with n_r of N samples on this rank, n_r · world / N times it. x (b,), fp32 or
    wider -> scalar.
    """
    if not is_on():
        return x.mean()
    total = all_reduce_sum(x.new_tensor([x.shape[0]]))
    return x.sum() * (world_size() / total[0])


class BatchNorm(nn.modules.batchnorm._BatchNorm):
    """Batch norm over the joined batch of all processes, which may hold different numbers of samples, none too.

    For (b, d), (b, d, n), (b, c, h, w) and beyond. Outputs, gradients and running statistics are those of one process
    with the whole batch; in one process, and in eval mode, it is torch's. `nn.SyncBatchNorm` refuses CPU.
    Raises ValueError when the joined batch has a single value per channel.
    """

    def _check_input_dim(self, input: Tensor) -> None:
        if input.ndim < 2:
            raise ValueError(f"batch norm needs (b, d, …), got {tuple(input.shape)}")

    def forward(self, input: Tensor) -> Tensor:
        if not self.training or not is_on():
            return super().forward(input)
        self._check_input_dim(input)
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


class _JoinedNorm(torch.autograd.Function):
    """Statistics are joined as means and squared deviations from them (Chan et al. 1979), in at least fp32."""

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
        if total <= 1:
            raise ValueError(f"batch norm needs more than one value per channel, got {tuple(x.shape)} on every process")
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
    """`module` with every `nn.BatchNorm1d/2d/3d` in it replaced by `BatchNorm`; parameters, buffers and names stay."""
    if type(module) in (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d):
        assert isinstance(module, nn.modules.batchnorm._BatchNorm)
        joined = BatchNorm(
            module.num_features, module.eps, module.momentum, module.affine, module.track_running_stats, device="meta"
        )
        joined._parameters, joined._buffers = module._parameters, module._buffers
        return joined.train(module.training)
    for name, child in module.named_children():
        setattr(module, name, sync_batch_norm(child))
    return module
