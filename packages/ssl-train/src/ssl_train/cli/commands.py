"""What each command does. `ssl_train.cli.main` parses and then imports this file, which imports
torch."""

from __future__ import annotations

import json
import os
import re
import sys
import tempfile
import warnings
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from ssl_core.config import to_dict
from ssl_core.device import pick_device, seed_step
from ssl_core.errors import InputError
from ssl_core.hub.checkpoint import checkpoint_of, number
from ssl_core.hub.layout import layout_of
from ssl_core.hub.remote import resolve
from ssl_core.method import Recipe, load
from ssl_train import log
from ssl_train.asked import Asked
from ssl_train.auto import table
from ssl_train.cli import verbs
from ssl_train.cli.estimate import estimate, estimate_encoder
from ssl_train.cost import cost_of
from ssl_train.log import next_steps, note, typed
from ssl_train.opened import Opened
from ssl_train.options import RunOptions
from ssl_train.processes import process_group
from ssl_train.report.read import SNAPSHOTS
from ssl_train.run import resumed, run, split_of

FEW = 16
"""Pictures that a figure needs to show something."""

FINETUNED = "finetuned"
"""Where `evaluate --protocols finetune` writes the network, beside evaluation.json."""


def train(recipe: Recipe, args: verbs.Train, asked: Asked, options: RunOptions) -> dict[str, Any]:
    if not recipe.views:
        raise InputError(f"{recipe.name} is an encoder that is used as it is: it cannot be trained here")
    out = Path(args.out or f"runs/{recipe.name}")
    main = os.environ.get("RANK", "0") == "0"
    program, data = program_of(recipe), data_flag(args.data)
    with process_group():
        # opened and built once: for the estimate, the run and its figures
        asked = resumed(recipe, asked, out)
        split = split_of(out, args.held_out, args.group)
        where = {"data": args.data, "init": args.init, "device": options.device, "out": out}
        opened = Opened.to_train(recipe, asked, **where, **split)
        if main and not log.quiet:
            if opened.choices:
                print(table(opened.choices))
                flags = {"--held-out": split["held_out"], "--group": split["group"]}
                kept = [word for flag, value in flags.items() if value is not None for word in (flag, value)]
                again = typed(program, "train", *data, *kept, "--config", out, "--out", "ANOTHER")
                print(f"the same again: {again}\n")
            if opened.division:
                print(opened.division)
            _, text = estimate(recipe, opened.method, opened.cost, opened.device, len(opened.raw("train")))
            print(text, flush=True)
        run(opened, out, options)
    if not main:
        return {}

    own = complete(opened, out)
    first, last = ends(out)
    print(summary(first, last), *own.get("summary", []), sep="\n")
    print(f"\nlook at  {out / 'report.html'}")
    evaluation = [typed(program, "evaluate", out, *data)] if own or opened.train.labels is not None else []
    following = next_steps(*evaluation, typed(program, "embed", out, *data, "--out", "features.npz"))
    module, name = recipe.method.split(":")
    print(f"{'Python':8} from {module.partition('.')[0]} import {name}; {name}.from_pretrained({str(out)!r})")
    began = {"run": str(out), "method": recipe.name, "data": args.data, "report": str(out / "report.html")}
    return {**began, "first": first, "last": last, "measured": own or None, "next": following}


def complete(opened: Opened, out: Path) -> dict[str, Any]:
    """Draw the figures of a finished run, measure what its recipe measures, write model card and
    report; returns what was measured."""
    recipe, program = opened.recipe, program_of(opened.recipe)
    try:
        figures(opened, out / "figures")
    except Exception as error:  # whatever drawing raises, the run is done and its weights are there
        warnings.warn(
            f"the figures could not be drawn ({type(error).__name__}: {error}); the weights are in {out}, "
            f"and `{typed(program, 'show', out)}` tries again",
            stacklevel=2,
        )
    own: dict[str, Any] = {}
    if recipe.measure is not None:
        try:
            result = measured(opened)
            write_json(out, "evaluation.json", result)
            own = result["measured"]
        except InputError as error:  # too little test data, say: the run is done all the same
            warnings.warn(f"there are no figures of this run: {error}", stacklevel=2)
    finish(recipe, out)
    return own


def tell_step(args: Any) -> None:
    """Say at which step the weights stand that a command is given, if they are a checkpoint's."""
    name = getattr(args, "weights", None) or getattr(args, "folder", None) or getattr(args, "init", None)
    if name is not None and (checkpoint := checkpoint_of(name)) is not None:
        note(f"{name}: weights of step {number(checkpoint):,}, from a checkpoint", file=sys.stderr)


def program_of(recipe: Recipe) -> str:
    """The command of the recipe's package."""
    return recipe.package.replace("_", "-")


def data_flag(data: str | None, flag: str = "--data") -> list[str]:
    """The words of a command that name data; none for the built-in data."""
    return [] if data is None else [flag, data]


def evaluate(recipe: Recipe, args: verbs.Evaluate) -> dict[str, Any]:
    opened = Opened.from_weights(
        recipe,
        args.weights,
        data=args.data,
        test=args.test,
        group=args.group,
        device=args.device,
        max_pixels=args.max_pixels,
        as_trained=True,
    )
    result, out = evaluated(opened, args), place_of(args)
    program, file = program_of(recipe), out / "evaluation.json"
    print("" if not (out / "report.html").is_file() else f"\nlook at  {out / 'report.html'}")
    following = next_steps(
        *([typed(program, "predict", out / FINETUNED, "your/pictures")] if "finetune" in args.protocols else []),
        typed(program, "embed", args.weights, *data_flag(args.data), "--out", "features.npz"),
        *([typed(program, "push", args.weights, f"me/{_hub_name(args.weights)}", "--dry-run")] if out.is_dir() else []),
    )
    return {**result, "weights": args.weights, "file": str(file) if file.is_file() else None, "next": following}


def evaluated(opened: Opened, args: verbs.Evaluate) -> dict[str, Any]:
    """Print and write the figures of opened weights and data; returns those of evaluation.json."""
    from ssl_train.classifier import check_encoder
    from ssl_train.evaluate.evaluate import PROTOCOLS, table
    from ssl_train.evaluate.evaluate import evaluate as compare_features
    from ssl_train.finetune import compare
    from ssl_train.report.page import advice
    from ssl_train.report.read import curves_of, of_rows

    recipe, method, device = opened.recipe, opened.method, opened.device
    out = place_of(args)
    if "finetune" in args.protocols:
        check_encoder(method)
        if not args.out and not out.is_dir() and out.parent.name != SNAPSHOTS:
            raise InputError(f"{args.weights} is no folder: give --out, a folder for the fine-tuned network")

    result = measured(opened)
    lines = result.get("measured", {}).get("summary", [])
    if lines and opened.train.labels is None:  # the method's own figures need no labels
        print(*lines, sep="\n")
        _write_evaluation(recipe, args, out, result)
        return result

    train_data, test_data, how = opened.labelled()
    seed_step(getattr(method.config, "seed", 0))
    fresh = load(recipe.method)(method.config).to(device).eval()
    frozen = [p for p in args.protocols if p in PROTOCOLS]
    if frozen:
        raw, baseline = recipe.raw
        encoders = {"pretrained": method.encode, "random init": fresh.encode, raw: load(baseline)}
        view = load(recipe.eval_view)(method.config)
        options = {"device": device, **extraction(args)}
        result |= compare_features(
            encoders, train_data, test_data, view, frozen, args.shots, data=result["data"], progress=True, **options
        )
    if "finetune" in args.protocols:
        methods = {"pretrained": method, "random init": fresh}
        how_to_run = RunOptions(device=args.device, workers=args.workers)
        data, epochs = (train_data, test_data), args.finetune_epochs
        result = compare(result, methods, data, out, epochs=epochs, options=how_to_run)
    result["protocol"]["split"] = how
    print(table(result))
    print(f"test data: {how}")
    if more := of_rows(result):
        print("", *in_columns(more), sep="\n")
    for name, points in curves_of(result).items():
        shown = ", ".join(f"{share:.0%} {100 * mean:.1f}" for share, mean, _ in points)
        print(f"linear probe on a share of the labels, {name}: {shown}")
    print(*filter(None, [advice(result)]), *lines, sep="\n")
    if "finetune" in args.protocols:
        _describe_finetuned(out / FINETUNED, result)
    _write_evaluation(recipe, args, out, result)
    return result


def place_of(args: verbs.Evaluate) -> Path:
    """Where the figures lie: as `--out` says, else of a run's step below the run, of other weights
    beside them."""
    return Path(args.out) if args.out else folder_of(args.weights)


def folder_of(weights: str) -> Path:
    """The folder of these weights; of a run's step, one of its own below the run."""
    checkpoint = checkpoint_of(weights)
    return Path(weights) if checkpoint is None else checkpoint.parents[1] / SNAPSHOTS / checkpoint.name


def _describe_finetuned(folder: Path, result: dict[str, Any]) -> None:
    """Write the card of a fine-tuned network, and its part of the evaluation."""
    from ssl_train.card import write_run_card
    from ssl_train.classifier import LAYOUT

    kept = {key: value for key, value in result["protocol"].items() if key in ("finetune", "train", "test", "split")}
    rows = [{"features": row["features"], "finetune": row["finetune"]} for row in result["rows"] if "finetune" in row]
    write_json(folder, "evaluation.json", {"data": result["data"], "protocol": kept, "rows": rows})
    write_run_card(folder, name=f"{folder.resolve().parent.name}-{FINETUNED}", layout=LAYOUT)


def predict(recipe: Recipe, args: verbs.Predict) -> dict[str, Any]:
    from ssl_train.predict import run

    return run(recipe, args, folder_of(args.network) / FINETUNED, program=program_of(recipe))


def measured(opened: Opened) -> dict[str, Any]:
    """evaluation.json before any protocol: the name of the data, and the figures of the recipe's
    `measure`."""
    own: dict[str, Any] = {}
    if opened.recipe.measure is not None:
        source, which = opened.shown()
        found = load(opened.recipe.measure)(opened.method, source)
        own = {"measured": {**found, "of": which, "summary": [f"measured on {which}", *found["summary"]]}}
    named = opened.data_name if opened.place is opened.data else opened.place
    name = opened.recipe.built_in if opened.place is None else Path(named).name
    return {"data": name, "protocol": {}, "rows": [], **own}


def _write_evaluation(recipe: Recipe, args: verbs.Evaluate, out: Path, result: dict[str, Any]) -> None:
    of_a_step = out.parent.name == SNAPSHOTS
    if args.out or of_a_step or out.is_dir():
        write_json(out, "evaluation.json", result)
        finish(recipe, out.parents[1] if of_a_step else out)


def _hub_name(weights: str) -> str:
    """The name of a folder, as far as the Hub takes it for a repository."""
    return re.sub(r"[^\w.]+|\.\.+", "-", Path(weights).resolve().name, flags=re.ASCII).strip("-.") or "model"


def embed(recipe: Recipe, args: verbs.Embed) -> dict[str, Any]:
    from ssl_train.evaluate.features import extract

    where = {"data": args.data, "device": args.device, "max_pixels": args.max_pixels, "held_out": 0.0}
    opened = Opened.from_weights(recipe, args.weights, **where, as_trained=args.data is None)
    view, options = load(recipe.eval_view)(opened.config), {"device": opened.device, **extraction(args)}
    features = extract(opened.method.encode, opened.train, view, progress=True, **options)
    Path(args.out).parent.mkdir(parents=True, exist_ok=True)
    features.save(args.out)
    count, width = features.features.shape
    print(f"{count} features of width {width} in {args.out}\n")
    shown = f'import numpy; print(numpy.load({json.dumps(args.out)})["features"].shape)'
    following = next_steps(typed(Path(sys.executable).name, "-c", shown))
    left_out = [{"name": name, "reason": reason} for name, reason in features.skipped]
    return {"file": args.out, "features": count, "width": width, "left_out": left_out, "next": following}


def extraction(args: verbs.Evaluate | verbs.Embed) -> dict[str, Any]:
    """Options of `extract` that a user sets."""
    return {"batch_size": args.batch_size, "precision": args.precision, "workers": args.workers}


def show(recipe: Recipe, args: verbs.Show) -> dict[str, Any]:
    where = {"data": args.data, "device": args.device, "max_pixels": args.max_pixels}
    opened = Opened.from_weights(recipe, args.weights, **where, as_trained=True)
    weights = Path(args.weights)
    folder = Path(args.out) if args.out else (weights if weights.is_dir() else Path()) / "figures"
    drawn = [str(path) for path in figures(opened, folder)]
    print(*drawn, sep="\n")
    if args.out is None and weights.is_dir():
        finish(recipe, weights)
    return {"figures": drawn}


def push(recipe: Recipe, args: verbs.Push) -> dict[str, Any]:
    from ssl_core.hub.card import write_card
    from ssl_core.hub.remote import push as upload
    from ssl_train.card import write_run_card

    layout = layout_of(load(recipe.method))
    with ExitStack() as stack:
        folder = args.folder
        if checkpoint_of(folder) is not None:  # the weights of a step, in the form in which they are published
            folder = stack.enter_context(tempfile.TemporaryDirectory())
            load(recipe.method).from_pretrained(args.folder).save_pretrained(folder)
            write_card(folder, name=args.repo_id, layout=layout, license=args.license)
        elif not (Path(folder) / "config.json").is_file():
            raise InputError(f"{folder} is no folder of a run or of weights: it has no config.json")
        else:
            write_run_card(folder, name=args.repo_id, layout=layout, license=args.license)
        options = {"revision": args.revision, "create_pr": args.create_pr, "dry_run": args.dry_run}
        said = upload(folder, args.repo_id, private=args.private or None, **options)
    print(said)
    files = [line.split(maxsplit=1)[1] for line in said.splitlines()[1:]]
    return {"repo_id": args.repo_id, **({"files": files} if args.dry_run else {"url": said})}


def info(recipe: Recipe, args: verbs.Info, asked: Asked) -> dict[str, Any]:
    from ssl_train.classifier import Classifier, is_classifier

    if args.weights is not None and checkpoint_of(args.weights) is None and is_classifier(resolve(args.weights)):
        network = Classifier.from_pretrained(args.weights)
        classes = list(network.config.classes)
        found, text = estimate_encoder(network.config.method, network, network.config.network)
        print(text, f"{len(classes)} classes: {', '.join(classes)}", sep="\n")
        return {**found, "classes": classes}
    method = None if args.weights is None else load(recipe.method).from_pretrained(args.weights)
    config = asked.config if method is None else replace(method.config, **asked.typed)

    # the number of steps is known for given data, and for the demo, which has its own
    samples = None
    if recipe.views and (args.data is not None or config == recipe.preset("demo")):
        config = recipe.settled(config, args.data)
        samples = len(Opened(recipe, config, args.data).raw("train"))
    if method is None or method.config != config:  # a flag changed it
        with torch.device("meta"):
            method = load(recipe.method)(config)
    if recipe.views:
        device = pick_device(args.device)
        found, text = estimate(recipe, method, cost_of(recipe, method, device), device, samples)
    else:
        found, text = estimate_encoder(recipe.name, method, method.config)
    print(text)
    return {**found, "config": to_dict(config)}


def export(recipe: Recipe, args: verbs.Export) -> dict[str, Any]:
    from ssl_core.hub.weights_file import save_weights

    method = load(recipe.method).from_pretrained(args.weights)
    exports = layout_of(method).exports
    programs = ("torch", "onnx")
    if args.to not in (*exports, *programs):
        raise InputError(f"{recipe.name} exports to {', '.join([*exports, *programs])}, not to {args.to}")
    out = Path(args.out)
    if (out / "SHA256SUMS").exists() or (out / "run.json").exists():
        what = f"{out} is a run or holds published weights, which the export would overwrite: give another OUT"
        raise InputError(what)
    if args.to in programs:
        from ssl_train.graph import as_text, export_program, sample_of

        out.absolute().parent.mkdir(parents=True, exist_ok=True)
        sample = partial(sample_of, recipe, args.weights, args.data) if args.int8 else None
        said = export_program(method, args.to, out.absolute(), sample)
        print(as_text(said, out))
        return {"folder": str(out), **said}
    if args.int8:
        raise InputError("--int8 is for --to onnx")
    state, config, *named = exports[args.to](method.state_dict(), method.config)
    out.mkdir(parents=True, exist_ok=True)
    save_weights(out / "model.safetensors", state)
    write_json(out, named[0] if named else "config.json", config)
    method.save_preprocessor(out)
    parameters = sum(t.numel() for t in state.values())
    print(f"{parameters:,} parameters in {out}, {args.to}'s layout")
    return {"folder": str(out), "layout": args.to, "parameters": parameters}


def compare(recipe: Recipe, args: verbs.Compare) -> dict[str, Any]:
    from ssl_train.report.compare import as_text, facts, rows
    from ssl_train.report.compare import compare as beside

    read = beside(args.runs, args.out)
    print(as_text(rows(read)))
    print(f"\nlook at  {args.out}")
    return {"page": args.out, "runs": [facts(run) for run in read]}


def figures(opened: Opened, folder: Path) -> list[Path]:
    """Draw the package's figures and write their captions into `folder`, of test data if there are
    any, but not of a few that were held out."""
    few = opened.division and opened.test is not None and len(opened.test) < FEW
    source = opened.train if few else opened.shown()[0]
    folder.mkdir(parents=True, exist_ok=True)
    with torch.inference_mode():
        captions = load(opened.recipe.show)(opened.method, source, folder)
    write_json(folder, "captions.json", captions)
    return [folder / name for name in captions]


def finish(recipe: Recipe, folder: Path) -> None:
    """Write the model card and the report of a run folder, from what it holds by now."""
    from ssl_train.card import write_run_card
    from ssl_train.report.page import write_report

    if (folder / "config.json").exists():
        write_run_card(folder, name=folder.resolve().name, layout=layout_of(load(recipe.method)))
    if (folder / "metrics.jsonl").exists():
        write_report(folder)


def ends(folder: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """The first and the last line of metrics.jsonl."""
    lines = (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    return json.loads(lines[0]), json.loads(lines[-1])


def summary(first: dict[str, Any], last: dict[str, Any]) -> str:
    """What was logged at last as a small table."""
    names = {"health/knn": "k-NN, leave one out, in training"}  # other than `evaluate`'s
    rows = [
        ("steps", f"{last['step']:,} ({last['epoch']:g} epochs)"),
        ("loss", f"{first['loss']:.4f} → {last['loss']:.4f}"),
        *((names.get(key, key[7:]), f"{value:.3f}") for key, value in last.items() if key.startswith("health/")),
        ("waiting for data", f"{last['data_wait']:.1%}"),
        ("seconds", f"{last['seconds']:.0f}"),
    ]
    width = max(len(name) for name, _ in rows)
    return "\n".join(f"{name.ljust(width)}  {value}" for name, value in rows)


def in_columns(rows: list[list[str]]) -> list[str]:
    """Lines of a table, its head first; the first column to the left, the others to the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return ["  ".join([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])]) for row in rows]


def write_json(folder: Path, name: str, value: Any) -> None:
    """Replace `folder/name` whole. A byte of a file name that is no UTF-8 is written as JSON's own
    escape, "\\udce9"."""
    from ssl_core.hub.weights_file import write_whole

    folder.mkdir(parents=True, exist_ok=True)
    text = json.dumps(value, indent=2, ensure_ascii=False) + "\n"
    write_whole(folder / name, lambda path: path.write_text(text, encoding="utf-8", errors="backslashreplace"))
