"""What CLIP learns of the captioned scenes: three seeds on pictures of combinations that were never trained on.

    python tools/learns_pairs.py
    python tools/learns_pairs.py --set loss='"siglip"' --out runs/learns-siglip

Zero-shot top-1 over the 16 classes of the main object, and recall both ways among the held-out captions, against chance
and against the class of the nearest training picture in pixels. Gate: zero-shot above that baseline, and every recall
above chance, by more than three times the spread of the seeds. The order of words is reported apart. Runs are kept below
--out and resumed; the table that is printed belongs into docs/benchmarks.md.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import statistics
import time
from pathlib import Path
from typing import Any

import torch

from ssl_clip.config import RECIPE, demo
from ssl_clip.measure import measure
from ssl_clip.pairs import open_pairs
from ssl_core.config import from_dict, to_dict
from ssl_core.data.views import eval_view
from ssl_core.evaluate.features import extract, pixels
from ssl_core.train.run import train

ROWS: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("zero-shot top-1, 16 classes", ("zero_shot", "top1")),
    *((f"{way.replace('_', ' ')} {top}", ("retrieval", way, top))
      for way in ("image_to_text", "text_to_image") for top in ("R@1", "R@5", "R@10")),
    ("objects swapped", ("order", "objects_swapped")),
    ("relation reversed", ("order", "relation_reversed")),
)  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--set", nargs="+", default=[], metavar="FIELD=JSON", help="settings other than the demo's")
    parser.add_argument("--out", type=Path, default=Path("runs/learns-pairs"))
    args = parser.parse_args()
    settings = {key: json.loads(value) for key, value in (pair.split("=", 1) for pair in args.set)}
    config = from_dict(type(demo()), to_dict(demo()) | settings)
    runs = [one_seed(config, seed, args.out / str(seed)) for seed in args.seeds]
    print(table(runs, nearest_pixels(config)))


def one_seed(config: Any, seed: int, out: Path) -> dict[str, Any]:
    """Figures of one seed and the minutes that its training took."""
    start = time.perf_counter()
    method = train(RECIPE, dataclasses.replace(config, seed=seed), data=None, out=out)
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
    """Markdown: mean ± standard deviation over the seeds in percent, beside chance, and whether the gate holds."""
    lines, holds = ["| held-out combinations | CLIP | chance | nearest pixels |", "| --- | --- | --- | --- |"], True
    for name, keys in ROWS:
        values = [_get(run, keys) for run in runs]
        mean, spread = statistics.mean(values), statistics.pstdev(values)
        if keys[0] == "retrieval":
            chance, baseline = _get(runs[0], (*keys[:2], f"chance_{keys[2]}")), 0.0
        else:
            chance, baseline = (1 / 16, pixels_top1) if keys[0] == "zero_shot" else (0.5, 0.0)
        shown = f"{100 * pixels_top1:.1f}" if keys[0] == "zero_shot" else "-"
        lines.append(f"| {name} | {100 * mean:.1f} ± {100 * spread:.1f} | {100 * chance:.1f} | {shown} |")
        holds &= keys[0] == "order" or mean - max(chance, baseline) > 3 * spread
    minutes = ", ".join(f"{run['minutes']:.1f}" for run in runs)
    lines.append(f"\nthe gate {'holds' if holds else 'DOES NOT HOLD'}; {minutes} minutes a run")
    return "\n".join(lines)


def _get(run: dict[str, Any], keys: tuple[str, ...]) -> float:
    value: Any = run
    for key in keys:
        value = value[key]
    return value


if __name__ == "__main__":
    main()
