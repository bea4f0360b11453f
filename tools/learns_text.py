"""What the language models learn of the standard library's source: three seeds on the default run.

    python tools/learns_text.py                  GPT, beside a plain script of the same size at equal CPU time
    python tools/learns_text.py bert t5          the others, beside the most frequent token

Each seed is one line of JSON in --out, and is not run again; the tables that are printed belong into docs/benchmarks.md.
Gates, by the rule of `gate.py`: GPT's bits per byte on held-out modules lie below those of counted unigrams and 3-grams,
the accuracy of BERT at masked tokens and of T5 at the tokens of removed spans, sentinels not counted, above the most
frequent token's.
"""

from __future__ import annotations

import dataclasses
import json
import sys
import time
from pathlib import Path
from typing import Any

import torch
from gate import cell, changed, flags, once, verdict

from ssl_core.method import load
from ssl_lm import measure
from ssl_lm.config import RECIPES
from ssl_lm.corpus import open_text
from ssl_lm.gpt import GPT
from ssl_train.options import RunOptions
from ssl_train.run import train

sys.path.insert(0, str(Path(__file__).parent / "bench"))
import plain_gpt


def main() -> None:
    parser = flags(__doc__, "runs/learns-text")
    parser.add_argument("methods", nargs="*", default=["gpt"], help=", ".join(RECIPES))
    args = parser.parse_args()
    for name in args.methods:
        config = RECIPES[name].settled(changed(RECIPES[name].presets["demo"](), args.set), None)
        runs = []
        for seed in args.seeds:
            seeded, folder = dataclasses.replace(config, seed=seed), args.out / name / str(seed)
            ours = once(folder.with_suffix(".json"), seeded, lambda: one_seed(name, seeded, folder))  # noqa: B023
            row = {"ours": ours}
            if name == "gpt":
                row["plain"] = once(
                    args.out / "plain" / f"{seed}.json",
                    seeded,
                    lambda: plain(seeded, ours["cpu_seconds"]),  # noqa: B023
                )
            runs.append(row)
            print(f"seed {seed}: {json.dumps(row)[:2000]}", flush=True)
        print("\n" + table(name, runs))


def one_seed(name: str, config: Any, out: Path) -> dict[str, Any]:
    """Train one seed; its figures on the held-out modules, and the CPU seconds of training."""
    recipe = RECIPES[name]
    start = time.process_time()
    method = train(recipe, config, data=None, out=out, options=RunOptions(workers=0, device="cpu"))
    seconds = time.process_time() - start
    assert recipe.measure is not None
    figures = load(recipe.measure)(method, open_text(None, config=config, split="test"))
    return {**figures, "cpu_seconds": seconds}


def plain(config: Any, limit: float) -> dict[str, Any]:
    """The plain script with the steps that it can make in `limit` CPU seconds, judged by its first twenty."""
    source = open_text(None, config=config)
    stream = torch.from_numpy(source.shards.read(0, len(source.shards)))
    start = time.process_time()
    plain_gpt.train(config, stream, 20, config.seed)
    steps = int(20 * limit / (time.process_time() - start))
    start = time.process_time()
    model = plain_gpt.train(config, stream, steps, config.seed)
    seconds = time.process_time() - start
    judge = GPT(config).eval()
    judge.load_state_dict(plain_gpt.turned(model.state_dict()))
    documents = list(measure.at_most(open_text(None, config=config, split="test").texts(), measure.TOKENS))
    return {**measure.perplexity(judge, documents), "cpu_seconds": seconds, "steps": steps}


def table(name: str, runs: list[dict[str, Any]]) -> str:
    """Markdown: mean ± standard deviation over the seeds, and whether the gate holds."""
    ours = [run["ours"] for run in runs]
    seconds = ", ".join(f"{run['cpu_seconds']:.0f}" for run in ours) + " CPU seconds a run"
    if name != "gpt":
        keys = [key for key, value in ours[0].items() if isinstance(value, float) and key != "cpu_seconds"]
        lines = [f"| {name} | mean ± std |", "| --- | --- |"]
        lines += [f"| {key} | {cell([run[key] for run in ours], scale=1, digits=3)} |" for key in keys]
        gate = verdict([run["accuracy"] for run in ours], [[run["most_frequent_accuracy"] for run in ours]])
        return "\n".join([*lines, f"\n{gate}; {seconds}"])
    rows = {
        "GPT": [run["bits_per_byte"] for run in ours],
        "plain script, equal CPU time": [run["plain"]["bits_per_byte"] for run in runs],
        **{key: [run["baselines"][key] for run in ours] for key in ("unigram", "3-gram", "xz")},
    }
    lines = ["| held-out modules | bits per byte |", "| --- | --- |"]
    lines += [f"| {key} | {cell(values, scale=1, digits=3)} |" for key, values in rows.items()]
    less = {key: [-value for value in values] for key, values in rows.items()}  # of bits, fewer are better
    lines.append(f"\n{verdict(less['GPT'], [less['unigram'], less['3-gram']])}; {seconds}")
    lines.append(f"\n```text\n{ours[0]['sample'][:600]}\n```")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
