"""Weights in and out: the one mixin that every method has."""

from __future__ import annotations

import dataclasses
import json
import os
import tempfile
import warnings
from pathlib import Path
from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn

from ssl_core.config import BackboneConfig, TrainConfig, encoder_fields, to_dict
from ssl_core.hub.card import write_card
from ssl_core.hub.layout import (
    CONFIG,
    HEADS,
    PREPROCESSOR,
    WEIGHTS,
    Layout,
    WeightsMismatch,
    layout_of,
    misshapen,
    read_weights,
    resized,
    shapes_of,
    shown,
)
from ssl_core.hub.remote import push, resolve
from ssl_core.hub.weights_file import save_weights, write_sums


class Pretrained:
    """Mixin of an `nn.Module` that is built as `Method(config)` and keeps it as `self.config`.

    A folder holds config.json (transformers' keys, ours under "ssl"), model.safetensors in the layout that
    transformers reads, heads.safetensors for what that layout has no place for, preprocessor_config.json (a text
    method: its tokenizer's files) and SHA256SUMS.
    """

    config_class: ClassVar[type]
    layout: ClassVar[str]
    """import string of the method's `Layout`, such as "ssl_mae.convert:LAYOUTS[mae]\""""
    config: Any
    encoder_alone = False
    """whether `from_pretrained` found no heads, so that those here are new"""

    def architecture(self) -> list[str]:
        """Names of the config's fields that these weights fix. A run that starts from them takes these fields.

        With a `BackboneConfig` they are the encoder's and, where the file had heads, theirs; else all but the recipe's.
        """
        layout = layout_of(self)
        if isinstance(self.config, BackboneConfig):
            return [*encoder_fields(self.config), *(() if self.encoder_alone else layout.head_fields)]
        recipe = {*layout.recipe, *(field.name for field in dataclasses.fields(TrainConfig))}
        return [field.name for field in dataclasses.fields(self.config) if field.name not in recipe]

    def save_pretrained(self, folder: str | Path) -> Path:
        """Write the folder that `from_pretrained` and transformers read. Every file is replaced whole or not at all."""
        assert isinstance(self, nn.Module)
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        layout = layout_of(self)
        theirs, heads = layout.keymap.to_theirs(self.state_dict())
        method = f"{type(self).__module__}:{type(self).__qualname__}"
        config = {**layout.to_theirs(self.config), "ssl": {"method": method, "config": to_dict(self.config)}}
        with tempfile.TemporaryDirectory(dir=folder, prefix=".saving-") as temporary:
            staged = Path(temporary)
            save_weights(staged / WEIGHTS, theirs)
            if heads:
                save_weights(staged / HEADS, heads)
            _write_json(staged / CONFIG, config)
            self.save_preprocessor(staged)
            names = sorted(path.name for path in staged.iterdir())
            write_sums(staged, names)
            for name in (*names, "SHA256SUMS"):
                os.replace(staged / name, folder / name)
        return folder

    def save_preprocessor(self, folder: Path) -> None:
        """Write how inputs are made: preprocessor_config.json of an image method, a tokenizer's files of a text method."""
        _write_json(folder / PREPROCESSOR, self.preprocessor())

    def load_preprocessor(self, folder: Path) -> None:
        """Read what `save_preprocessor` wrote, where it is there. An image method has it in its config."""

    def preprocessor(self) -> dict[str, Any]:
        """preprocessor_config.json of an image method: shorter side, centre crop, mean and std of the config."""
        h, w = self.config.size
        resize = {"do_resize": True, "size": {"shortest_edge": int(min(h, w) / self.config.crop_pct)}}
        crop = {"do_center_crop": True, "crop_size": {"height": h, "width": w}, "resample": 3}
        scale = {"do_rescale": True, "rescale_factor": 1 / 255, "do_normalize": True}
        pixels = {"image_mean": list(self.config.mean), "image_std": list(self.config.std)}
        convert = {"do_convert_rgb": self.config.in_channels == 3}
        return {"image_processor_type": "BitImageProcessor", **resize, **crop, **scale, **pixels, **convert}

    @classmethod
    def from_pretrained(
        cls,
        name: str | Path,
        *,
        config: Any = None,
        in_channels: int | None = None,
        image_size: int | tuple[int, int] | None = None,
        strict: bool = True,
        dtype: torch.dtype | None = None,
        device: str | torch.device | None = None,
        revision: str | None = None,
        token: str | None = None,
        cache_dir: str | Path | None = None,
        local_files_only: bool = False,
    ) -> Self:
        """Weights from a local folder, a Hub id or an author's checkpoint file, in eval mode.

        Reads our own folders, transformers' in every spelling, timm's and the authors' `.pth`. `config` replaces the
        checkpoint's; `in_channels` and `image_size` adapt the stem and the positions.
        Raises FileNotFoundError, HubError, WeightsError (a damaged file), ConfigError, and WeightsMismatch when a
        tensor is missing, unused or of another shape. With `strict=False` missing tensors keep their initialisation
        and unused ones are dropped; a warning lists them.
        """
        hub = {"revision": revision, "token": token, "cache_dir": cache_dir, "local_files_only": local_files_only}
        path = resolve(str(name), **hub)
        if path.name == WEIGHTS:
            path = path.parent  # its config.json lies beside it
        layout = layout_of(cls)

        # What the file holds must be a network of its own config, before anything of that size is allocated.
        state, unused, stored = read_weights(path, cls.config_class, layout)
        expected = shapes_of(cls, stored)
        if misshapen(state, expected):
            table = shown(_misfits(state, unused, expected))
            raise WeightsMismatch(f"{name}: the weights contradict their config:\n  {table}")

        # Then it is fitted to what is wanted, and built.
        wanted = _adapted(config or stored, in_channels, image_size)
        state = resized(state, stored, wanted, layout)
        method = cls(wanted)  # type: ignore[call-arg]
        assert isinstance(method, nn.Module)
        if state and not any(key.startswith((*layout.heads, *layout.copies)) for key in state):
            state = _with_new_heads(method, state, layout, source=str(name))
            method.encoder_alone = True
        _load_state(method, state, unused, source=str(name), strict=strict)
        if path.is_dir():
            method.load_preprocessor(path)
        return method.eval().to(device=device, dtype=dtype)

    def push_to_hub(
        self, repo_id: str, *, token: str | None = None, private: bool | None = None, license: str | None = None
    ) -> str:
        """Publish the weights in one commit and return its URL; `ssl_core.hub.remote.push` does it for a run folder.

        `license` is that of the weights, Apache-2.0 by default. Weights trained from CC-BY-NC weights stay CC-BY-NC.
        """
        with tempfile.TemporaryDirectory() as folder:
            self.save_pretrained(folder)
            write_card(folder, name=repo_id, layout=layout_of(self), license=license)
            return push(folder, repo_id, token=token, private=private)


def _adapted(config: Any, in_channels: int | None, image_size: int | tuple[int, int] | None) -> Any:
    """`config` for another image size or number of channels, whose mean and std are then those of the mean colour."""
    if image_size is not None:
        config = dataclasses.replace(config, image_size=image_size)
    if in_channels is not None and in_channels != config.in_channels:
        mean, std = ((sum(v) / len(v),) * in_channels for v in (config.mean, config.std))
        config = dataclasses.replace(config, in_channels=in_channels, mean=mean, std=std)
    return config


def _with_new_heads(method: nn.Module, state: dict[str, Tensor], layout: Layout, *, source: str) -> dict[str, Tensor]:
    """An encoder's `state` with the heads that `method` has just initialised, and momentum copies of both."""
    own = method.state_dict()
    new = {key: own[key] for key in own if key.startswith(layout.heads) and key not in state}
    if new:
        names = sorted({next(head for head in layout.heads if key.startswith(head)).rstrip(".") for key in new})
        warnings.warn(f"{source} holds an encoder without {', '.join(names)}: these are initialised anew", stacklevel=3)
    state = {**new, **state}
    for copy, original in layout.copies.items():
        state |= {copy + key[len(original) :]: state[key] for key in list(state) if key.startswith(original)}
    return state


def _misfits(state: dict[str, Tensor], unused: list[str], expected: dict[str, torch.Size]) -> list[str]:
    """A line for every tensor that is missing, unused or of another shape than `expected`."""
    missing = sorted(expected.keys() - state.keys())
    unused = sorted([*unused, *(state.keys() - expected.keys())])
    return [*(f"missing: {k}" for k in missing), *(f"unused: {k}" for k in unused), *misshapen(state, expected)]


def _load_state(method: nn.Module, state: dict[str, Tensor], unused: list[str], *, source: str, strict: bool) -> None:
    """Copy `state` into `method`, or raise WeightsMismatch with a table of what does not fit."""
    expected = {key: tensor.shape for key, tensor in method.state_dict().items()}
    problems, shapes = _misfits(state, unused, expected), misshapen(state, expected)
    if shapes or (strict and problems):
        hint = "" if shapes else "\nstrict=False keeps the initialisation of missing tensors and drops unused ones"
        raise WeightsMismatch(f"{source} does not fit {type(method).__name__}:\n  {shown(problems)}{hint}")
    if problems:
        warnings.warn(f"{source}: {'; '.join(problems)}", stacklevel=3)
    method.load_state_dict(state, strict=strict)


def _write_json(path: Path, value: dict[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")
