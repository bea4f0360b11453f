"""What the language models learn of the standard library's source: three seeds on the default run.

    python tools/learns_text.py                  GPT, beside a plain script of the same size at equal CPU time
    python tools/learns_text.py bert t5          the others, beside the most frequent token

Each seed is one line of JSON in --out, and is not run again; the tables that are printed belong into docs/benchmarks.md.
Gates: GPT's bits per byte on held-out modules lie below those of counted unigrams and 3-grams by more than three times
the spread of the seeds; the accuracy of BERT at masked tokens and of T5 at the tokens of removed spans, sentinels not
counted, lies as clearly above that of always saying the most frequent one.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from ssl_core.config import RunOptions, from_dict, to_dict
from ssl_core.method import load
from ssl_core.train.run import train
from ssl_lm import evaluate
from ssl_lm.config import RECIPES
from ssl_lm.corpus import open_text
from ssl_lm.gpt import GPT

sys.path.insert(0, str(Path(__file__).parent / "bench"))
import plain_gpt

NAMES = {recipe.name: recipe for recipe in RECIPES}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("methods", nargs="*", default=["gpt"], help=", ".join(NAMES))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--set", nargs="+", default=[], metavar="FIELD=JSON", help="settings other than the demo's")
    parser.add_argument("--out", type=Path, default=Path("runs/learns-text"))
    args = parser.parse_args()
    settings = {key: json.loads(value) for key, value in (pair.split("=", 1) for pair in args.set)}
    for name in args.methods:
        config = load(NAMES[name].presets)["demo"]()
        config = NAMES[name].settled(from_dict(type(config), to_dict(config) | settings), None)
        runs = []
        for seed in args.seeds:
            folder = args.out / name / str(seed)
            row = {"ours": once(folder.with_suffix(".json"), one_seed, name, config, seed, folder)}
            if name == "gpt":
                limit = row["ours"]["cpu_seconds"]
                row["plain"] = once(args.out / "plain" / f"{seed}.json", plain, config, seed, limit)
            runs.append(row)
            print(f"seed {seed}: {json.dumps(row)[:2000]}", flush=True)
        print("\n" + table(name, runs))


def once(file: Path, run: Callable[..., dict[str, Any]], *args: Any) -> dict[str, Any]:
    """What `run(*args)` gave the first time."""
    if not file.exists():
        file.parent.mkdir(parents=True, exist_ok=True)
        result = run(*args)
        file.write_text(json.dumps(result))
    return json.loads(file.read_text())


def one_seed(name: str, config: Any, seed: int, out: Path) -> dict[str, Any]:
    """Train one seed; its figures on the held-out modules, and the CPU seconds of training."""
    recipe, config = NAMES[name], dataclasses.replace(config, seed=seed)
    start = time.process_time()
    method = train(recipe, config, data=None, out=out, options=RunOptions(workers=0, device="cpu"))
    seconds = time.process_time() - start
    assert recipe.measure is not None
    figures = load(recipe.measure)(method, open_text(None, config=config, split="test"))
    return {**figures, "cpu_seconds": seconds}


def plain(config: Any, seed: int, limit: float) -> dict[str, Any]:
    """The plain script with the steps that it can make in `limit` CPU seconds, judged by its first twenty."""
    source = open_text(None, config=config)
    stream = torch.from_numpy(source.shards.read(0, len(source.shards)))
    start = time.process_time()
    plain_gpt.train(config, stream, 20, seed, lambda: False)
    steps = int(20 * limit / (time.process_time() - start))
    start = time.process_time()
    model = plain_gpt.train(config, stream, steps, seed, lambda: False)
    seconds = time.process_time() - start
    judge = GPT(config).eval()
    judge.load_state_dict(model.state_dict())
    documents = list(evaluate.at_most(open_text(None, config=config, split="test").texts(), evaluate.TOKENS))
    return {**evaluate.perplexity(judge, documents), "cpu_seconds": seconds, "steps": steps}


def table(name: str, runs: list[dict[str, Any]]) -> str:
    """Markdown: mean ± standard deviation over the seeds, and whether the gate holds."""
    if name != "gpt":
        keys = [key for key, value in runs[0]["ours"].items() if isinstance(value, float)]
        columns = {key: [run["ours"][key] for run in runs] for key in keys}
        lines = [f"| {name} | mean ± std |", "| --- | --- |", *(f"| {key} | {_cell(columns[key])} |" for key in keys)]
        accuracy, guess = columns["accuracy"], columns["most_frequent_accuracy"]
        lines.append(f"\n{_gate(statistics.mean(accuracy) - statistics.mean(guess), statistics.pstdev(accuracy))}")
        return "\n".join(lines)
    rows = {
        "GPT": [run["ours"]["bits_per_byte"] for run in runs],
        "plain script, equal CPU time": [run["plain"]["bits_per_byte"] for run in runs],
        **{key: [run["ours"]["baselines"][key] for run in runs] for key in ("unigram", "3-gram", "xz")},
    }
    lines = ["| held-out modules | bits per byte |", "| --- | --- |"]
    lines += [f"| {key} | {_cell(values)} |" for key, values in rows.items()]
    margin = min(statistics.mean(rows[key]) for key in ("unigram", "3-gram")) - statistics.mean(rows["GPT"])
    seconds = ", ".join(f"{run['ours']['cpu_seconds']:.0f}" for run in runs)
    lines.append(f"\n{_gate(margin, statistics.pstdev(rows['GPT']))}; {seconds} CPU seconds a run")
    lines.append(f"\n```text\n{runs[0]['ours']['sample'][:600]}\n```")
    return "\n".join(lines)


def _gate(margin: float, spread: float) -> str:
    verdict = "holds" if margin > 3 * spread else "DOES NOT HOLD"
    return f"margin {margin:.3f}, spread {spread:.3f}: the gate {verdict}"


def _cell(values: list[float]) -> str:
    return f"{statistics.mean(values):.3f} ± {statistics.pstdev(values):.3f}"


if __name__ == "__main__":
    main()
