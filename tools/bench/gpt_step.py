"""GPT-2's training step: ours, transformers' and a plain module's, on the same weights and tokens.

After the backward pass, ours and transformers' clip and step the fused AdamW; the plain script
clips and steps torch's default AdamW. Small batches overstate the optimiser, so for a large run
`forward + backward` is what counts.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from typing import Any

import measure
import torch
from measure import Case, Settings, Work
from plain_gpt import PlainGPT, turned
from step import Contender, as_fit, as_trainer, follow, work
from torch import Tensor

from ssl_lm.config import PRESETS
from ssl_lm.gpt import GPT
from ssl_train.optim import decay_groups


def main() -> None:
    flags = measure.parser(__doc__)
    flags.add_argument("--preset", choices=[name for name in PRESETS["gpt"] if name.startswith("gpt2")], default="gpt2")
    flags.add_argument("--precisions", nargs="+", choices=["fp32", "bf16"], default=["fp32", "bf16"])
    flags.add_argument("--batch", type=int, default=4)
    flags.add_argument("--tokens", type=int, default=256)
    args = flags.parse_args()
    for precision in args.precisions:
        compare(args.preset, precision, args.batch, args.tokens, measure.settings(args))


def compare(preset: str, precision: str, batch: int, tokens: int, chosen: Settings) -> None:
    """Print the table of one precision. Raises SystemExit when the losses differ."""
    shared = (preset, precision, batch, tokens)
    results = measure.race(
        [
            Case("ours", build, (ours, *shared)),
            Case("transformers", build, (transformers, *shared), ("transformers",)),
            Case("plain", build, (plain, *shared)),
        ],
        chosen,
    )
    measure.report(f"GPT step, {preset}, {precision}, batch {batch} of {tokens} tokens", results, chosen)
    measure.same(results, within=1e-5)


def build(make: Callable[..., Contender], preset: str, precision: str, batch: int, tokens: int) -> Work:
    """One contender with the weights of seed 0; its loss is computed in fp32 before training."""
    torch.manual_seed(0)
    method = GPT(PRESETS["gpt"][preset]())
    ids = torch.randint(50257, (batch, tokens + 1))
    return work(make(method, ids), precision)


def ours(method: GPT, ids: Tensor) -> Contender:
    return Contender(lambda: method({"input_ids": ids}, 0.0)["loss"], as_fit(method))


def transformers(method: GPT, ids: Tensor) -> Contender:
    from transformers import GPT2LMHeadModel

    with tempfile.TemporaryDirectory() as folder:
        method.save_pretrained(folder)
        model: Any = GPT2LMHeadModel.from_pretrained(folder).train()
    targets = ids[:, 1:].contiguous()
    return Contender(lambda: model(ids[:, :-1], labels=targets, shift_labels=targets).loss, as_trainer(model, 0.1))


def plain(method: GPT, ids: Tensor) -> Contender:
    model = PlainGPT(method.config)
    model.load_state_dict(turned(method.state_dict()))
    optimizer = torch.optim.AdamW(decay_groups(model, 0.1), lr=1e-4, betas=(0.9, 0.95))
    return Contender(lambda: model(ids), lambda: follow(optimizer, model))


if __name__ == "__main__":
    main()
