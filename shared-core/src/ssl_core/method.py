"""What a method package hands to the core. Imports no torch, so that listing methods and `--help` are instant.

There is no base class. A method is any `nn.Module` with

    forward(batch: dict, progress: float) -> dict[str, Tensor]   "loss" is minimised, the other scalars are logged
    encode(images) -> Tensor                                     (b, d): what is evaluated and published

and, where its paper needs them,

    before_step(progress)   after unscaling and clipping, before the optimiser
    after_step(progress)    once per optimiser step: EMA, queue, centre, clamps
    param_groups(config)    optimiser groups other than `ssl_core.train.optim`'s
    patch_features(images)  (b, h, w, d)
    accumulates = True      the loss is a mean over samples, so micro-batches add up to the large batch
    can_collapse = True     constant features minimise a part of the loss, so the loop watches for them

`progress` in [0, 1) is the share of optimiser steps done. State lives in buffers: `state_dict()` is the whole truth.
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib import import_module
from typing import Any


def load(name: str) -> Any:
    """The object behind "package.module:Name"."""
    module, _, attribute = name.partition(":")
    return getattr(import_module(module), attribute)


@dataclass(frozen=True)
class Recipe:
    """One method, as import strings.

    `config` is its frozen dataclass, `presets` a dict of name -> function returning that dataclass, `method` the module
    (built as `Method(config)`), `views` a function `build(config) -> transform` whose result makes one sample's
    tensors in a worker (empty for an encoder that is not trained here), `show` a function `show(method, source,
    folder)` that draws the figures and returns their captions. `eval_view` builds the transform of evaluations,
    `source` opens data: `open(data, *, config, split)`.
    """

    name: str
    package: str
    config: str
    presets: str
    method: str
    views: str
    show: str
    eval_view: str = "ssl_core.data.views:eval_view"
    source: str = "ssl_core.data.split:open_images"
