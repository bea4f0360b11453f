"""What a method package hands to the core.

Imports no torch, so that listing methods and `--help` are instant. There is no base class. A method
is any `nn.Module` with

    forward(batch: dict, progress: float) -> dict[str, Tensor]
        "loss" is minimised, the other scalars are logged
    encode(images) -> Tensor
        (b, d): what is evaluated and published

and, where its paper needs them,

    before_step(progress)   after unscaling and clipping, before the optimiser
    after_step(progress)    once per optimiser step: EMA, queue, centre, clamps
    param_groups(config)    optimiser groups other than `ssl_train.optim`'s
    patch_features(images)  (b, h, w, d)
    attach(source)          takes what it needs of opened data (a tokenizer); returns the source
                            as this method reads it
    accumulates = True      the loss is a mean over samples, so micro-batches add up to the batch
    targets(batch) -> int   what the loss of a batch is a mean over, if samples differ in how many
                            they have: micro-batches are weighted by it
    accumulates = "jointly" forward takes all micro-batches, {"micro_batches": [batch, …]}
    can_collapse = True     constant features minimise part of the loss: the loop watches for them
    project(features)       (b, d) of `encode`'s features: what the loss compares; the loop logs
                            its spread
    architecture()          names of the config's fields that its weights fix, for --init;
                            otherwise, every field except the optimiser's
    collapse(scores, progress)   the cause if its own logged scalars show a collapse, else None

`progress` in [0, 1) is the share of optimiser steps done. State lives in buffers: `state_dict()` is
the whole truth.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from typing import Any

from ssl_core.config import ConfigError


def load(name: str) -> Any:
    """The object behind "package.module:Name", or the entry of a dict there behind
    "package.module:NAME[key]"."""
    module, _, attribute = name.partition(":")
    attribute, _, key = attribute.removesuffix("]").partition("[")
    found = getattr(import_module(module), attribute)
    return found[key] if key else found


@dataclass(frozen=True)
class Recipe:
    """One method. What needs torch is named by an import string, "package.module:Name"."""

    name: str
    """what --method says, and the key in `RECIPES`, `PRESETS` and `LAYOUTS`"""
    package: str
    """the package's module, such as "ssl_mae\""""
    config: str
    """its frozen dataclass; `PRESETS` stand beside it"""
    method: str
    """its module, built as `Method(config)`"""
    views: str
    """`build(config) -> transform`: one sample's tensors, made in a worker. Empty for an encoder
    that is not trained here. The transform may have `check(source)`, which refuses data"""
    show: str
    """`show(method, source, folder)` draws the figures and returns {file name: caption}"""
    eval_view: str = "ssl_train.data.views:eval_view"
    """`build(config) -> transform` of evaluations"""
    source: str = "ssl_train.data.sources:open_images"
    """`open(data, *, config, split)` opens data"""
    built_in: str = "scenes"
    """name of the built-in data"""
    blank: str = "ssl_train.data.views:blank"
    """`blank(config)` makes a sample without content, for estimates"""
    raw: tuple[str, str] = ("raw pixels", "ssl_train.evaluate.features:pixels")
    """name of the baseline without a network, and the baseline: a function of `encode`'s input"""
    fitted: str | None = None
    """`fitted(network, side, samples) -> config`: the method for so many samples, by a `tiny`,
    `small` or `base` network, for images of `side` pixels (0 for text). Its batch is the largest
    that suits, its rate that of a batch of 256"""
    settle: str | None = None
    """`settle(config, data) -> config` fills in the fields that data decides (a vocabulary)"""
    ready: str | None = None
    """`ready(data, folder, asked=None, init=None) -> (data, choices)` makes of raw data what
    `source` opens, in the run's folder; without `asked` it only finds what is there"""
    prepare: str | None = None
    """`prepare(method, *, data, held_out, group, init, folder, options)` makes what else a run
    needs, at its start"""
    measure: str | None = None
    """`measure(method, source) -> dict`: figures without labels, such as a perplexity, for
    evaluation.json; its "summary" holds lines for the terminal"""

    @property
    def presets(self) -> dict[str, Callable[[], Any]]:
        """Preset name -> function that makes its config: `PRESETS[name]` beside the config."""
        return load(f"{self.config.partition(':')[0]}:PRESETS")[self.name]

    def preset(self, name: str | None, *, built_in: bool = False) -> Any:
        """A preset's config; without a name `demo` for the built-in data, else the paper's. Raises
        ConfigError."""
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

    `arguments` is a frozen dataclass whose docstring is the help. `run(recipe, arguments)` does the
    work. `methods` are the recipes that it is for, by default all; the first is the default.
    """

    arguments: str
    run: str
    methods: tuple[str, ...] = ()
