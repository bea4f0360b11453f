"""DINO's training step with a ViT-S/16: ours, one in the authors' style, and lightly's.

There are two crops of 224 and eight of 96 pixels. Weights, crops and loss are the same, without
drop path. The parts are forward + backward, and what follows: clipping per tensor, AdamW and the
teacher's average; ours in the order of `ssl_train.fit`. Small batches overstate what does not grow
with the batch: head, optimiser and average.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import measure
import torch
from measure import Case, Settings, Work
from step import Contender, as_fit, work
from torch import Tensor

from ssl_dino.config import vit_small
from ssl_dino.dino import DINO
from ssl_train.optim import decay_groups

MOMENTUM = 0.996


def main() -> None:
    flags = measure.parser(__doc__)
    flags.add_argument("--prototypes", nargs="+", type=int, default=[65536, 4096])
    flags.add_argument("--precisions", nargs="+", choices=["fp32", "bf16"], default=["fp32", "bf16"])
    flags.add_argument("--batch", type=int, default=2)
    args = flags.parse_args()
    chosen = measure.settings(args)
    for prototypes in args.prototypes:
        for precision in args.precisions:
            compare(prototypes, precision, args.batch, chosen)


def compare(prototypes: int, precision: str, batch: int, chosen: Settings) -> None:
    """Print the table of one setting. Raises SystemExit when the losses differ."""
    shared = (prototypes, precision, batch)
    results = measure.race(
        [
            Case("ours", build, (ours, *shared)),
            Case("authors' style", build, (plain, *shared), ("timm",)),
            Case("lightly", build, (lightly, *shared), ("lightly", "timm")),
        ],
        chosen,
    )
    title = f"DINO step, ViT-S/16, 2 x 224 + 8 x 96, {prototypes:,} prototypes, {precision}, batch {batch}"
    measure.report(title, results, chosen)
    measure.same(results, within=1e-3)  # the authors' style sums 18 pairs one by one


def build(make: Callable[..., Contender], prototypes: int, precision: str, batch: int) -> Work:
    """One contender with the weights of seed 0; its loss is computed in fp32 before training."""
    config = replace(vit_small(), prototypes=prototypes, drop_path=0.0, pos_interp="antialias", freeze_last_layer=0)
    torch.manual_seed(0)
    method = DINO(config)
    crops = [torch.randn(batch, 3, side, side) for side in (224,) * 2 + (96,) * 8]
    return work(make(method, crops), precision, after="clip, AdamW, average")


def ours(method: DINO, crops: list[Tensor]) -> Contender:
    method.train()
    return Contender(lambda: method({"views": crops}, 0.0)["loss"], as_fit(method))


def plain(method: DINO, crops: list[Tensor]) -> Contender:
    from plain_dino import PlainDINO, average, clip_tensors

    model = PlainDINO(method)
    optimizer = torch.optim.AdamW(decay_groups(model.student, 0.04), lr=5e-4)

    def update() -> None:
        clip_tensors(model.student, 3.0)
        optimizer.step()
        optimizer.zero_grad()
        average(model.teacher, model.student, MOMENTUM)

    return Contender(lambda: model(crops), update)


def lightly(method: DINO, crops: list[Tensor]) -> Contender:
    from lightly_dino import LightlyDINO

    model = LightlyDINO(method)
    optimizer = torch.optim.AdamW(decay_groups(model.student, 0.04), lr=5e-4)

    def update() -> None:
        optimizer.step()
        optimizer.zero_grad()
        model.follow(MOMENTUM)

    return Contender(lambda: model(crops), update)


if __name__ == "__main__":
    main()
