"""The `train` and the `evaluate` of a package's notebook: one function for all of its methods."""

from __future__ import annotations

import html
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ssl_core.bounds import field_hints
from ssl_core.config import ConfigError, TrainConfig, read_fields
from ssl_core.errors import InputError
from ssl_core.method import Recipe, load
from ssl_train.asked import Asked
from ssl_train.domains import views_of
from ssl_train.options import RunOptions


@dataclass(frozen=True, eq=False)
class TrainedRun:
    """What `train` returns. `print` shows a few lines, a notebook the report."""

    folder: Path
    """the run folder"""
    model: Any
    """the method, in eval mode"""
    recipe: Recipe
    data: Any
    """what was trained on, as `train` got it"""

    def report(self) -> Path:
        """Write the report from what the folder holds by now, and return its path."""
        from ssl_train.cli.commands import finish

        finish(self.recipe, self.folder)
        return self.folder / "report.html"

    def _repr_html_(self) -> str:
        page = html.escape(self.report().read_text("utf-8"))  # in a frame, so that styles stay apart
        return f'<iframe srcdoc="{page}" style="width: 100%; height: 40rem; border: 0"></iframe>'

    def __repr__(self) -> str:
        from ssl_train.cli.commands import ends, summary

        name = repr(str(self.folder))
        next_steps = [
            f"run.model      {self.model}".partition("\n")[0],
            f"run.report()   writes {self.folder / 'report.html'}",
            f"next           {self.recipe.package}.evaluate(run)",
            f"               {type(self.model).__name__}.from_pretrained({name})",
        ]
        return "\n".join([f"run in {self.folder}", summary(*ends(self.folder)), "", *next_steps])


def trainer(recipes: Mapping[str, Recipe]) -> Callable[..., TrainedRun]:
    """A package's `train` for notebooks: like the command, for the method of the given config."""

    def train(
        config: TrainConfig | str | None = None,
        data: Any = None,
        out: str | Path | None = None,
        *,
        views: str | None = None,
        minutes: float | None = None,
        max_steps: int | None = None,
        init: str | Path | None = None,
        held_out: float | None = None,
        group: str | None = None,
        options: RunOptions = RunOptions(),  # noqa: B008 - frozen
        **typed: Any,
    ) -> TrainedRun:
        """Pretrain on `data`, the built-in by default, into `out`, by default `runs/<method>`.

        `config` is a method's config, which is used as it is. It may also be a method's name, or
        be left out for the package's first method: then the settings are chosen from the data, and
        `minutes` or `max_steps` cut the run; on the built-in data they are the demo's. Other
        keywords are fields of the config or of `RunOptions`, as flags are: `batch_size=64`,
        `workers=0`. `views` is one of `ssl_train.domains.VIEWS`, such as "medical".

        `data` is what the command reads (a folder, a table, hf:NAME), or an object: a `Dataset` of
        torch, a list of paths, of PIL images or of arrays, a source; or {"train": …, "test": …} of
        these. A sample of a `Dataset` is a picture, (picture, label) or a dict with "image" and
        "label". To resume such a run, give the same data again. `held_out` is the share that is not
        trained on, of data without a test part: by default a fifth if there are labels, else
        nothing. `group` names a column of a table: pictures with the same cell stay together.

        Raises InputError, which names what cannot be used; see `ssl_train.run.train`.
        """
        from ssl_train.cli.commands import complete
        from ssl_train.run import trained  # here, so that importing a package stays cheap

        recipe = _recipe_of(recipes, config)
        how = {name: typed.pop(name) for name in field_hints(RunOptions).keys() & typed.keys()}
        options, typed = replace(options, **read_fields(RunOptions, how)), read_fields(load(recipe.config), typed)
        if views is not None:
            typed = views_of(config if isinstance(config, TrainConfig) else recipe.preset(None), views) | typed
        asked: TrainConfig | Asked
        if config is None or isinstance(config, str):
            if init is not None:  # its architecture is taken, as by the command
                start = load(recipe.method).sketched(init)
                typed = {name: getattr(start.config, name) for name in start.architecture()} | typed
            demo = recipe.preset(None, built_in=True) if data is None else None
            asked = Asked(demo, typed, minutes=minutes, max_steps=max_steps)
        elif minutes is None and max_steps is None:
            asked = replace(config, **typed)
        else:
            raise ConfigError("a config has its epochs: minutes and max_steps are for a run without one")
        folder = Path(out or f"runs/{recipe.name}")
        where = {"data": data, "out": folder, "init": init, "held_out": held_out, "group": group}
        opened = trained(recipe, asked, **where, options=options)
        if os.environ.get("RANK", "0") == "0":
            complete(opened, folder)
        return TrainedRun(folder, opened.method, recipe, data)

    return train


def evaluator(recipes: Mapping[str, Recipe]) -> Callable[..., dict[str, Any]]:
    """A package's `evaluate` for notebooks: like the command, and for data in memory too."""

    def evaluate(run: TrainedRun | str | Path, data: Any = None, *, test: Any = None, **options: Any) -> dict[str, Any]:
        """Measure frozen features of a run, or of weights by name, and print the table.

        `data` and `test` are labelled data, as `train` takes them; `data` is by default what the
        run was trained on. Other keywords are the command's flags, such as `protocols=("knn",)`.
        Returns what evaluation.json holds, which is written into the run folder. Raises InputError.
        """
        from ssl_train.cli.commands import evaluated
        from ssl_train.cli.main import method_of
        from ssl_train.cli.verbs import Evaluate
        from ssl_train.opened import Opened

        if isinstance(run, TrainedRun):
            recipe, weights, data = run.recipe, str(run.folder), run.data if data is None else data
        elif isinstance(run, str | os.PathLike):
            weights = os.fspath(run)
            recipe = recipes[method_of(recipes, [weights]) or next(iter(recipes))]
        else:
            what = "evaluate(run, data=…) takes what train returned, or the name of a run folder or of weights"
            raise InputError(f"{what}, not a {type(run).__name__}")
        args = Evaluate(weights, **read_fields(Evaluate, options))
        where = {"data": data, "test": test, "device": args.device, "group": args.group}
        opened = Opened.from_weights(recipe, weights, **where, max_pixels=args.max_pixels, as_trained=True)
        return evaluated(opened, args)

    return evaluate


def _recipe_of(recipes: Mapping[str, Recipe], config: TrainConfig | str | None) -> Recipe:
    """The recipe with this name or this class of config; the first one for None."""
    trained = {name: recipe for name, recipe in recipes.items() if recipe.views}
    if config is None:
        return next(iter(trained.values()))
    if isinstance(config, str):
        if config not in trained:
            from ssl_train.data.names import near

            data = " Data are the second argument: train(data=…)." if os.path.exists(config) else ""
            raise ConfigError(f"no method {config!r}; there are {', '.join(trained)}.{near(config, trained)}{data}")
        return trained[config]
    for recipe in trained.values():
        if load(recipe.config) is type(config):
            return recipe
    known = ", ".join(recipe.config.partition(":")[2] for recipe in trained.values())
    what = f"{type(config).__name__} is the config of no method here; there are {known}"
    raise ConfigError(f"{what}. Data are the second argument: train(data=…)")
