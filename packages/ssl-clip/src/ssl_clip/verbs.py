"""Arguments of the commands that only ssl-clip has. Imports no torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import tyro

from ssl_core.bounds import Checked, Count
from ssl_core.method import Verb


@dataclass(frozen=True)
class Classify(Checked):
    """Say which of some labels fits an image, or how often that is right for a whole folder."""

    images: tyro.conf.Positional[tuple[str, ...]] = ()
    """image files"""
    labels: tuple[str, ...] = ()
    """names to choose from; with --data the names of its sub-folders by default"""
    templates: tuple[str, ...] = ()
    """texts with a {} for the label, or one file of them, a line each"""
    data: str | None = None
    """folder with a sub-folder per class, or any labelled data that `evaluate` reads"""
    weights: str = "runs/clip"
    """run folder, Hub id or open_clip's folder"""
    out: str = "confusion.png"
    """picture of the confusion matrix of --data (needs matplotlib)"""
    max_pixels: Count | None = None
    """leave out images of more pixels; by default as in training"""
    device: str | None = None
    """cpu, cuda, cuda:1, mps; the best one here by default"""


@dataclass(frozen=True)
class Index(Checked):
    """Make a folder of images searchable.

    Repeat the command to add what is new or changed and to drop what is gone. If it was stopped, it
    continues.
    """

    folder: tyro.conf.Positional[str]
    """images, searched through"""
    out: str = "photos.index"
    """folder of the index"""
    weights: str = "runs/clip"
    """run folder, Hub id or open_clip's folder"""
    batch_size: int = 64
    """images encoded at once"""
    workers: int = 0
    """processes that read images"""
    max_pixels: Count | None = None
    """leave out images of more pixels; by default as in training"""
    device: str | None = None
    """cpu, cuda, cuda:1, mps; the best one here by default"""


@dataclass(frozen=True)
class Search(Checked):
    """Find the images of an index that fit a text or resemble an image, and write a page."""

    index: tyro.conf.Positional[str]
    """folder that `index` wrote"""
    query: tyro.conf.Positional[str | None] = None
    """what to look for, in words"""
    image: str | None = None
    """an image to look for others like it"""
    top_k: int = 10
    """how many to show"""
    html: str | None = "search.html"
    """page of thumbnails"""
    max_pixels: Count | None = None
    """read no images of more pixels; by default as in training"""
    weights: str | None = None
    """the model, where it is no longer at the place that the index remembers"""
    device: str | None = None
    """cpu, cuda, cuda:1, mps; the best one here by default"""


@dataclass(frozen=True)
class Map(Checked):
    """Draw images and texts into one picture, and measure the gap between the two kinds.

    Needs matplotlib and scikit-learn.
    """

    weights: tyro.conf.Positional[str] = "runs/clip"
    """run folder, Hub id or open_clip's folder"""
    data: str | None = None
    """images, with or without captions; the built-in pairs by default"""
    texts: tuple[str, ...] = ()
    """texts to draw; the images' captions by default"""
    number: int = 60
    """images to draw"""
    method: Literal["tsne", "pca"] = "tsne"
    """projection"""
    centre: bool = False
    """take each kind's mean away first, and with it the gap that otherwise is all that one sees"""
    out: str = "map.png"
    """the picture"""
    max_pixels: Count | None = None
    """leave out images of more pixels; by default as in training"""
    device: str | None = None
    """cpu, cuda, cuda:1, mps; the best one here by default"""


VERBS = {
    "classify": Verb(arguments="ssl_clip.verbs:Classify", run="ssl_clip.classify:run"),
    "index": Verb(arguments="ssl_clip.verbs:Index", run="ssl_clip.index:run"),
    "search": Verb(arguments="ssl_clip.verbs:Search", run="ssl_clip.search:run"),
    "map": Verb(arguments="ssl_clip.verbs:Map", run="ssl_clip.map:run"),
}
