"""Forward and backward of CLIP ViT-B/32: ours, open_clip's and transformers'.

Weights and pairs are the same.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import measure
import torch
from measure import Case, Work
from safetensors.torch import load_file
from torch import Tensor

from ssl_clip.clip import CLIP
from ssl_clip.config import vit_b32
from ssl_clip.convert_open_clip import to_theirs as open_clip_layout
from ssl_core.device import autocast


def main() -> None:
    flags = measure.parser(__doc__)
    flags.add_argument("--batch", type=int, default=8)
    flags.add_argument("--precisions", nargs="+", choices=("fp32", "bf16"), default=["fp32", "bf16"])
    args = flags.parse_args()
    chosen = measure.settings(args)
    for precision in args.precisions:
        cases = [
            Case("ours", step, (ours, args.batch, precision)),
            Case("open_clip", step, (of_open_clip, args.batch, precision), ("open_clip",)),
            Case("transformers", step, (of_transformers, args.batch, precision), ("transformers",)),
        ]
        results = measure.race(cases, chosen)
        measure.report(f"CLIP ViT-B/32, {precision}, batch {args.batch}", results, chosen)
        measure.same(results, within=1e-4)


def step(build: Callable[[], tuple[Any, Callable[..., Tensor]]], batch: int, precision: str) -> Work:
    torch.manual_seed(0)
    model, loss = build()
    generator = torch.Generator().manual_seed(1)
    images = torch.randn(batch, 3, 224, 224, generator=generator)
    ids = torch.randint(1, 40000, (batch, 77), generator=generator)
    ids[:, 30] = 49407
    with torch.no_grad():
        first = round(loss(images, ids).item(), 5)

    def run() -> Iterator[str]:
        with autocast(precision, torch.device("cpu")):
            value = loss(images, ids)
        value.backward()
        model.zero_grad(set_to_none=True)
        yield "step"

    return Work(run, {"loss": first})


def _clip() -> CLIP:
    torch.manual_seed(0)
    return CLIP(vit_b32()).train()


def ours() -> tuple[Any, Callable[..., Tensor]]:
    clip = _clip()
    return clip, lambda images, ids: clip({"views": [images], "input_ids": ids}, 0.0)["loss"]


def of_open_clip() -> tuple[Any, Callable[..., Tensor]]:
    import open_clip
    from open_clip.loss import ClipLoss

    clip = _clip()
    state, values, _ = open_clip_layout(clip.state_dict(), clip.config)
    config = values["model_cfg"]
    model = open_clip.model.CLIP(config["embed_dim"], config["vision_cfg"], config["text_cfg"], quick_gelu=True)
    model.load_state_dict(state)

    def loss(images: Tensor, ids: Tensor) -> Tensor:
        image, text, scale = model(images, ids)
        return ClipLoss()(image, text, scale)

    return model.train(), loss


def of_transformers() -> tuple[Any, Callable[..., Tensor]]:
    import transformers

    with tempfile.TemporaryDirectory() as folder:
        _clip().save_pretrained(folder)
        config = transformers.CLIPConfig.from_dict(json.loads(Path(folder, "config.json").read_text("utf-8")))
        model = transformers.CLIPModel(config)
        model.load_state_dict(load_file(Path(folder, "model.safetensors")))
    return model.train(), lambda images, ids: model(pixel_values=images, input_ids=ids, return_loss=True).loss


if __name__ == "__main__":
    main()
