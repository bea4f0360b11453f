"""What the verbs of the command line do; `ssl_train.cli.main` parses, this file imports torch."""

from __future__ import annotations

import inspect
import json
import os
import warnings
from pathlib import Path
from typing import Any

import torch

from ssl_core.config import to_dict
from ssl_core.device import pick_device, seed_step
from ssl_core.errors import InputError, NoTestSplit
from ssl_core.hub.layout import layout_of
from ssl_core.method import Recipe, attach, load
from ssl_train.cli import main as cli
from ssl_train.options import RunOptions


def train(recipe: Recipe, args: cli.Train, config: Any, options: RunOptions) -> None:
    from ssl_train.cli.estimate import describe
    from ssl_train.run import train as run

    if not recipe.views:
        raise InputError(f"{recipe.name} is an encoder that is used as it is, there is no training of it here")
    out = Path(args.out or f"runs/{recipe.name}")
    if os.environ.get("RANK", "0") == "0":
        built_in = args.data is None
        print(describe(recipe, config, data=args.data, device=options.device, built_in=built_in), flush=True)
    method = run(recipe, config, data=args.data, out=out, init=args.init, options=options)
    if os.environ.get("RANK", "0") != "0":
        return
    program = recipe.package.replace("_", "-")
    try:
        figures(recipe, method, args.data, out / "figures")
    except Exception as error:  # whatever drawing raises, the run is done and its weights are there
        warnings.warn(
            f"the figures could not be drawn ({type(error).__name__}: {error}); the weights are in {out}, "
            f"and `{program} show {out}` tries again",
            stacklevel=2,
        )
    lines = []
    if recipe.measure is not None:
        try:
            result = measured(recipe, method, args.data)
            write_json(out, "evaluation.json", result)
            lines = result["measured"]["summary"]
        except InputError as error:  # too little test data, say: the run is done all the same
            warnings.warn(f"there are no figures of this run: {error}", stacklevel=2)
    finish(recipe, out)
    print(summary(out), *lines, sep="\n")
    print(f"\nlook at  {out / 'report.html'}")
    print(f"next     {program} evaluate {out}" + (f" --data {args.data}" if args.data else ""))
    print(f"         {program} embed {out} --data your/folder --out features.npz")
    _, inputs, *_ = inspect.signature(type(method).encode).parameters
    print(f"         {type(method).__name__}.from_pretrained({str(out)!r}).encode({inputs})")


def evaluate(recipe: Recipe, args: cli.Evaluate) -> None:
    from ssl_train.data.split import train_and_test
    from ssl_train.evaluate.evaluate import PROTOCOLS, table
    from ssl_train.evaluate.evaluate import evaluate as measure

    device = pick_device(args.device)
    method = load(recipe.method).from_pretrained(args.weights, device=device)
    if "finetune" in args.protocols:
        from ssl_train.finetune import check_encoder

        check_encoder(method)
    out = Path(args.out or args.weights)
    result = measured(recipe, method, args.data, args.test)
    lines = result.get("measured", {}).get("summary", [])
    if lines and open_data(recipe, method, args.data, "train").labels is None:
        _write_evaluation(recipe, args, out, result)
        print(*lines, sep="\n")
        return
    train_data, test_data, how = train_and_test(
        args.data, args.test, config=method.config,
        source=lambda data, *, config, split: open_data(recipe, method, data, split),
    )  # fmt: skip
    seed_step(getattr(method.config, "seed", 0))
    fresh = load(recipe.method)(method.config).to(device).eval()
    raw, baseline = recipe.raw
    encoders = {"pretrained": method.encode, "random init": fresh.encode, raw: load(baseline)}
    view = load(recipe.eval_view)(method.config)
    frozen = [p for p in args.protocols if p in PROTOCOLS]
    if frozen:
        result |= measure(
            encoders, train_data, test_data, view, frozen, args.shots,
            data=result["data"], device=device, workers=args.workers, progress=True,
        )  # fmt: skip
    if "finetune" in args.protocols:
        from ssl_train.finetune import compare

        result = compare(
            result, recipe, args.weights, train_data, test_data, out / "finetune", epochs=args.finetune_epochs,
            options=RunOptions(device=args.device, workers=args.workers),
        )  # fmt: skip
    result["protocol"]["split"] = how
    _write_evaluation(recipe, args, out, result)
    print(table(result))
    print(f"split: {how}")
    print(*lines, sep="\n")


def measured(recipe: Recipe, method: Any, data: str | None, test: str | None = None) -> dict[str, Any]:
    """evaluation.json without protocols: the figures of the recipe's `measure`, and which data they are of."""
    own: dict[str, Any] = {}
    if recipe.measure is not None:
        source, which = test_data(recipe, method, data, test)
        figures = load(recipe.measure)(method, source)
        own = {"measured": {**figures, "of": which, "summary": [f"measured on {which}", *figures["summary"]]}}
    return {"data": Path(data).name if data else recipe.built_in, "protocol": {}, "rows": [], **own}


def _write_evaluation(recipe: Recipe, args: cli.Evaluate, out: Path, result: dict[str, Any]) -> None:
    if args.out or Path(args.weights).is_dir():
        write_json(out, "evaluation.json", result)
        finish(recipe, out)


def open_data(recipe: Recipe, method: Any, data: str | None, split: str) -> Any:
    """`data` as `method` reads it."""
    return attach(method, load(recipe.source)(data, config=method.config, split=split))


def test_data(recipe: Recipe, method: Any, data: str | None, test: str | None = None) -> tuple[Any, str]:
    """(`test`, or the test part of `data`, or all of it where it has none; which of them that is)."""
    if test is not None:
        return open_data(recipe, method, test, "train"), f"test data: {test}"
    try:
        return open_data(recipe, method, data, "test"), "the data's own test split"
    except NoTestSplit:
        return open_data(recipe, method, data, "train"), "TRAINING data, for there is no other"


def embed(recipe: Recipe, args: cli.Embed) -> None:
    from ssl_train.evaluate.features import extract

    device = pick_device(args.device)
    method = load(recipe.method).from_pretrained(args.weights, device=device)
    source = open_data(recipe, method, args.data, "train")
    view = load(recipe.eval_view)(method.config)
    features = extract(method.encode, source, view, device=device, workers=args.workers, progress=True)
    Path(args.out).parent.mkdir(parents=True, exist_ok=True)
    features.save(args.out)
    print(f"{len(features)} features of width {features.features.shape[1]} in {args.out}")


def show(recipe: Recipe, args: cli.Show) -> None:
    method = load(recipe.method).from_pretrained(args.weights, device=pick_device(args.device))
    run = Path(args.weights)
    folder = Path(args.out) if args.out else (run if run.is_dir() else Path()) / "figures"
    for path in figures(recipe, method, args.data, folder):
        print(path)
    if args.out is None and run.is_dir():
        finish(recipe, run)


def push(recipe: Recipe, args: cli.Push) -> None:
    from ssl_core.hub.card import write_card
    from ssl_core.hub.remote import push as upload

    write_card(args.folder, name=args.repo_id, layout=layout_of(load(recipe.method)), license=args.license)
    print(
        upload(
            args.folder, args.repo_id, revision=args.revision, private=args.private or None,
            create_pr=args.create_pr, dry_run=args.dry_run,
        )
    )  # fmt: skip


def info(recipe: Recipe, args: cli.Info) -> None:
    from ssl_train.cli.estimate import describe

    if args.weights is not None:
        config = load(recipe.method).from_pretrained(args.weights).config
    else:
        config = cli.preset(recipe, args.preset)
    print(describe(recipe, config, data=args.data, device=args.device))


def export(recipe: Recipe, args: cli.Export) -> None:
    from ssl_core.hub.weights_file import save_weights

    method = load(recipe.method).from_pretrained(args.weights)
    exports = layout_of(method).exports
    if args.to not in exports:
        raise InputError(f"{recipe.name} exports to {', '.join(exports)}, not to {args.to}")
    out = Path(args.out)
    if (out / "SHA256SUMS").exists() or (out / "run.json").exists():
        raise InputError(
            f"{out} is a run or holds published weights, which the export would write over: give another OUT"
        )
    state, config, *named = exports[args.to](method.state_dict(), method.config)
    out.mkdir(parents=True, exist_ok=True)
    save_weights(out / "model.safetensors", state)
    write_json(out, named[0] if named else "config.json", config)
    method.save_preprocessor(out)
    print(f"{sum(t.numel() for t in state.values()):,} parameters in {out}, {args.to}'s layout")


def architecture(recipe: Recipe, init: str) -> dict[str, Any]:
    """The fields of `init`'s config that its weights fix."""
    method = load(recipe.method).from_pretrained(init)
    values = to_dict(method.config)
    return {key: values[key] for key in method.architecture()}


def figures(recipe: Recipe, method: Any, data: str | None, folder: Path) -> list[Path]:
    """Draw the package's figures and their captions into `folder`, of test data where there is some."""
    source, _ = test_data(recipe, method, data)
    folder.mkdir(parents=True, exist_ok=True)
    with torch.inference_mode():
        captions = load(recipe.show)(method, source, folder)
    write_json(folder, "captions.json", captions)
    return [folder / name for name in captions]


def finish(recipe: Recipe, run: Path) -> None:
    """Model card and report of a run folder, from what it holds by now."""
    from ssl_core.hub.card import write_card
    from ssl_train.report.page import write_report

    if (run / "config.json").exists():
        write_card(run, name=run.resolve().name, layout=layout_of(load(recipe.method)))
    if (run / "metrics.jsonl").exists():
        write_report(run)


def summary(run: Path) -> str:
    """The last line of metrics.jsonl as a small table."""
    lines = (run / "metrics.jsonl").read_text().splitlines()
    first, last = json.loads(lines[0]), json.loads(lines[-1])
    rows = [
        ("steps", f"{last['step']:,} ({last['epoch']:g} epochs)"),
        ("loss", f"{first['loss']:.4f} → {last['loss']:.4f}"),
        *((key.removeprefix("health/"), f"{value:.3f}") for key, value in last.items() if key.startswith("health/")),
        ("waiting for data", f"{last['data_wait']:.1%}"),
        ("seconds", f"{last['seconds']:.0f}"),
    ]
    width = max(len(name) for name, _ in rows)
    return "\n".join(f"{name.ljust(width)}  {value}" for name, value in rows)


def write_json(folder: Path, name: str, value: Any) -> None:
    """Replace `folder/name` whole."""
    from ssl_core.hub.weights_file import write_whole

    folder.mkdir(parents=True, exist_ok=True)
    text = json.dumps(value, indent=2, ensure_ascii=False) + "\n"
    write_whole(folder / name, lambda path: path.write_text(text, encoding="utf-8"))
