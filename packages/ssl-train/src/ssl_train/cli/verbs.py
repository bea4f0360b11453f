"""The commands that every package has, as dataclasses: a field is a flag, its docstring the help.
Imports no torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import tyro

from ssl_core.bounds import Checked, Count, Positive, Rate, Whole


@dataclass(frozen=True)
class Train(Checked):
    """Pretrain without labels, on the built-in data if you give none. Rerun a stopped command to
    resume."""

    data: str | None = None
    """images: a folder (recursive), CSV of paths and labels, .npz, torchvision:NAME, hf:NAME; text:
    files, tables, a folder of them, or one that `prepare` made; the built-in data by default"""
    out: str | None = None
    """run folder; runs/<method> by default"""
    held_out: Rate | None = None
    """share of the data that is never trained on, for `evaluate`, if they have no test part; by
    default a fifth (0.2) if there are labels, else nothing"""
    group: str | None = None
    """column of a CSV, such as patient: pictures with the same cell are all trained on, or all held
    out"""
    views: Literal["natural", "medical", "satellite", "microscopy"] | None = None
    """what the pictures are: sets the flags of their views, each of which may be given besides"""
    preset: str | None = None
    """a named recipe, fitted to the data where it could not run on them; `auto` chooses from the
    data and the machine, the default with --data; `demo` without"""
    minutes: float | None = None
    """cut the run to this time, by an estimate; an hour on a CPU where the preset is `auto`"""
    max_steps: int | None = None
    """cut the run to this number of optimiser steps"""
    config: str | None = None
    """TOML or JSON file of settings, or a run folder with its settings; flags override it"""
    init: str | None = None
    """start from these weights: a run folder, a Hub id, an author's .pth; their architecture is
    taken"""


@dataclass(frozen=True)
class Evaluate(Checked):
    """Measure frozen features against the same network at random initialisation and against raw
    inputs."""

    weights: tyro.conf.Positional[str]
    """run folder, Hub id or checkpoint file"""
    data: str | None = None
    """labelled data; the test part is test/, or what the run held out of these data, or a fifth"""
    test: str | None = None
    """labelled test data, when it is somewhere else"""
    group: str | None = None
    """column of a CSV, such as patient, whose equal cells stay together in every split; the run's
    by default"""
    protocols: tuple[Literal["knn", "linear", "fewshot", "curve", "finetune"], ...] = ("knn", "linear", "fewshot")
    """what to measure; curve is the linear probe on 1, 5, 10 and 100 % of the labels; finetune
    trains the whole network, and the same one from scratch beside it, and writes the former to
    finetuned/ for `predict`"""
    shots: tuple[Count, ...] | None = None
    """labels per class of the few-shot protocol; 5 by default, or what the smallest class has"""
    finetune_epochs: Positive | None = None
    """epochs of the finetune protocol; by default its paper's, 100 of a ViT and 60 of a ResNet"""
    device: str | None = None
    """cpu, cuda, cuda:1, mps; the best one here by default"""
    batch_size: Count = 256
    """images encoded at once: fewer need less memory, and the features are the same"""
    precision: Literal["fp32", "bf16"] = "fp32"
    """of the network: bf16 is faster on a GPU, and features differ in the third digit"""
    workers: Whole = 0
    """loader processes"""
    max_pixels: Count | None = None
    """leave out images of more pixels; by default as in training"""
    out: str | None = None
    """folder of evaluation.json; by default the run folder, for RUN@STEP its
    snapshots/step-STEP/"""


@dataclass(frozen=True)
class Embed(Checked):
    """Write features to an .npz: features (n, d) float32, paths, labels."""

    weights: tyro.conf.Positional[str]
    """run folder, Hub id or checkpoint file"""
    data: str | None = None
    """images, as for train"""
    out: str = "features.npz"
    """the file to write"""
    device: str | None = None
    """cpu, cuda, cuda:1, mps; the best one here by default"""
    batch_size: Count = 256
    """images encoded at once: fewer need less memory, and the features are the same"""
    precision: Literal["fp32", "bf16"] = "fp32"
    """of the network: bf16 is faster on a GPU, and features differ in the third digit"""
    workers: Whole = 0
    """loader processes"""
    max_pixels: Count | None = None
    """leave out images of more pixels; by default as in training"""


@dataclass(frozen=True)
class Predict(Checked):
    """Say the classes of pictures, by a network that `evaluate --protocols finetune` trained."""

    network: tyro.conf.Positional[str]
    """run folder, its finetuned/, or the Hub id of such a network"""
    pictures: tyro.conf.Positional[tuple[str, ...]]
    """image files, and folders of them"""
    top: Count = 3
    """how many classes of each picture, the likeliest first"""
    out: str | None = None
    """also write them to this CSV: path, rank, class, probability"""
    device: str | None = None
    """cpu, cuda, cuda:1, mps; the best one here by default"""
    batch_size: Count = 256
    """images read at once: fewer need less memory, and the classes are the same"""
    workers: Whole = 0
    """loader processes"""
    max_pixels: Count | None = None
    """leave out images of more pixels; by default as in training"""


@dataclass(frozen=True)
class Show(Checked):
    """Draw what the method has learned into figures/."""

    weights: tyro.conf.Positional[str]
    """run folder, Hub id or checkpoint file"""
    data: str | None = None
    """images, as for train"""
    out: str | None = None
    """folder of the pictures; the run folder's figures/ by default"""
    max_pixels: Count | None = None
    """leave out images of more pixels; by default as in training"""
    device: str | None = None
    """cpu, cuda, cuda:1, mps; the best one here by default"""


@dataclass(frozen=True)
class Push(Checked):
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
class Info(Checked):
    """Parameters, FLOPs, memory and a time estimate, before anything is started. Every setting of
    `train` can be changed by its flag."""

    weights: tyro.conf.Positional[str | None] = None
    """run folder, Hub id or checkpoint file; else the preset is described"""
    preset: str | None = None
    """a named recipe; by default the paper's"""
    config: str | None = None
    """TOML or JSON file of settings; flags override it"""
    data: str | None = None
    """images, to estimate the time of a run on them"""
    device: str | None = None
    """cpu, cuda, cuda:1, mps; the best one here by default"""


@dataclass(frozen=True)
class Export(Checked):
    """Write the encoder in another project's layout, or as a program of torch or ONNX."""

    weights: tyro.conf.Positional[str]
    """run folder, Hub id or checkpoint file"""
    out: tyro.conf.Positional[str]
    """folder to write"""
    to: str = "transformers"
    """whose layout: transformers, or another that the package writes; or a program: torch, onnx"""
    int8: bool = False
    """with --to onnx: matrix products in int8, and how well the features agree"""
    data: str | None = None
    """with --int8: data to compare the features on; by default the run's held-out part"""


@dataclass(frozen=True)
class Compare:
    """Put several runs beside each other: a table, and a page with their curves."""

    runs: tyro.conf.Positional[tuple[str, ...]]
    """run folders, of this package or of others"""
    out: str = "compare.html"
    """the page to write"""


@dataclass(frozen=True)
class Output:
    """How a command tells its result. Every command has these flags."""

    quiet: bool = False
    """say errors, warnings and the result, and nothing on the way"""
    json: bool = False
    """write the result to stdout as one JSON object, and everything else to stderr"""


VERBS: dict[str, type] = {
    "train": Train, "evaluate": Evaluate, "embed": Embed, "predict": Predict, "show": Show, "push": Push, "info": Info,
    "export": Export, "compare": Compare,
}  # fmt: skip
