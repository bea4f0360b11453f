"""What CLIP learns of the captioned scenes: three seeds on pictures of combinations that were never trained on.

    python tools/learns_pairs.py
    python tools/learns_pairs.py --set loss='"siglip"' --out runs/learns-siglip

Zero-shot top-1 over the 16 classes of the main object, and recall both ways among the held-out captions, against chance
and against the class of the nearest training picture in pixels. Gate: zero-shot above that baseline, and every recall
above chance, by the rule of `gate.py`. The order of words is reported apart. Runs are kept below
--out and resumed; the table that is printed belongs into docs/benchmarks.md.
"""

from __future__ import annotations

import dataclasses
import json
import time
from pathlib import Path
from typing import Any

import torch
from gate import cell, changed, flags, verdict

from ssl_clip.config import RECIPES, demo
from ssl_clip.measure import measure
from ssl_clip.pairs import open_pairs
from ssl_train.data.views import eval_view
from ssl_train.evaluate.features import extract, pixels
from ssl_train.run import train

ROWS: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("zero-shot top-1, 16 classes", ("zero_shot", "top1")),
    *((f"{way.replace('_', ' ')} {top}", ("retrieval", way, top))
      for way in ("image_to_text", "text_to_image") for top in ("R@1", "R@5", "R@10")),
    ("objects swapped", ("order", "objects_swapped")),
    ("relation reversed", ("order", "relation_reversed")),
)  # fmt: skip


def main() -> None:
    args = flags(__doc__, "runs/learns-pairs").parse_args()
    config = changed(demo(), args.set)
    runs = [one_seed(config, seed, args.out / str(seed)) for seed in args.seeds]
    print(table(runs, nearest_pixels(config)))


def one_seed(config: Any, seed: int, out: Path) -> dict[str, Any]:
    """Figures of one seed and the minutes that its training took."""
    start = time.perf_counter()
    method = train(RECIPES["clip"], dataclasses.replace(config, seed=seed), data=None, out=out)
    minutes = (time.perf_counter() - start) / 60
    figures = measure(method, method.attach(open_pairs(None, config=method.config, split="test")))
    print(f"seed {seed}, {minutes:.1f} minutes:", *figures["summary"], sep="\n  ", flush=True)
    (out / "measured.json").write_text(json.dumps({**figures, "minutes": minutes}, indent=1))
    return {**figures, "minutes": minutes}


def nearest_pixels(config: Any) -> float:
    """Share of test pictures whose nearest training picture, in pixels, has their class."""
    sources = [open_pairs(None, config=config, split=split) for split in ("train", "test")]
    train_pixels, test_pixels = (extract(pixels, source, eval_view(config)) for source in sources)
    nearest = torch.cdist(test_pixels.features, train_pixels.features).argmin(1)
    assert train_pixels.labels is not None and test_pixels.labels is not None
    return (train_pixels.labels[nearest] == test_pixels.labels).float().mean().item()


def table(runs: list[dict[str, Any]], pixels_top1: float) -> str:
    """Markdown: mean ± standard deviation over the seeds in percent, beside chance, and a verdict on every gate."""
    lines, verdicts = ["| held-out combinations | CLIP | chance | nearest pixels |", "| --- | --- | --- | --- |"], []
    for name, keys in ROWS:
        values, top = [_get(run, keys) for run in runs], keys[-1]
        chance = {"retrieval": _get(runs[0], (*keys[:2], f"chance_{top}")) if "R@" in top else 0.0,
                  "zero_shot": 1 / 16, "order": 0.5}[keys[0]]  # fmt: skip
        pixels = f"{100 * pixels_top1:.1f}" if keys[0] == "zero_shot" else "-"
        lines.append(f"| {name} | {cell(values)} | {100 * chance:.1f} | {pixels} |")
        if keys[0] != "order":
            baseline = max(chance, pixels_top1) if keys[0] == "zero_shot" else chance
            verdicts.append(f"{name}: {verdict(values, [[baseline] * len(values)])}")
    minutes = ", ".join(f"{run['minutes']:.1f}" for run in runs)
    return "\n".join([*lines, "", *verdicts, f"{minutes} minutes a run"])


def _get(run: dict[str, Any], keys: tuple[str, ...]) -> float:
    value: Any = run
    for key in keys:
        value = value[key]
    return value


if __name__ == "__main__":
    main()
