"""Arguments of the command that only ssl-beit has. Imports no torch."""

from __future__ import annotations

from dataclasses import dataclass

import tyro

from ssl_core.bounds import Checked, Count
from ssl_core.method import Verb


@dataclass(frozen=True)
class Tokenize(Checked):
    """Write the visual tokens of images to an .npz: ids (n, h, w), paths; and a picture of some."""

    weights: tyro.conf.Positional[str]
    """folder or Hub id of a tokenizer or of a BEiT with one, or the folder of DALL-E's pickles"""
    data: str | None = None
    """images, as for train; the built-in scenes by default"""
    out: str = "tokens.npz"
    """the file to write; the picture lies beside it, as .png"""
    size: int | None = None
    """pixels of a side, a multiple of 8; the tokenizer's own by default"""
    max_pixels: Count | None = None
    """leave out images of more pixels; by default as in training"""
    device: str | None = None
    """cpu, cuda, cuda:1, mps; the best one here by default"""


VERBS = {"tokenize": Verb(arguments="ssl_beit.verbs:Tokenize", run="ssl_beit.tokenize:run", methods=("dvae", "beit"))}
