"""The training step of BERT-base (masked language modelling) and T5-small (span corruption), ours and transformers', on
the same weights and batches, without dropout.

The parts are forward + backward, and what follows: ours as `ssl_core.train.fit` does it, transformers' as its `Trainer`.
BERT has 15 % of its tokens masked; transformers' head works on all of them, ours on those.
"""

from __future__ import annotations

import dataclasses
import tempfile
from collections.abc import Callable, Iterator
from typing import Any

import measure
import numpy as np
import torch
from measure import Case, Settings, Work
from torch import Tensor, nn

from ssl_core.data.loader import collate
from ssl_core.device import autocast, keep_freed_memory
from ssl_core.method import Recipe, load
from ssl_core.train.fit import gradient_norm
from ssl_core.train.optim import build_optimizer, decay_groups
from ssl_lm.config import BERT_RECIPE, T5_RECIPE

MODELS = {"bert": (BERT_RECIPE, "base", 128), "t5": (T5_RECIPE, "small", 256)}
CPU = torch.device("cpu")
IGNORED = -100


def main() -> None:
    flags = measure.parser(__doc__)
    flags.add_argument("--models", nargs="+", choices=[*MODELS], default=[*MODELS])
    flags.add_argument("--precision", choices=("fp32", "bf16"), default="fp32")
    flags.add_argument("--batch", type=int, default=4, help="texts")
    args = flags.parse_args()
    chosen = measure.settings(args)
    for model in args.models:
        compare(model, args.precision, args.batch, chosen)


def compare(model: str, precision: str, batch: int, chosen: Settings) -> None:
    """Print the table of one model. Raises SystemExit when the losses differ."""
    shared = (model, precision, batch)
    cases = [
        Case("ours", build, (ours, *shared)),
        Case("transformers", build, (transformers, *shared), ("transformers",)),
    ]
    results = measure.race(cases, chosen)
    _, preset, context = MODELS[model]
    measure.report(f"{model} {preset}, {precision}, {batch} x {context} tokens", results, chosen)
    losses = {result.case: result.facts["loss"] for result in results if not result.missing}
    if max(losses.values()) - min(losses.values()) > 1e-4:
        raise SystemExit(f"the contenders do not compute the same loss from the same weights: {losses}")


def build(make: Callable[..., Any], model: str, precision: str, batch: int) -> Work:
    """One contender with the weights of seed 0; its loss is computed in fp32 before anything is trained."""
    recipe, preset, context = MODELS[model]
    config = dataclasses.replace(load(recipe.presets)[preset](), context=context, dropout=0.0)
    torch.manual_seed(0)
    method = load(recipe.method)(config).train()
    loss_of, update = make(method, samples(recipe, config, batch))
    with torch.no_grad():
        loss = round(float(loss_of()), 5)

    def run() -> Iterator[str]:
        with autocast(precision, CPU):
            loss = loss_of()
        loss.backward()
        yield "forward + backward"
        update()
        yield "optimiser"

    return Work(run, {"loss": loss})


def samples(recipe: Recipe, config: Any, batch: int) -> dict[str, Tensor]:
    """A batch of random text as the method's view makes it, one document a row."""
    view, rng = load(recipe.views)(config), np.random.default_rng(0)
    window = config.window
    texts = [torch.from_numpy(rng.integers(1000, 30000, window)) for _ in range(batch)]
    documents = torch.zeros(window, dtype=torch.int64)
    made = collate([view({"input_ids": text, "documents": documents}, rng) for text in texts])
    return {key: value for key, value in made.items() if "documents" not in key}


def ours(method: Any, batch: dict[str, Tensor]) -> tuple[Callable[[], Tensor], Callable[[], None]]:
    """What `fit` does with a batch."""
    keep_freed_memory()
    optimizer = build_optimizer(method, method.config)

    def update() -> None:
        if not torch.isfinite(gradient_norm(method, method.config.clip_grad)):
            raise RuntimeError("the gradient is not finite")
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return lambda: method(batch, 0.0)["loss"], update


def transformers(method: Any, batch: dict[str, Tensor]) -> tuple[Callable[[], Tensor], Callable[[], None]]:
    import transformers as peer

    with tempfile.TemporaryDirectory() as folder:
        method.save_pretrained(folder)
        name = method.layout().to_theirs(method.config)["architectures"][0]
        model: Any = getattr(peer, name).from_pretrained(folder).train()
    inputs = {"input_ids": batch["input_ids"], "labels": batch["labels"]}
    if "positions" in batch:
        everywhere = torch.full_like(batch["input_ids"], IGNORED)
        inputs["labels"] = everywhere.scatter(1, batch["positions"], batch["labels"])
    optimizer = torch.optim.AdamW(decay_groups(model, 0.01), lr=1e-4, fused=True)

    def update() -> None:
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()

    return lambda: model(**inputs).loss, update


if __name__ == "__main__":
    main()
