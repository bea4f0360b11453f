"""The training steps of the pretext tasks, and the conversion to Lab beside scikit-image's.

No maintained library has these tasks. So we compare our jigsaw with two plain ways to write it: an
encoder call for every tile of every order, and one call for all tiles of all orders. All three
compute the same loss from the same weights.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import measure
import numpy as np
import torch
from measure import Case, Settings, Work
from torch import Tensor

from ssl_core.method import load
from ssl_pretext.config import RECIPES
from ssl_pretext.jigsaw import jigsaw_loss, shuffle
from ssl_train.data.loader import collate

BACKBONE = "resnet18"


def main() -> None:
    flags = measure.parser(__doc__)
    flags.add_argument("--batch", type=int, default=8, help="images of a step")
    flags.add_argument("--orders", type=int, default=8, help="orders asked about each image")
    args = flags.parse_args()
    chosen = measure.settings(args)
    steps(args.batch, chosen)
    orders(args.batch, args.orders, chosen)
    colours(args.batch, chosen)


def steps(batch: int, chosen: Settings) -> None:
    """Forward and backward of every task with its published head and sizes."""
    cases = [Case(name, build_step, (name, batch)) for name in RECIPES]
    measure.report(f"Steps of the pretext tasks, {BACKBONE}, batch {batch}", measure.race(cases, chosen), chosen)


def orders(batch: int, number: int, chosen: Settings) -> None:
    """The same jigsaw loss computed in three ways. Raises SystemExit when they differ."""
    cases = [
        Case("ours, 1 order", build_orders, ("features", batch, 1)),
        Case(f"ours, {number} orders", build_orders, ("features", batch, number)),
        Case(f"all tiles of {number} orders", build_orders, ("pixels", batch, number)),
        Case(f"a call a tile, {number} orders", build_orders, ("calls", batch, number)),
    ]
    results = measure.race(cases, chosen)
    measure.report(f"Jigsaw, {BACKBONE}, batch {batch}", results, chosen)
    measure.same(results[1:], within=1e-4)


def colours(batch: int, chosen: Settings) -> None:
    """Convert a batch of 224 x 224 images from sRGB to Lab."""
    cases = [Case("ours", build_lab, (True, batch)), Case("scikit-image", build_lab, (False, batch), ("skimage",))]
    measure.report(f"sRGB to Lab, {batch} images of 224 x 224, fp32", measure.race(cases, chosen), chosen)


def settings(recipe: Any, **fields: Any) -> Any:
    return load(recipe.config)(backbone=BACKBONE, **fields)


def drawn(recipe: Any, config: Any, batch: int) -> dict[str, Any]:
    """A batch of noise from the method's own view."""
    view, rng = load(recipe.views)(config), np.random.default_rng(0)
    images = torch.randint(0, 256, (batch, 3, 256, 256), dtype=torch.uint8)
    return collate([view({"image": image}, rng) for image in images])


def build_step(name: str, batch: int) -> Work:
    recipe = RECIPES[name]
    torch.manual_seed(0)
    config = settings(recipe)
    method, data = load(recipe.method)(config).train(), drawn(recipe, config, batch)

    def run() -> Iterator[str]:
        method(data, 0.0)["loss"].backward()
        method.zero_grad()
        yield "forward + backward"

    return Work(run)


def build_orders(how: str, batch: int, number: int) -> Work:
    torch.manual_seed(0)
    recipe = RECIPES["jigsaw"]
    config = settings(recipe, orders_per_image=number, dropout=0.0)
    method, data = (
        load(recipe.method)(config).eval(),
        drawn(recipe, config, batch),
    )  # eval mode, because batch norm sees different batches
    tiles, asked = data["views"][0], data["orders"]
    seen = []
    hook = method.encoder.register_forward_hook(lambda module, inputs, output: seen.append(len(output)))

    def loss() -> Tensor:
        if how == "features":
            return method(data, 0.0)["loss"]
        shown = torch.cat([shuffle(tiles, method.permutations[column]) for column in asked.T])
        if how == "pixels":
            return jigsaw_loss(method.logits(shown), asked.T.flatten())
        from ssl_pretext.tiles import embed_tiles

        features = [embed_tiles(method.encoder, method.embed, shown[:, k : k + 1])[:, 0] for k in range(9)]
        return jigsaw_loss(method.head(torch.cat(features, 1)), asked.T.flatten())

    with torch.no_grad():
        value = round(float(loss()), 5)
    hook.remove()
    labels = asked.numel()

    def run() -> Iterator[str]:
        loss().backward()
        method.zero_grad()
        yield "forward + backward"

    return Work(run, {"loss": value, "tiles encoded": sum(seen), "labels": labels, "tiles a label": sum(seen) / labels})


def build_lab(ours: bool, batch: int) -> Work:
    images = torch.rand(batch, 3, 224, 224, generator=torch.Generator().manual_seed(0))

    def run() -> Iterator[str]:
        if ours:
            from ssl_pretext import rgb_to_lab

            rgb_to_lab(images)
        else:
            from skimage.color import rgb2lab

            rgb2lab(images.permute(0, 2, 3, 1).numpy())
        yield "conversion"

    return Work(run)


if __name__ == "__main__":
    main()
