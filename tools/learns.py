"""What the methods learn: three seeds, last epoch, against pixels, colours and the untrained network.

    tox -e learns                                          every method on the built-in scenes
    tox -e learns -- mae --data torchvision:CIFAR10 --preset vit_tiny --set image_size=32 patch_size=4

Gate: the linear probe of the pretrained encoder, by the rule of `gate.py`. Runs are kept below --out and resumed;
the table that is printed belongs into docs/benchmarks.md.
"""

from __future__ import annotations

import dataclasses
import json
import time
from pathlib import Path
from typing import Any

from gate import cell, changed, flags, verdict

from ssl_beit.config import RECIPES as BEIT
from ssl_contrastive.config import RECIPES as CONTRASTIVE
from ssl_core.device import pick_device, seed_step
from ssl_core.method import Recipe, load
from ssl_dino.config import RECIPES as DINO
from ssl_mae.config import RECIPES as MAE
from ssl_pretext.config import RECIPES as PRETEXT
from ssl_train.data.split import Opened
from ssl_train.evaluate.evaluate import evaluate
from ssl_train.evaluate.features import histogram, pixels
from ssl_train.run import train

RECIPES = MAE | CONTRASTIVE | {"dino": DINO["dino"], "beit": BEIT["beit"]} | PRETEXT
BASELINES = ("random init", "raw pixels", "colour histogram")


def main() -> None:
    parser = flags(__doc__, "runs/learns")
    parser.add_argument("method", nargs="?", choices=[*RECIPES, "all"], default="all")
    parser.add_argument("--data", help="as for train; the built-in scenes by default")
    parser.add_argument("--preset", default="demo")
    args = parser.parse_args()
    for name in RECIPES if args.method == "all" else [args.method]:
        config = changed(RECIPES[name].preset(args.preset), args.set)
        runs = [one_seed(RECIPES[name], config, seed, args.data, args.out / name / str(seed)) for seed in args.seeds]
        print("\n" + table(name, runs))


def one_seed(recipe: Recipe, config: Any, seed: int, data: str | None, out: Path) -> dict[str, Any]:
    """Train and evaluate one seed: {"minutes", "rows": {features: {"linear", "knn", "fewshot"}}}."""
    config = dataclasses.replace(config, seed=seed)
    start = time.perf_counter()
    method = train(recipe, config, data=data, out=out)
    minutes = (time.perf_counter() - start) / 60
    train_data, test_data, _ = Opened(recipe, config, data).labelled()
    seed_step(seed)
    fresh = load(recipe.method)(method.config).eval()
    encoders = {"pretrained": method.encode, "random init": fresh.encode,
                "raw pixels": pixels, "colour histogram": histogram}  # fmt: skip
    view = load(recipe.eval_view)(method.config)
    result = evaluate(encoders, train_data, test_data, view, data=data or "scenes", device=pick_device())
    (out / "evaluation.json").write_text(json.dumps(result, indent=1))
    rows = {row["features"]: row | {"fewshot": row["fewshot"]["mean"]} for row in result["rows"]}
    print(f"seed {seed}: " + ", ".join(f"{k} {v['linear']:.3f}" for k, v in rows.items()), flush=True)
    return {"minutes": minutes, "rows": rows}


def table(name: str, runs: list[dict[str, Any]]) -> str:
    """Markdown: mean ± standard deviation over the seeds in percent, and whether the gate holds."""
    lines = [f"| {name} | linear | k-NN | 5-shot |", "| --- | --- | --- | --- |"]
    for features in ("pretrained", *BASELINES):
        cells = [cell([run["rows"][features][key] for run in runs]) for key in ("linear", "knn", "fewshot")]
        lines.append(f"| {features} | {' | '.join(cells)} |")
    linear = {features: [run["rows"][features]["linear"] for run in runs] for features in ("pretrained", *BASELINES)}
    minutes = ", ".join(f"{run['minutes']:.1f}" for run in runs)
    lines.append(f"\n{verdict(linear.pop('pretrained'), [*linear.values()])}; {minutes} minutes a run")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
