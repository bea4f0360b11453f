"""Features of a source's samples, in its order, and the baselines that they have to beat."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from ssl_core.device import autocast, no_autocast
from ssl_core.errors import BadSample
from ssl_core.pixels import as_float, top
from ssl_train.data.files import printable
from ssl_train.errors import EvaluationError
from ssl_train.log import Progress

Encode = Callable[[Tensor], Tensor]  # uint8 (b, c, h, w) -> (b, d)

PIXELS = 32  # side in pixels to which `pixels` reduces larger images
BINS = 4  # per colour, of the joint RGB histogram
CHANNEL_BINS = 16  # per channel, where there are not three of them


@dataclass(frozen=True, eq=False)
class Features:
    """The features of a source: one row per readable sample, in the source's order."""

    features: Tensor  # (n, d) float32
    labels: Tensor | None  # (n,) int64, -1 = no label; of findings (n, c)
    names: Sequence[str]  # n of them, paths where the source has paths
    classes: Sequence[str] | None = None
    skipped: Sequence[tuple[str, str]] = ()  # (name, reason) of the samples left out as unreadable
    groups: np.ndarray | None = None  # (n,) uint64, equal for samples that belong together

    def __post_init__(self) -> None:
        n = len(self.names)
        if self.features.dtype != torch.float32 or self.features.shape[:-1] != (n,):
            what = f"features must be ({n}, d) float32 for {n} names, got"
            raise ValueError(f"{what} {tuple(self.features.shape)} {self.features.dtype}")
        if self.labels is not None and (self.labels.dtype != torch.int64 or self.labels.shape[:1] != (n,)):
            raise ValueError(f"labels must be ({n},) int64, got {tuple(self.labels.shape)} {self.labels.dtype}")

    def __len__(self) -> int:
        return len(self.names)

    def known(self) -> Tensor:
        """Which rows are labelled, bool (n,). EvaluationError if none is."""
        if self.labels is None or not (self.labels >= 0).any():
            raise EvaluationError("no sample has a label: evaluation needs labelled data")
        return self.labels >= 0 if self.labels.ndim == 1 else (self.labels >= 0).any(dim=1)

    def labelled(self) -> tuple[Tensor, Tensor]:
        """Features (m, d) and labels (m,) or (m, c) of the labelled rows. EvaluationError if there
        are none."""
        keep = self.known()
        assert self.labels is not None
        return self.features[keep], self.labels[keep]

    def labelled_groups(self) -> np.ndarray | None:
        """The groups (m,) of the labelled rows."""
        return None if self.groups is None else self.groups[self.known().numpy()]

    def save(self, path: str | Path) -> None:
        """Write `features.npz`: `features` (n, d) float32, `paths` (n,), `labels` (n,) if any.

        The file also holds `classes` and `skipped` (m, 2), so `load` returns an equal object.
        """
        arrays: dict[str, Any] = {
            "features": self.features.numpy(),
            "paths": np.array(self.names, dtype=np.str_),
            "skipped": np.array(self.skipped, dtype=np.str_).reshape(-1, 2),
        }
        if self.labels is not None:
            arrays["labels"] = self.labels.numpy()
        if self.classes is not None:
            arrays["classes"] = np.array(self.classes, dtype=np.str_)
        with Path(path).open("wb") as file:  # given a name, savez would append .npz to it
            np.savez(file, **arrays)

    @classmethod
    def load(cls, path: str | Path) -> Features:
        """Read what `save` wrote. Raises ValueError if the file holds anything else."""
        with np.load(path, allow_pickle=False) as file:
            if missing := {"features", "paths", "skipped"} - set(file):
                raise ValueError(f"{path} is no file of features: {sorted(missing)} missing")
            return cls(
                torch.from_numpy(file["features"]),
                torch.from_numpy(file["labels"]) if "labels" in file else None,
                file["paths"].tolist(),
                file["classes"].tolist() if "classes" in file else None,
                [(name, reason) for name, reason in file["skipped"].tolist()],
            )


def extract(encode: Encode, source: Any, transform: Any, **options: Any) -> Features:
    """Features of every readable sample of `source`, in its order; `options` are those of
    `extract_each`."""
    return extract_each({"encode": encode}, source, transform, **options)["encode"]


def extract_each(
    encoders: Mapping[str, Encode],
    source: Any,
    transform: Any,
    *,
    batch_size: int = 256,
    device: str | torch.device = "cpu",
    precision: str = "fp32",
    workers: int = 0,
    progress: bool = False,
) -> dict[str, Features]:
    """Features of several encoders, float32 on the CPU, from one pass over the data.

    An encoder gets uint8 (b, c, h, w) batches on `device` in inference mode, under the autocast of
    `precision` (fp32 or bf16) and no other. If it is a module, or a method of one, the module is
    put in eval mode and back. `transform` gets no random stream, since an evaluation draws nothing.
    Samples that raise BadSample are left out, listed in `skipped` and named in a warning. Raises
    ValueError if no sample can be read or if a feature is not finite.
    """
    device = torch.device(device)
    batching = {"batch_size": batch_size, "collate_fn": _stack, "pin_memory": device.type == "cuda"}
    batching |= {"num_workers": workers, "timeout": 300 if workers else 0}  # seconds
    # its own generator: else every pass would move the global random stream
    batches: Any = DataLoader(_Readable(source, transform), generator=torch.Generator(), **batching)
    if progress:
        batches = Progress(batches, desc="features", unit="batches", leave=False)
    rows: dict[str, list[Tensor]] = {name: [] for name in encoders}
    kept: list[int] = []
    bad: list[tuple[int, str]] = []
    with ExitStack() as modes:
        for encode in encoders.values():
            modes.enter_context(_eval_mode(encode))
        for indices, images, unreadable in batches:
            kept += indices
            bad += unreadable
            if images is not None:
                images = images.to(device)
                for name, encode in encoders.items():
                    rows[name].append(_encode(name, encode, images, precision))
    skipped = [(source.name(i), reason) for i, reason in bad]
    _report(skipped, len(source))
    labels = None
    if source.labels is not None:
        labels = torch.from_numpy(np.asarray(source.labels, dtype=np.int64)[kept])
    names, groups = [source.name(i) for i in kept], getattr(source, "groups", None)
    facts = labels, names, source.classes, skipped, None if groups is None else groups[kept]
    return {name: Features(torch.cat(parts), *facts) for name, parts in rows.items()}


def pixels(images: Tensor) -> Tensor:
    """uint8 or uint16 (b, c, h, w) -> (b, c·h·w) float32 in [0, 1], of at most 32 x 32 averaged
    pixels."""
    x = as_float(images)
    h, w = (min(side, PIXELS) for side in x.shape[2:])
    return rearrange(F.adaptive_avg_pool2d(x, (h, w)), "b c h w -> b (c h w)")


def histogram(images: Tensor) -> Tensor:
    """Share of the pixels in each bin: uint8 or uint16 (b, c, h, w) -> (b, n) float32.

    Three channels are binned jointly, n = 4 x 4 x 4. Otherwise each channel has its own 16 bins.
    """
    b, c, h, w = images.shape
    if c == 3:
        digit = rearrange(_binned(images, BINS), "b c h w -> c b (h w)")
        bins, count = (digit[0] * BINS + digit[1]) * BINS + digit[2], BINS**3  # b p
    else:
        digit = _binned(images, CHANNEL_BINS)
        first = CHANNEL_BINS * torch.arange(c, device=images.device)  # bin 0 of each channel
        bins = rearrange(digit + rearrange(first, "c -> c 1 1"), "b c h w -> b (c h w)")
        count = CHANNEL_BINS * c
    own = bins + count * torch.arange(b, device=images.device)[:, None]  # bins of its own per image
    counts = torch.bincount(own.flatten(), minlength=b * count)
    return rearrange(counts, "(b n) -> b n", b=b).float() / (h * w)


def _binned(images: Tensor, bins: int) -> Tensor:
    return images.long() * bins // (top(images) + 1)


class _Readable(Dataset):
    """The view of each sample of `source`, or the reason why it cannot be read."""

    def __init__(self, source: Any, transform: Any) -> None:
        self.source, self.transform = source, transform

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, index: int) -> tuple[int, Tensor | str]:
        try:
            return index, self.transform(self.source.load(index), None)["views"][0]
        except BadSample as error:
            return index, str(error)


def _stack(items: list[tuple[int, Tensor | str]]) -> tuple[list[int], Tensor | None, list[tuple[int, str]]]:
    """Indices and images (b, c, h, w) of readable samples, and (index, reason) of the others."""
    good = [(index, view) for index, view in items if isinstance(view, Tensor)]
    bad = [(index, view) for index, view in items if isinstance(view, str)]
    images = torch.stack([view for _, view in good]) if good else None
    return [index for index, _ in good], images, bad


@contextmanager
def _eval_mode(encode: Encode) -> Iterator[None]:
    module = encode if isinstance(encode, nn.Module) else getattr(encode, "__self__", None)
    if not isinstance(module, nn.Module):
        yield
        return
    modes = [(part, part.training) for part in module.modules()]  # frozen parts may differ
    module.eval()
    try:
        yield
    finally:
        for part, training in modes:
            part.training = training


def _encode(name: str, encode: Encode, images: Tensor, precision: str) -> Tensor:
    with torch.inference_mode(), no_autocast(images.device), autocast(precision, images.device):
        x = encode(images).float()
    if x.ndim != 2 or len(x) != len(images):
        raise ValueError(f"{name} must return (b, d) features, got {tuple(x.shape)} for {len(images)} images")
    if not torch.isfinite(x).all():
        raise ValueError(f"{name} gives NaN or infinite features, its weights are broken")
    return x.cpu()


def _report(skipped: list[tuple[str, str]], total: int) -> None:
    if not skipped and total:
        return
    if len(skipped) == total:
        shown = f", the first: {printable(skipped[0][0])}: {skipped[0][1]}" if skipped else ""
        raise EvaluationError(f"none of {total} samples can be read{shown}")
    shown = "; ".join(f"{printable(name)}: {reason}" for name, reason in skipped[:5])
    more = "; …" if len(skipped) > 5 else ""
    warnings.warn(f"{len(skipped)} of {total} samples cannot be read and are left out: {shown}{more}", stacklevel=3)
