"""DALL-E's published tokenizer: two pickles of whole modules. Nothing in them is run."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor

from ssl_core.hub.weights_file import WeightsError, load_pickle


class Shell:
    """Stands for a class of a pickle. It takes the attributes and has no code."""


THEIRS = ("encoder.Encoder", "encoder.EncoderBlock", "decoder.Decoder", "decoder.DecoderBlock", "utils.Conv2d")
TORCHS = ("container.Sequential", "activation.ReLU", "linear.Identity", "pooling.MaxPool2d", "upsampling.Upsample")
CLASSES = (*(f"dall_e.{name}" for name in THEIRS), *(f"torch.nn.modules.{name}" for name in TORCHS))
"""The classes in `encoder.pkl` and `decoder.pkl`."""


def is_dalle(folder: Path) -> bool:
    """Whether a folder holds DALL-E's `encoder.pkl`."""
    return (folder / "encoder.pkl").is_file()


def read_dalle(folder: Path) -> dict[str, Tensor]:
    """The tensors of DALL-E's two files under their names, with "encoder." or "decoder." in front.

    No class of the pickles is imported: a module becomes a `Shell`, and anything that is not one of
    `CLASSES` is refused. Raises WeightsError, and FileNotFoundError if one of the files is missing.
    """
    state = {}
    allowed = [*((Shell, name) for name in CLASSES), (set, "__builtin__.set")]
    for part in ("encoder", "decoder"):
        path = folder / f"{part}.pkl"
        if not path.is_file():
            raise FileNotFoundError(f"{folder} holds no {path.name}: DALL-E's tokenizer is two files")
        # The unpickler makes a `Shell` where the file says one of `CLASSES`.
        with torch.serialization.safe_globals(allowed):
            root = load_pickle(path)
        if not isinstance(root, Shell):
            raise WeightsError(f"{path} holds {type(root).__name__}, not DALL-E's {part}")
        state |= {f"{part}.{name}": tensor.float() for name, tensor in tensors(root, path)}
    return state


def tensors(shell: Shell, path: Path) -> Iterator[tuple[str, Tensor]]:
    """(name, tensor) of a module's parameters, and of those of the modules in it."""
    # What torch keeps in the attributes of every module.
    content = vars(shell)
    for name, tensor in dict(content.get("_parameters") or {}).items():
        if not isinstance(tensor, Tensor):
            raise WeightsError(f"{path}: {name} is {type(tensor).__name__}, not a tensor")
        yield name, tensor.detach()
    for name, child in dict(content.get("_modules") or {}).items():
        if not isinstance(child, Shell):
            raise WeightsError(f"{path}: {name} is {type(child).__name__}, not a module")
        yield from ((f"{name}.{below}", tensor) for below, tensor in tensors(child, path))
