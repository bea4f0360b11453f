"""The training steps of BERT-base and T5-small: ours and transformers', without dropout.

Weights and batches are the same. Both models use AdamW and clip the gradient; T5's own optimiser
would be Adafactor. The parts are forward + backward, and what follows: ours as in `ssl_train.fit`,
transformers' as in its `Trainer`. 15 % of BERT's tokens are masked; transformers' head computes all
positions, ours the masked ones.
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

from ssl_core.hub.layout import layout_of
from ssl_core.method import Recipe, load
from ssl_lm.config import RECIPES
from ssl_train.data.loader import collate

MODELS = {"bert": (RECIPES["bert"], "base", 128), "t5": (RECIPES["t5"], "small", 256)}
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
    measure.same(results, within=1e-4)


def build(make: Callable[..., Contender], model: str, precision: str, batch: int) -> Work:
    """One contender with the weights of seed 0; its loss is computed in fp32 before training."""
    recipe, preset, context = MODELS[model]
    settings: dict[str, Any] = {"context": context, "dropout": 0.0, "optimizer": "adamw", "clip_grad": 1.0}
    config = dataclasses.replace(recipe.presets[preset](), **settings)
    torch.manual_seed(0)
    method = load(recipe.method)(config).train()
    return work(make(method, samples(recipe, config, batch)), precision)


def samples(recipe: Recipe, config: Any, batch: int) -> dict[str, Tensor]:
    """A batch of random text from the method's own view, one document per row."""
    view, rng = load(recipe.views)(config), np.random.default_rng(0)
    window = config.window
    texts = [torch.from_numpy(rng.integers(1000, 30000, window)) for _ in range(batch)]
    documents = torch.zeros(window, dtype=torch.int64)
    made = collate([view({"input_ids": text, "documents": documents}, rng) for text in texts])
    return {key: value for key, value in made.items() if "documents" not in key}


def ours(method: Any, batch: dict[str, Tensor]) -> Contender:
    return Contender(lambda: method(batch, 0.0)["loss"], as_fit(method))


def transformers(method: Any, batch: dict[str, Tensor]) -> Contender:
    import transformers as peer

    with tempfile.TemporaryDirectory() as folder:
        method.save_pretrained(folder)
        name = layout_of(method).to_theirs(method.config)["architectures"][0]
        model: Any = getattr(peer, name).from_pretrained(folder).train()
    inputs = {"input_ids": batch["input_ids"], "labels": batch["labels"]}
    if "positions" in batch:
        everywhere = torch.full_like(batch["input_ids"], IGNORED)
        inputs["labels"] = everywhere.scatter(1, batch["positions"], batch["labels"])
    return Contender(lambda: model(**inputs).loss, as_trainer(model, 0.01))


if __name__ == "__main__":
    main()
