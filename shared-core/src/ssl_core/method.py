"""What a method package hands to the core. Imports no torch, so that listing methods and `--help` are instant.

There is no base class. A method is any `nn.Module` with

    forward(batch: dict, progress: float) -> dict[str, Tensor]   "loss" is minimised, the other scalars are logged
    encode(images) -> Tensor                                     (b, d): what is evaluated and published

and, where its paper needs them,

    before_step(progress)   after unscaling and clipping, before the optimiser
    after_step(progress)    once per optimiser step: EMA, queue, centre, clamps
    param_groups(config)    optimiser groups other than `ssl_train.optim`'s
    patch_features(images)  (b, h, w, d)
    attach(source)          takes what it needs of opened data (a tokenizer); returns the source as this method reads it
    accumulates = True      the loss is a mean over samples, so micro-batches add up to the large batch
    accumulates = "jointly" forward takes a step's micro-batches at once, {"micro_batches": [batch, …]}
    can_collapse = True     constant features minimise a part of the loss, so the loop watches for them
    project(features)       (b, d) of `encode`'s features: what the loss compares, whose spread the loop logs
    architecture()          names of the config's fields that its weights fix, for --init; all but the optimiser's else
    collapse(scores, progress)   the cause, where its own logged scalars say so, else None

`progress` in [0, 1) is the share of optimiser steps done. State lives in buffers: `state_dict()` is the whole truth.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from typing import Any

from ssl_core.config import ConfigError


def load(name: str) -> Any:
    """The object behind "package.module:Name", or the entry of a dict there behind "package.module:NAME[key]"."""
    module, _, attribute = name.partition(":")
    attribute, _, key = attribute.removesuffix("]").partition("[")
    found = getattr(import_module(module), attribute)
    return found[key] if key else found


def attach(method: Any, source: Any) -> Any:
    """`source` as `method` reads it: its own `attach(source)` where it has one."""
    hook = getattr(method, "attach", None)
    return source if hook is None else hook(source)


@dataclass(frozen=True)
class Recipe:
    """One method, as import strings.

    `config` is its frozen dataclass, beside which `PRESETS` stand, `method` the module
    (built as `Method(config)`), `views` a function `build(config) -> transform` whose result makes one sample's
    tensors in a worker (empty for an encoder that is not trained here; its `check(source)`, where it has one, refuses
    data that it cannot use), `show` a function `show(method, source, folder)` that draws the figures and returns their
    captions. `eval_view` builds the transform of evaluations, `source` opens data: `open(data, *, config, split)`.
    `built_in` is the name of the data that there is without any, `blank` makes a sample without content for estimates,
    `blank(config)`. `raw` names and gives the baseline that needs no network, a function of what `encode` is given.
    `settle`, where data decides some fields (a vocabulary), fills them in: `settle(config, data) -> config`.
    `prepare(method, *, data, init, folder, options)` gives the method what else it needs (a trained tokenizer), at every
    start of a run, before the first step. `measure`
    gives figures that need no labels (a perplexity), for evaluation.json and, under "summary", lines for the terminal:
    `measure(method, source) -> dict`.
    """

    name: str
    package: str
    config: str
    method: str
    views: str
    show: str
    eval_view: str = "ssl_train.data.views:eval_view"
    source: str = "ssl_train.data.split:open_images"
    built_in: str = "scenes"
    blank: str = "ssl_train.data.views:blank"
    raw: tuple[str, str] = ("raw pixels", "ssl_train.evaluate.features:pixels")
    settle: str | None = None
    prepare: str | None = None
    measure: str | None = None

    @property
    def presets(self) -> dict[str, Callable[[], Any]]:
        """Preset name -> function that returns its config: `PRESETS[name]` of the config's module."""
        return load(f"{self.config.partition(':')[0]}:PRESETS")[self.name]

    def preset(self, name: str | None, *, built_in: bool = False) -> Any:
        """A preset's config; without a name `demo` for the built-in data, else the paper's. Raises ConfigError."""
        if name is None and not built_in:
            return load(self.config)()
        presets, name = self.presets, name or "demo"
        if name not in presets:
            raise ConfigError(f"no preset {name!r}; there are {', '.join(presets)}")
        return presets[name]()

    def settled(self, config: Any, data: Any) -> Any:
        """`config` with every field that `data` decides."""
        return config if self.settle is None else load(self.settle)(config, data)


@dataclass(frozen=True)
class Verb:
    """A command that only one package has, as import strings.

    `arguments` is a frozen dataclass, whose docstring is the help; `run(recipe, arguments)` does it. `methods` are the
    recipes that it is for, all by default; the first is taken where the arguments name none.
    """

    arguments: str
    run: str
    methods: tuple[str, ...] = ()
