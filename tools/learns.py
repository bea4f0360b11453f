"""What the methods learn: three seeds of a short run, judged on held-out data, beside baselines.

    python tools/learns.py               every method, on its built-in data
    python tools/learns.py mae dino      some of them
    python tools/learns.py mae --data torchvision:CIFAR10 --preset vit_tiny --set patch_size=4
    python tools/learns.py clip --set loss='"siglip"' --out runs/learns-siglip

| method | judged by | must beat |
| --- | --- | --- |
| image methods | a linear probe of `encode` | random init, raw pixels, colour histogram |
| clip | zero-shot top-1; recall both ways | chance; the nearest training image |
| gpt | bits per byte | unigrams, 3-grams |
| bert, t5 | accuracy at the hidden tokens | the most frequent token |

GPT's table also has a plain script that trains for the same CPU time.

A gate holds if the mean over three seeds beats every baseline's mean by more than three times the
spread. With fewer seeds there is no verdict.

The figures of each seed are kept in --out beside its settings, and are not measured again. Copy the
printed table to docs/benchmarks.md.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from projects import methods

from ssl_core.config import from_dict, to_dict
from ssl_core.device import pick_device, seed_step
from ssl_core.method import Recipe, load
from ssl_train.data.sources import attach
from ssl_train.data.views import eval_view
from ssl_train.evaluate.evaluate import evaluate
from ssl_train.evaluate.features import extract, histogram, pixels
from ssl_train.opened import Opened
from ssl_train.options import RunOptions
from ssl_train.run import train

SEEDS = 3
RECIPES: dict[str, Recipe] = {
    name: recipe
    for project in methods().values()
    for name, recipe in load(f"{project.module.name}.config:RECIPES").items()
    if recipe.views  # the others are not trained here
}
Figures = dict[str, Any]


def main() -> None:
    parser = flags(__doc__, "runs/learns")
    parser.add_argument("methods", nargs="*", help=f"{', '.join(RECIPES)}; all by default")
    parser.add_argument("--data", help="as for train; the built-in data by default")
    parser.add_argument("--preset", default="demo")
    args = parser.parse_args()
    if unknown := set(args.methods) - set(RECIPES):
        parser.error(f"no method {', '.join(sorted(unknown))}, only {', '.join(RECIPES)}")
    for name in args.methods or RECIPES:
        recipe = RECIPES[name]
        config = recipe.settled(changed(recipe.preset(args.preset), args.set), args.data)
        runs = [one_seed(recipe, dataclasses.replace(config, seed=seed), args.data, args.out) for seed in args.seeds]
        print("\n" + TABLES.get(name, images_table)(name, runs))


def flags(description: str | None, out: str) -> argparse.ArgumentParser:
    """A parser with --seeds, --set and --out; `out` is the default of --out."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[*range(SEEDS)])
    parser.add_argument("--set", nargs="+", default=[], metavar="FIELD=JSON", help="settings other than the preset's")
    parser.add_argument("--out", type=Path, default=Path(out))
    return parser


def changed(config: Any, settings: Sequence[str]) -> Any:
    """`config` with the fields of --set."""
    fields = {key: json.loads(value) for key, value in (pair.split("=", 1) for pair in settings)}
    return from_dict(type(config), to_dict(config) | fields)


def once(file: Path, settings: Mapping[str, Any], run: Callable[[], Figures]) -> Figures:
    """The figures of `run()`, or those in `file`. SystemExit if its settings differ."""
    if file.exists():
        kept = json.loads(file.read_text("utf-8"))
        if kept["settings"] != json.loads(json.dumps(settings)):
            raise SystemExit(f"{file} has other settings: choose another --out, or remove it")
        return kept["figures"]
    figures = run()
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps({"settings": settings, "figures": figures}, indent=1), "utf-8")
    return figures


def one_seed(recipe: Recipe, config: Any, data: str | None, out: Path) -> Figures:
    """Figures of a run and of the baselines beside it, measured once and kept in `out`."""
    folder, settings = out / recipe.name / str(config.seed), {"config": to_dict(config), "data": data}
    run = once(folder.with_suffix(".json"), settings, partial(trained, recipe, config, data, folder))
    if recipe.name in BESIDE:
        file = out / f"{recipe.name}-beside" / f"{config.seed}.json"
        run |= once(file, settings, partial(BESIDE[recipe.name], config, data, run))
    print(f"seed {config.seed}, {run['minutes']:.1f} minutes:", *run["summary"], sep="\n  ", flush=True)
    return run


def trained(recipe: Recipe, config: Any, data: str | None, folder: Path) -> Figures:
    """Train: the figures on held-out data, and the minutes and CPU seconds of training."""
    # CPU seconds are compared for text, so training must not use a GPU or other processes.
    options = RunOptions(workers=0, device="cpu") if recipe.package == "ssl_lm" else RunOptions()
    wall, cpu = time.perf_counter(), time.process_time()
    method = train(recipe, config, data=data, out=folder, options=options)
    cost = {"minutes": (time.perf_counter() - wall) / 60, "cpu_seconds": time.process_time() - cpu}
    if recipe.name not in TABLES:
        return {**probed(recipe, method, data), **cost}
    assert recipe.measure is not None
    source = load(recipe.source)(data, config=method.config, split="test")
    return {**load(recipe.measure)(method, attach(method, source)), **cost}


def markdown(head: Sequence[str], rows: Mapping[str, Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *([name, *cells] for name, cells in rows.items())]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def cell(values: Sequence[float], *, scale: float = 100.0, digits: int = 1) -> str:
    """Mean ± standard deviation over the seeds; in percent by default."""
    mean, spread = scale * statistics.mean(values), scale * statistics.pstdev(values)
    return f"{mean:.{digits}f} ± {spread:.{digits}f}"


def verdict(values: Sequence[float], *baselines: Sequence[float]) -> str:
    """Whether the gate holds, for figures of which more is better; `values` has one per seed."""
    margin = statistics.mean(values) - max(map(statistics.mean, baselines))
    spread = max(map(statistics.pstdev, (values, *baselines)))
    if len(values) < SEEDS:
        return f"margin {margin:.3f}; no verdict, the gate needs {SEEDS} seeds"
    return f"margin {margin:.3f}, spread {spread:.3f}: the gate {'holds' if margin > 3 * spread else 'DOES NOT HOLD'}"


def costs(runs: list[Figures], key: str = "minutes") -> str:
    unit, digits = {"minutes": ("minutes", 1), "cpu_seconds": ("CPU seconds", 0)}[key]
    return f"{', '.join(f'{run[key]:.{digits}f}' for run in runs)} {unit} a run"


# ---------------------------------------------------------------- images


def probed(recipe: Recipe, method: Any, data: str | None) -> Figures:
    """Accuracies of frozen features: {"rows": {features: {"linear", …}}, "summary"}."""
    train_data, test_data, _ = Opened(recipe, method.config, data).labelled()
    device = pick_device()
    seed_step(method.config.seed)
    fresh = load(recipe.method)(method.config).to(device).eval()
    encoders = {"pretrained": method.encode, "random init": fresh.encode}
    encoders |= {"raw pixels": pixels, "colour histogram": histogram}
    view = load(recipe.eval_view)(method.config)
    result = evaluate(encoders, train_data, test_data, view, data=data or recipe.built_in, device=device)
    rows = {row["features"]: {**row, "fewshot": row["fewshot"]["mean"]} for row in result["rows"]}
    return {"rows": rows, "summary": [f"{name}: linear {row['linear']:.3f}" for name, row in rows.items()]}


def images_table(name: str, runs: list[Figures]) -> str:
    columns = {"linear": "linear", "k-NN": "knn", "5-shot": "fewshot"}

    def figures(features: str, key: str) -> list[float]:
        return [run["rows"][features][key] for run in runs]

    rows = {features: [cell(figures(features, key)) for key in columns.values()] for features in runs[0]["rows"]}
    gate = verdict(*(figures(features, "linear") for features in rows))  # the pretrained encoder comes first
    return f"{markdown([name, *columns], rows)}\n\n{gate}; {costs(runs)}"


# ---------------------------------------------------------------- pairs of images and texts


def nearest_pixels(config: Any, data: str | None, run: Figures) -> Figures:
    """Share of test pictures whose nearest training picture, in pixels, has the same class."""
    sources = [load(RECIPES["clip"].source)(data, config=config, split=split) for split in ("train", "test")]
    near, far = (extract(pixels, source, eval_view(config)) for source in sources)
    assert near.labels is not None and far.labels is not None
    nearest = torch.cdist(far.features, near.features).argmin(1)
    return {"nearest_pixels": (near.labels[nearest] == far.labels).float().mean().item()}


def pairs_table(name: str, runs: list[Figures]) -> str:
    classes, baseline = 1 / 16, runs[0]["nearest_pixels"]
    zero_shot = [run["zero_shot"]["top1"] for run in runs]
    rows = {"zero-shot top-1, 16 classes": [cell(zero_shot), f"{100 * classes:.1f}", f"{100 * baseline:.1f}"]}
    gates = {"zero-shot": verdict(zero_shot, [max(classes, baseline)] * len(runs))}
    for way in ("image_to_text", "text_to_image"):
        for top in ("R@1", "R@5", "R@10"):
            title, recall = f"{way.replace('_', ' ')} {top}", [run["retrieval"][way][top] for run in runs]
            chance = runs[0]["retrieval"][way][f"chance_{top}"]
            rows[title] = [cell(recall), f"{100 * chance:.1f}", "-"]
            gates[title] = verdict(recall, [chance] * len(runs))
    for key in ("objects_swapped", "relation_reversed"):
        rows[key.replace("_", " ")] = [cell([run["order"][key] for run in runs]), "50.0", "-"]
    table = markdown(["held-out combinations", name, "chance", "nearest pixels"], rows)
    return "\n".join([table, "", *(f"{title}: {gate}" for title, gate in gates.items()), costs(runs)])


# ---------------------------------------------------------------- text


def plain_script(config: Any, data: str | None, run: Figures) -> Figures:
    """Bits per byte of a plain script that trains for as many CPU seconds as `run` did."""
    from bench import plain_gpt

    from ssl_lm.gpt import GPT
    from ssl_lm.measure import TOKENS, at_most, perplexity

    train_data, test_data = (load(RECIPES["gpt"].source)(data, config=config, split=part) for part in ("train", "test"))
    stream = torch.from_numpy(train_data.shards.read(0, len(train_data.shards)))
    start = time.process_time()
    plain_gpt.train(config, stream, 20, config.seed)
    steps = int(20 * run["cpu_seconds"] / (time.process_time() - start))
    model = plain_gpt.train(config, stream, steps, config.seed)
    judge = GPT(config).eval()
    judge.load_state_dict(plain_gpt.turned(model.state_dict()))
    return {"plain": {**perplexity(judge, list(at_most(test_data.texts(), TOKENS))), "steps": steps}}


def gpt_table(name: str, runs: list[Figures]) -> str:
    bits = {name: [run["bits_per_byte"] for run in runs]}
    bits["plain script, equal CPU time"] = [run["plain"]["bits_per_byte"] for run in runs]
    bits |= {key: [run["baselines"][key] for run in runs] for key in ("unigram", "3-gram", "xz")}
    rows = {key: [cell(values, scale=1, digits=3)] for key, values in bits.items()}
    fewer = [[-value for value in bits[key]] for key in (name, "unigram", "3-gram")]  # fewer bits are better
    table = markdown(["held-out modules", "bits per byte"], rows)
    gate = f"{verdict(*fewer)}; {costs(runs, 'cpu_seconds')}"
    return f"{table}\n\n{gate}\n\n```text\n{runs[0]['sample'][:600]}\n```"


def tokens_table(name: str, runs: list[Figures]) -> str:
    figures = {key: [run[key] for run in runs] for key, value in runs[0].items() if isinstance(value, float)}
    shown = {key: [cell(values, scale=1, digits=3)] for key, values in figures.items() if key not in COSTS}
    gate = verdict(figures["accuracy"], figures["most_frequent_accuracy"])
    return f"{markdown([name, 'mean ± std'], shown)}\n\n{gate}; {costs(runs, 'cpu_seconds')}"


COSTS = ("minutes", "cpu_seconds")
TABLES = {"clip": pairs_table, "gpt": gpt_table, "bert": tokens_table, "t5": tokens_table}
"""Methods that are judged by their recipe's `measure`; a linear probe judges the others."""
BESIDE = {"clip": nearest_pixels, "gpt": plain_script}
"""Baselines that are not among the figures of `measure`."""

if __name__ == "__main__":
    main()
