"""BEiT's training step at 224 pixels: ours and transformers', with the same weights and inputs.

Both get the visual tokens as input, because the tokenizer's pass costs both the same; `dvae_step`
measures it. The parts are forward + backward, and what follows: `ssl_train.fit` clips at 3,
transformers' Trainer at 1, and both step the fused AdamW.
"""

from __future__ import annotations

import dataclasses
import tempfile
from collections.abc import Callable
from typing import Any

import measure
import numpy as np
import torch
from measure import Case, Settings, Work
from step import Contender, as_fit, as_trainer, work
from torch import Tensor

from ssl_beit.beit import BEiT
from ssl_beit.config import PRESETS
from ssl_beit.masking import block_mask

CPU = torch.device("cpu")


def main() -> None:
    flags = measure.parser(__doc__)
    flags.add_argument("--presets", nargs="+", choices=[*PRESETS["beit"]], default=["vit_base"])
    flags.add_argument("--precisions", nargs="+", choices=["fp32", "bf16"], default=["fp32", "bf16"])
    flags.add_argument("--batch", type=int, default=4, help="images")
    args = flags.parse_args()
    chosen = measure.settings(args)
    for preset in args.presets:
        for precision in args.precisions:
            compare(preset, precision, args.batch, chosen)


def compare(preset: str, precision: str, batch: int, chosen: Settings) -> None:
    """Print the table of one model in one precision. Raises SystemExit when the losses differ."""
    shared = (preset, precision, batch)
    results = measure.race(
        [Case("ours", build, (ours, *shared)), Case("transformers", build, (transformers, *shared), ("transformers",))],
        chosen,
    )
    measure.report(f"BEiT step, {preset}, {precision}, batch {batch}", results, chosen)
    measure.same(results, within=1e-5)


def build(make: Callable[..., Contender], preset: str, precision: str, batch: int) -> Work:
    """One contender with the weights of seed 0; its loss is computed in fp32 before training."""
    config = dataclasses.replace(PRESETS["beit"][preset](), tokenizer=None, tokenizer_hidden=0, drop_path=0.0)
    torch.manual_seed(0)
    method = BEiT(config)
    images = torch.randn(batch, config.in_channels, *config.size)
    rng = np.random.default_rng(0)
    drawn = [block_mask(*config.grid, config.mask_patches, rng, smallest=config.mask_block) for _ in range(batch)]
    mask = torch.from_numpy(np.stack(drawn)).flatten(1)
    return work(make(method, images, mask, torch.randint(config.vocab, (batch, *config.grid))), precision)


def ours(method: BEiT, images: Tensor, mask: Tensor, tokens: Tensor) -> Contender:
    method.train()
    method.tokenize = lambda pixels: pixels  # type: ignore[method-assign]
    batch = {"views": [images, tokens], "mask": mask}
    return Contender(lambda: method(batch, 0.0)["loss"], as_fit(method))


def transformers(method: BEiT, images: Tensor, mask: Tensor, tokens: Tensor) -> Contender:
    from transformers import BeitForMaskedImageModeling

    with tempfile.TemporaryDirectory() as folder:
        method.save_pretrained(folder)
        model: Any = BeitForMaskedImageModeling.from_pretrained(folder).train()
    labels = tokens.flatten(1)[mask]
    return Contender(lambda: model(images, bool_masked_pos=mask, labels=labels).loss, as_trainer(model, 0.05))


if __name__ == "__main__":
    main()
