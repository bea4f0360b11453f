"""The commands that every package has, as dataclasses: a field is a flag, its docstring the help.
Imports no torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import tyro


@dataclass(frozen=True)
class Train:
    """Pretrain without labels. With no --data it runs on the built-in data; the same command again
    goes on where it was stopped."""

    data: str | None = None
    """images: a folder (recursive), CSV of paths and labels, .npz, torchvision:NAME, hf:NAME; text:
    a folder that `prepare` made; the built-in data by default"""
    out: str | None = None
    """run folder; runs/<method> by default"""
    preset: str | None = None
    """a named recipe, fitted to the data where it could not run on them; `auto` chooses from the
    data and the machine, the default with --data; `demo` without"""
    minutes: float | None = None
    """cut the run to this time, by an estimate; an hour on a CPU where the preset is `auto`"""
    max_steps: int | None = None
    """cut the run to this number of optimiser steps"""
    config: str | None = None
    """TOML or JSON file of settings, or a run folder with its settings; flags win over it"""
    init: str | None = None
    """start from these weights: a run folder, a Hub id, an author's .pth; their architecture is
    taken"""


@dataclass(frozen=True)
class Evaluate:
    """Measure frozen features against the same network at random initialisation and against raw
    inputs."""

    weights: tyro.conf.Positional[str]
    """run folder, Hub id or checkpoint file"""
    data: str | None = None
    """labelled data; a folder with train/ and test/ is split so, other data 80 to 20 by class"""
    test: str | None = None
    """labelled test data, when it is somewhere else"""
    protocols: tuple[Literal["knn", "linear", "fewshot", "finetune"], ...] = ("knn", "linear", "fewshot")
    """what to measure; finetune trains the whole network, and the same one from scratch beside
    it"""
    shots: tuple[int, ...] = (5,)
    """labels per class of the few-shot protocol"""
    finetune_epochs: float = 100
    """epochs of the finetune protocol"""
    device: str | None = None
    """cpu, cuda, cuda:1, mps; the best one here by default"""
    workers: int = 0
    """loader processes"""
    out: str | None = None
    """folder of evaluation.json; the run folder by default"""


@dataclass(frozen=True)
class Embed:
    """Write features to an .npz: features (n, d) float32, paths, labels."""

    weights: tyro.conf.Positional[str]
    """run folder, Hub id or checkpoint file"""
    data: str | None = None
    """images, as for train"""
    out: str = "features.npz"
    """the file to write"""
    device: str | None = None
    """cpu, cuda, cuda:1, mps; the best one here by default"""
    workers: int = 0
    """loader processes"""


@dataclass(frozen=True)
class Show:
    """Draw what the method has learned into figures/."""

    weights: tyro.conf.Positional[str]
    """run folder, Hub id or checkpoint file"""
    data: str | None = None
    """images, as for train"""
    out: str | None = None
    """folder of the pictures; the run folder's figures/ by default"""
    device: str | None = None
    """cpu, cuda, cuda:1, mps; the best one here by default"""


@dataclass(frozen=True)
class Push:
    """Publish a run folder to the Hugging Face Hub in one commit."""

    folder: tyro.conf.Positional[str]
    """run folder"""
    repo_id: tyro.conf.Positional[str]
    """name on the Hub, me/my-model"""
    private: bool = False
    """make a new repository private"""
    revision: str | None = None
    """branch to push to"""
    create_pr: bool = False
    """open a pull request instead"""
    dry_run: bool = False
    """list the files and stop"""
    license: str | None = None
    """licence of the weights, apache-2.0 by default; those trained from CC-BY-NC weights keep
    cc-by-nc-4.0"""


@dataclass(frozen=True)
class Info:
    """Parameters, FLOPs, memory and a time estimate, before anything is started."""

    weights: tyro.conf.Positional[str | None] = None
    """run folder, Hub id or checkpoint file; else the preset is described"""
    preset: str | None = None
    """a named recipe"""
    data: str | None = None
    """images, to estimate the time of a run on them"""
    device: str | None = None
    """cpu, cuda, cuda:1, mps; the best one here by default"""


@dataclass(frozen=True)
class Export:
    """Write the encoder in another project's layout."""

    weights: tyro.conf.Positional[str]
    """run folder, Hub id or checkpoint file"""
    out: tyro.conf.Positional[str]
    """folder to write"""
    to: str = "transformers"
    """whose layout: transformers, or another that the package writes"""


@dataclass(frozen=True)
class Compare:
    """Put several runs beside each other: a table, and a page with their curves."""

    runs: tyro.conf.Positional[tuple[str, ...]]
    """run folders, of this package or of others"""
    out: str = "compare.html"
    """the page to write"""


VERBS: dict[str, type] = {
    "train": Train, "evaluate": Evaluate, "embed": Embed, "show": Show, "push": Push, "info": Info, "export": Export,
    "compare": Compare,
}  # fmt: skip
