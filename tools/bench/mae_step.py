"""A masked autoencoder's training step at 224 pixels: ours and its peers'.

Weights, images and masks are the same.

The parts are forward + backward, and what each project's own script does afterwards:
  ours          `ssl_train.fit`: norm of the gradient, fused AdamW, freed memory kept
  transformers  `Trainer` with its defaults: clipping at 1, fused AdamW
  lightly       examples/pytorch/mae.py: torch's default AdamW
  plain         a module as the paper describes it, torch's default AdamW with two groups

Small batches overstate the optimiser. At batch 4096 its cost vanishes, so `forward + backward` is
what counts.
"""

from __future__ import annotations

import statistics
import tempfile
from collections.abc import Callable
from typing import Any

import measure
import torch
from measure import Case, Settings, Work
from plain_mae import PlainMAE
from step import Contender, as_fit, as_trainer, follow, work
from torch import Tensor

from ssl_mae.config import PRESETS, MAEConfig
from ssl_mae.mae import MAE
from ssl_train.cost import step_cost
from ssl_train.optim import decay_groups

BATCH = {"fp32": 8, "bf16": 16}
CPU = torch.device("cpu")


def main() -> None:
    flags = measure.parser(__doc__)
    flags.add_argument("--presets", nargs="+", choices=[*PRESETS["mae"]], default=["vit_base", "vit_small"])
    flags.add_argument("--precisions", nargs="+", choices=[*BATCH], default=[*BATCH])
    flags.add_argument("--batch", type=int, help=f"images; {BATCH} by default")
    args = flags.parse_args()
    chosen = measure.settings(args)
    for preset in args.presets:
        for precision in args.precisions:
            compare(preset, precision, args.batch or BATCH[precision], chosen)


def compare(preset: str, precision: str, batch: int, chosen: Settings) -> None:
    """Print the table of one model in one precision. Raises SystemExit when the losses differ."""
    shared = (preset, precision, batch)
    results = measure.race(
        [
            Case("ours", build, (ours, *shared)),
            Case("transformers", build, (transformers, *shared), ("transformers",)),
            Case("lightly", build, (lightly, *shared), ("lightly", "timm")),
            Case("plain", build, (plain, *shared), ("timm",)),
        ],
        chosen,
    )
    rate = measure.matmul_rate(torch.bfloat16 if precision == "bf16" else torch.float32, chosen.clock)
    needed = 6 * multiply_adds(PRESETS["mae"][preset]()) * batch
    for result in results:
        if not result.missing:
            seconds = statistics.median(result.seconds(chosen.clock, "forward + backward"))
            result.facts["MFU"] = f"{needed / seconds / rate:.0%}"
    title = f"MAE step, {preset}, {precision}, batch {batch}: {needed / 1e9:,.0f} GFLOP, {rate / 1e9:,.0f} GFLOP/s"
    measure.report(title, results, chosen)
    measure.same(results, within=1e-5)


def multiply_adds(config: MAEConfig) -> float:
    """FLOP of the forward pass of one image; the backward pass needs twice as many."""
    with torch.device("meta"):
        method = MAE(config)
    h, w = config.size
    return step_cost(method, {"views": [torch.zeros(1, 3, h, w)], "noise": torch.rand(1, config.patches)})[0]


def build(make: Callable[..., Contender], preset: str, precision: str, batch: int) -> Work:
    """One contender with the weights of seed 0; its loss is computed in fp32 before training."""
    config = PRESETS["mae"][preset]()
    torch.manual_seed(0)
    method = MAE(config)
    h, w = config.size
    images = torch.randint(0, 256, (batch, config.in_channels, h, w), dtype=torch.uint8)
    return work(make(method, images, torch.rand(batch, config.patches)), precision)


def ours(method: MAE, images: Tensor, noise: Tensor) -> Contender:
    """What `fit` does with a batch. It normalises inside; the peers do so in their loaders."""
    batch = {"views": [images], "noise": noise}
    return Contender(lambda: method(batch, 0.0)["loss"], as_fit(method))


def transformers(method: MAE, images: Tensor, noise: Tensor) -> Contender:
    from transformers import ViTMAEForPreTraining

    with tempfile.TemporaryDirectory() as folder:
        method.save_pretrained(folder)
        model: Any = ViTMAEForPreTraining.from_pretrained(folder).train()
    pixels = normalized(method, images)
    return Contender(lambda: model(pixels, noise=noise).loss, as_trainer(model, 0.05))


def lightly(method: MAE, images: Tensor, noise: Tensor) -> Contender:
    from lightly_mae import LightlyMAE

    model = LightlyMAE(method.config)
    model.load(method)
    pixels = normalized(method, images)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1.5e-4)
    return Contender(lambda: model(pixels, noise), lambda: follow(optimizer))


def plain(method: MAE, images: Tensor, noise: Tensor) -> Contender:
    model = PlainMAE(method.config)
    model.load_state_dict(method.state_dict())
    pixels = normalized(method, images)
    optimizer = torch.optim.AdamW(decay_groups(model, 0.05), lr=1e-4, betas=(0.9, 0.95))
    return Contender(lambda: model(pixels, noise), lambda: follow(optimizer))


def normalized(method: MAE, images: Tensor) -> Tensor:
    mean, std = (torch.tensor(v).view(-1, 1, 1) for v in (method.config.mean, method.config.std))
    return (images / 255 - mean) / std


if __name__ == "__main__":
    main()
