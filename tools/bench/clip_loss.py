"""CLIP's and SigLIP's losses with gradients: ours, open_clip's and transformers'.

There are 8,192 pairs of width 512.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import measure
import torch
import torch.nn.functional as F
from measure import Case, Work
from torch import Tensor

from ssl_clip.loss import clip_loss, siglip_loss

Loss = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]


def main() -> None:
    flags = measure.parser(__doc__)
    flags.add_argument("--pairs", type=int, default=8192)
    flags.add_argument("--width", type=int, default=512)
    args = flags.parse_args()
    chosen = measure.settings(args)
    size = (args.pairs, args.width)
    peers = [("open_clip", of_open_clip, ("open_clip",)), ("transformers", of_transformers, ("transformers",))]
    subjects = {
        "CLIP's loss": [("ours", ours, ()), *peers],
        "SigLIP's loss": [("ours", our_siglip, ()), ("open_clip", open_clip_siglip, ("open_clip",))],
    }
    for title, cases in subjects.items():
        results = measure.race([Case(name, loss_step, (loss, *size), needs) for name, loss, needs in cases], chosen)
        measure.report(f"{title}, {size[0]} x {size[1]}, fp32", results, chosen)
        measure.same(results, "loss of 256", within=1e-4)


def loss_step(loss: Loss, pairs: int, width: int) -> Work:
    generator = torch.Generator().manual_seed(0)
    image, text = F.normalize(torch.randn(2, pairs, width, generator=generator), dim=2)
    leaves = [x.clone().requires_grad_() for x in (image, text, torch.tensor(14.3), torch.tensor(-10.0))]
    with torch.no_grad():
        value = loss(*(x[:256] if x.ndim else x for x in leaves)).item()

    def run() -> Iterator[str]:
        loss(*leaves).backward()
        for leaf in leaves:
            leaf.grad = None
        yield "loss"

    return Work(run, {"loss of 256": round(value, 6)})


def ours(image: Tensor, text: Tensor, scale: Tensor, bias: Tensor) -> Tensor:
    return clip_loss(image, text, scale)


def of_open_clip(image: Tensor, text: Tensor, scale: Tensor, bias: Tensor) -> Tensor:
    from open_clip.loss import ClipLoss

    return ClipLoss()(image, text, scale)


def of_transformers(image: Tensor, text: Tensor, scale: Tensor, bias: Tensor) -> Tensor:
    from transformers.models.clip.modeling_clip import image_text_contrastive_loss

    return image_text_contrastive_loss(text @ image.t() * scale)


def our_siglip(image: Tensor, text: Tensor, scale: Tensor, bias: Tensor) -> Tensor:
    return siglip_loss(image, text, scale, bias)


def open_clip_siglip(image: Tensor, text: Tensor, scale: Tensor, bias: Tensor) -> Tensor:
    from open_clip.loss import SigLipLoss

    return SigLipLoss()(image, text, scale, bias)


if __name__ == "__main__":
    main()
