"""Settings chosen from the data and the machine.

This is what `--preset auto` chooses, and how a named preset is adapted to data on which it cannot
run as it is. docs/presets.md explains the rules. A choice is made once: the run folder keeps it,
and a resumed run takes it from there.
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import numpy as np
import torch

from ssl_core.config import ConfigError
from ssl_core.device import autocast, pick_precision, seed_step
from ssl_core.errors import BadSample, DataError
from ssl_core.method import Recipe, load
from ssl_train.asked import Asked
from ssl_train.cost import cost_of
from ssl_train.data.files import printable
from ssl_train.data.loader import Batches, Plan, default_workers
from ssl_train.data.sources import Source, attach
from ssl_train.fit import to_device
from ssl_train.machine import free_memory

Network = Literal["tiny", "small", "base"]

SIDES = (32, 64, 96, 128, 160, 224)
"""The image sizes to choose from."""
MOST_SIDE_ON_CPU = 96
TINY_BELOW, SMALL_BELOW = 50_000, 1_000_000
"""Below so many samples the network is tiny, or small."""
STEPS_AN_EPOCH = 8
"""The fewest batches in an epoch."""
MOST_BATCH, MOST_BATCH_ON_CPU = 65536, 128
EPOCHS, FEWEST_STEPS, MOST_STEPS = 100, 2_000, 100_000
"""A run takes EPOCHS passes over the data, within these limits on the number of steps."""
MINUTES_ON_CPU = 60.0
"""A run on a CPU is shortened to this estimated time."""
ENOUGH_STEPS, SMALLEST_BATCH = 1_000, 32
"""If time is short, the batch shrinks until ENOUGH_STEPS fit, but not below SMALLEST_BATCH."""
WARMUP = 0.1
"""The largest share of a run that may be warm-up."""
MEMORY = 0.8
"""The largest share of the free memory that a batch may take, by the estimate."""


class Choice(NamedTuple):
    """A row of the table that is printed when a run begins."""

    name: str
    value: Any
    why: str

    @property
    def flag(self) -> str:
        """The flag that changes it."""
        if self.name == "network":
            return "--backbone, --width" if "resnet" in str(self.value) else "--dim, --depth, --heads"
        return "--" + self.name.replace("_", "-")


@dataclass(frozen=True)
class Look:
    """The result of a quick look at the data."""

    samples: int
    side: int | None
    """median length of the pictures' shorter sides, in pixels; None for text"""


def look_at(source: Source, most: int = 24) -> Look:
    """The number of samples, and the size of a few of them, evenly spread. Raises DataError if none
    of the few is readable."""
    sides, bad = [], []
    for index in np.linspace(0, len(source) - 1, min(most, len(source))).astype(int):
        try:
            image = source.load(int(index)).get("image")
        except BadSample as error:  # the run will name it, and count
            bad.append(printable(f"{source.name(int(index))}: {error}"))
            continue
        if image is None:
            break
        sides.append(min(image.shape[-2:]))
    if len(bad) == min(most, len(source)):
        raise DataError(f"none of {len(bad)} samples that were looked at is readable. {bad[0]}")
    return Look(len(source), int(statistics.median(sides)) if sides else None)


def starting_point(recipe: Recipe, asked: Asked, data: Any) -> Any:
    """A config that is good enough to open the data, before we know what suits them."""
    base = asked.preset
    if base is None:
        base = _fit(recipe)("tiny", _side(asked.typed.get("image_size", SIDES[0])), STEPS_AN_EPOCH)
    return recipe.settled(type(base)(**{**vars(base), "warmup_epochs": 0.0, **asked.typed}), data)


def _fit(recipe: Recipe) -> Callable[[Network, int, int], Any]:
    """The method's own function of network, side and samples. Raises ConfigError if it has none."""
    if recipe.fitted is None:
        raise ConfigError(f"{recipe.name} chooses no settings by itself: name one of its presets, --preset NAME")
    return load(recipe.fitted)


def _side(size: int | tuple[int, int]) -> int:
    """Pixels of the longer side of the images that a network is made for; 0 for text."""
    side = max(size) if isinstance(size, tuple) else size
    return max(side, SIDES[0]) if side else 0


def settled(recipe: Recipe, asked: Asked, source: Source, data: Any, device: torch.device) -> tuple[Any, list[Choice]]:
    """(config, the choices that made it) for training on `source`, which was opened from `data`.

    What was typed stays. Raises ConfigError where a typed value cannot be used on these data; the
    message has the nearest value that can.
    """
    samples = len(source)
    look = look_at(source) if asked.preset is None else None  # a named preset needs no look
    values, choices = fitted(asked, samples) if look is None else chosen(recipe, asked, look, data, device)
    make = load(recipe.config)

    # The steps and the time that the user allows shorten the run. To know the time, we run a step.
    minutes = asked.minutes
    if minutes is None and look is not None and "epochs" not in asked.typed and device.type == "cpu":
        minutes = MINUTES_ON_CPU
    limits = [] if asked.max_steps is None else [(asked.max_steps, "--max-steps")]
    if minutes is not None:
        config = recipe.settled(make(**values | {"warmup_epochs": 0.0}), data)
        seconds = pace(recipe, config, source, device)
        if look is not None and 60 * minutes / seconds < ENOUGH_STEPS:
            # Many small steps are better than a few large ones.
            most = max(SMALLEST_BATCH, int(config.batch_size * 60 * minutes / (seconds * ENOUGH_STEPS)))
            why = f"the largest for {ENOUGH_STEPS:,} steps in {minutes:g} minutes"
            values, choices = chosen(recipe, asked, look, data, device, most=(most, why))
            seconds *= values["batch_size"] / config.batch_size
        limits.append((max(1, int(60 * minutes / seconds)), f"{minutes:g} minutes at {seconds:.2g} s a step"))
    steps_per_epoch = Plan(samples, values["batch_size"], values["epochs"], 0).steps_per_epoch
    for steps, why in limits:
        if values["epochs"] * steps_per_epoch > steps:
            values["epochs"] = steps / steps_per_epoch
            choices = [row for row in choices if row.name != "epochs"]
            choices.append(Choice("epochs", f"{values['epochs']:.4g}", why))

    # Warm-up is part of the run. A warm-up that the user typed stays, and one longer than the run
    # is refused.
    most = WARMUP * values["epochs"]
    too_long = values["warmup_epochs"] > (values["epochs"] if look is None else most)
    if too_long and "warmup_epochs" not in asked.typed:
        choices.append(Choice("warmup_epochs", f"{most:.4g}", f"a tenth of the run of {values['epochs']:.4g} epochs"))
        values["warmup_epochs"] = most
    return recipe.settled(make(**values), data), choices


def fitted(asked: Asked, samples: int) -> tuple[dict[str, Any], list[Choice]]:
    """(values, choices) for a named preset, with a batch that the data can fill."""
    values = {**vars(asked.preset), **asked.typed}
    choices = []
    if values["batch_size"] > samples and "batch_size" not in asked.typed:
        batch = batch_for(samples)
        choices.append(Choice("batch_size", f"{values['batch_size']} → {batch}", f"the data has {samples:,} samples"))
        values["batch_size"] = batch
    return values, choices


def chosen(
    recipe: Recipe, asked: Asked, look: Look, data: Any, device: torch.device, most: tuple[int, str] = (MOST_BATCH, "")
) -> tuple[dict[str, Any], list[Choice]]:
    """(values, choices) for these data on this device.

    `most` is the largest batch that is allowed, and the reason.
    """
    on_cpu, typed = device.type == "cpu", asked.typed
    choices: list[Choice] = []

    def choose(name: str, value: Any, why: str) -> Any:
        """The typed value if there is one, else `value`, which is noted with its reason."""
        if name in typed:
            return typed[name]
        choices.append(Choice(name, value, why))
        return value

    # An image size that the pictures fill, and a network that suits their number.
    side = 0
    if look.side is not None:
        side, why = side_for(look.side, on_cpu)
        side = choose("image_size", side, why)
    network, why = network_for(look.samples, on_cpu)
    base = _fit(recipe)(network, _side(side), look.samples)
    values = {**vars(base), **({"image_size": side} if side else {}), **typed}
    if not {"dim", "depth", "backbone"} & typed.keys() and (name := network_name(values)):
        choices.append(Choice("network", name, why))

    # On a CPU, lower precision does not speed up small matrices.
    if on_cpu:
        values["precision"] = choose("precision", "fp32", "small matrices gain nothing from less on a CPU")

    # A batch that leaves enough steps in an epoch and fits into memory.
    reasons = [
        (batch_for(look.samples), f"{STEPS_AN_EPOCH} steps or more an epoch of {look.samples:,}"),
        (base.batch_size, "the largest that suits the method"),
        (MOST_BATCH_ON_CPU if on_cpu else MOST_BATCH, "a CPU takes more steps, and smaller ones"),
        (power_of_two(most[0]), most[1]),
    ]
    batch, why = min(reasons, key=lambda reason: reason[0])
    if "batch_size" not in typed and (free := free_memory(device)) is not None:
        trial = recipe.settled(type(base)(**values | {"batch_size": batch, "warmup_epochs": 0.0}), data)
        with torch.device("meta"):
            method = load(recipe.method)(trial)
        fits = cost_of(recipe, method, device).fitting(int(MEMORY * free))
        if fits < batch:
            batch, why = max(fits, 1), f"what {free / 1e9:.1f} GB of free memory hold"
    values["batch_size"] = batch = choose("batch_size", batch, why)

    # The papers scale the rate linearly, for large batches. Below 256 we scale by the square root.
    if batch < 256:
        rate = base.base_lr * math.sqrt(256 / batch)
        values["base_lr"] = choose(
            "base_lr", float(f"{rate:.2g}"), f"the rate falls by the square root of {batch} / 256"
        )
    steps_per_epoch = max(1, look.samples // batch)
    steps = min(max(EPOCHS * steps_per_epoch, FEWEST_STEPS), MOST_STEPS)
    epochs = min(steps / steps_per_epoch, base.epochs)
    why = f"{epochs * steps_per_epoch:,.0f} steps of {batch}"
    values["epochs"] = choose("epochs", float(f"{epochs:.3g}"), why)
    return values, choices


def batch_for(samples: int) -> int:
    """The largest power of two that leaves STEPS_AN_EPOCH steps, or 8, or as many as there are."""
    return power_of_two(max(samples // STEPS_AN_EPOCH, min(samples, 8), 1))


def power_of_two(number: int) -> int:
    """The largest power of two up to `number`."""
    return 1 << (number.bit_length() - 1)


def side_for(shorter: int, on_cpu: bool) -> tuple[int, str]:
    """(image size, reason) for pictures whose shorter sides have this median."""
    allowed = [side for side in SIDES if not on_cpu or side <= MOST_SIDE_ON_CPU]
    side = max((side for side in allowed if side <= shorter), default=allowed[0])
    if side == allowed[-1] < shorter:
        return side, "a CPU takes no larger ones in an hour" if on_cpu else "the size of the papers"
    return side, f"the shorter sides are {shorter} pixels in the median"


def network_for(samples: int, on_cpu: bool) -> tuple[Network, str]:
    """(size of the network, reason)."""
    if on_cpu:
        return "tiny", "a CPU trains no larger one in an hour"
    if samples < TINY_BELOW:
        return "tiny", f"{samples:,} samples are fewer than {TINY_BELOW:,}"
    return ("small" if samples < SMALL_BELOW else "base"), f"{samples:,} samples"


def network_name(values: dict[str, Any]) -> str:
    """The network of a config in a few words; "" if its fields are none of the usual ones."""
    kind = values.get("backbone", values.get("tower"))
    if kind and kind.startswith("resnet"):
        return f"{kind}, width {values.get('width', values.get('dim'))}"
    return f"{values['depth']} blocks of width {values['dim']}" if "depth" in values else ""


def pace(recipe: Recipe, config: Any, source: Source, device: torch.device) -> float:
    """Seconds that a step of `config` takes on this machine.

    We build the network and run two steps on real samples. The second one counts.
    """
    seed_step(config.seed)
    method = load(recipe.method)(config)
    source = attach(method, source)
    method = method.to(device).train()
    plan = Plan(len(source), config.batch_size, config.epochs, config.seed)
    loader = Batches(source, load(recipe.views)(config), plan)
    precision: Any = pick_precision(config.precision, device)

    start = time.perf_counter()
    (batch,) = next(iter(loader))
    loading = time.perf_counter() - start
    for _ in range(2):
        start = time.perf_counter()
        with autocast(precision, device):
            loss = method(to_device(batch, device), 0.0)["loss"]
        loss.backward()
        loss.item()  # waits until a GPU has finished
        computing = time.perf_counter() - start
    # On a CPU, loading and computing share the cores. Beside a GPU, they run at the same time.
    return loading + computing if device.type == "cpu" else max(loading / default_workers(), computing)


def table(choices: list[Choice]) -> str:
    """The choices as text, one per line: field, value, reason, and the flag that changes it; empty
    without choices."""
    if not choices:
        return ""
    shown = [f"{row.value:g}" if isinstance(row.value, float) else str(row.value) for row in choices]
    rows = [(row.name, value, row.why, row.flag) for row, value in zip(choices, shown, strict=True)]
    widths = [max(len(row[i]) for row in rows) for i in range(3)]
    lines = ("  ".join([*map(str.ljust, row[:3], widths), row[3]]) for row in rows)
    return "\n".join(["chosen for these data and this machine:", *lines])
