"""Weights in and out: the one mixin that every method has."""

from __future__ import annotations

import dataclasses
import tempfile
import warnings
from pathlib import Path
from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn

from ssl_core.config import BackboneConfig, TrainConfig, encoder_fields, to_dict
from ssl_core.hub.card import write_card
from ssl_core.hub.checkpoint import checkpoint_of
from ssl_core.hub.format import SECTION, written_by
from ssl_core.hub.layout import (
    CONFIG,
    INDEX,
    PREPROCESSOR,
    WEIGHTS,
    Layout,
    check_agrees,
    check_fit,
    lacks_heads,
    layout_of,
    read_json,
    read_sketch,
    read_weights,
    resized,
    sketch,
)
from ssl_core.hub.remote import push, resolve
from ssl_core.hub.weights_file import save_weights, staged, write_json


class Pretrained:
    """Mixin of an `nn.Module` that is built as `Method(config)` and keeps it as `self.config`.

    A folder holds config.json (transformers' keys, ours under "ssl_core"), model.safetensors in the
    layout that transformers reads, heads.safetensors for what that layout has no place for,
    preprocessor_config.json (a text method: its tokenizer's files) and SHA256SUMS.
    """

    config_class: ClassVar[type]
    layout: ClassVar[str]
    """import string of the method's `Layout`, such as "ssl_mae.convert:LAYOUTS[mae]\""""
    config: Any
    encoder_alone = False
    """whether `from_pretrained` found no heads, so that those here are new"""

    def architecture(self) -> list[str]:
        """Names of the config's fields that these weights fix. A run that starts from them takes
        these fields.

        With a `BackboneConfig` they are the encoder's and, where the file had heads, theirs; else
        all but the recipe's and, where the file had no heads, theirs.
        """
        layout = layout_of(self)
        if isinstance(self.config, BackboneConfig):
            return [*encoder_fields(self.config), *(() if self.encoder_alone else layout.head_fields)]
        free = {*layout.recipe, *(field.name for field in dataclasses.fields(TrainConfig))}
        free |= {*(layout.head_fields if self.encoder_alone else ())}
        return [field.name for field in dataclasses.fields(self.config) if field.name not in free]

    def __str__(self) -> str:
        """Its input and the sizes of its parts, for `print`; `repr` shows every layer."""
        assert isinstance(self, nn.Module)
        sizes = {
            name: sum(p.numel() for p in part.parameters()) for name, part in [*self.named_children(), ("all", self)]
        }
        size = getattr(self.config, "size", None)
        given = f"up to {self.config.context} tokens" if size is None else f"images {(self.config.in_channels, *size)}"
        rows = (f"\n  {name:20}{size:>13,} parameters" for name, size in sizes.items() if size)
        return "".join([f"{type(self).__name__} for {given}", *rows])

    def save_pretrained(self, folder: str | Path) -> Path:
        """Write the folder that `from_pretrained` and transformers read. Every file is replaced
        whole or not at all."""
        assert isinstance(self, nn.Module)
        layout, method = layout_of(self), f"{type(self).__module__}:{type(self).__qualname__}"
        theirs, heads = layout.keymap.to_theirs(self.state_dict())
        own = {"method": method, "config": to_dict(self.config), "written_by": written_by(type(self.config))}
        with staged(Path(folder)) as beside:
            save_weights(beside / WEIGHTS, theirs)
            if heads:
                save_weights(beside / "heads.safetensors", heads)
            write_json(beside / "config.json", {**layout.to_theirs(self.config), SECTION: own})
            self.save_preprocessor(beside)
        return Path(folder)

    def save_preprocessor(self, folder: Path) -> None:
        """Write how inputs are made: preprocessor_config.json of an image method, a tokenizer's
        files of a text method."""
        write_json(folder / PREPROCESSOR, self.preprocessor())

    def load_preprocessor(self, folder: Path) -> None:
        """Read what `save_preprocessor` wrote, where it is there. An image method has it in its
        config."""

    def preprocessor(self) -> dict[str, Any]:
        """preprocessor_config.json of an image method: shorter side, centre crop, mean and std of
        the config."""
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

        Reads our own folders, transformers' in every spelling, timm's and the authors' `.pth`. Of a
        run that is not finished it reads the newest checkpoint, and of `run@1000` that of a step.
        `config` replaces the checkpoint's; `in_channels` and `image_size` adapt the stem and the
        positions. Raises FileNotFoundError, HubError, WeightsError (a damaged file), ConfigError,
        and WeightsMismatch when a tensor is missing, unused or of another shape. With
        `strict=False` missing tensors keep their initialisation and unused ones are dropped; a
        warning lists them.
        """
        hub = {"revision": revision, "token": token, "cache_dir": cache_dir, "local_files_only": local_files_only}
        path, layout = _located(name, **hub), layout_of(cls)

        # What the file holds must be a network of its own config, before anything of that size is
        # allocated.
        state, unused, stored, install = read_weights(path, cls.config_class, layout, config)
        own, source = sketch(cls, stored), f"{name} ({install})" if install else str(name)
        if install:  # that version says that we may read it: what we do not know means nothing to us
            state, unused = {key: tensor for key, tensor in state.items() if key in _shapes(own)}, []
        check_fit(state, unused, _shapes(own), source=f"{source}: the weights contradict their config")
        published = (path / CONFIG).is_file() and (path / PREPROCESSOR).is_file()
        if published and SECTION in read_json(path / CONFIG) and not install:
            # transformers names another of its processors when it saves the folder again.
            by = f"mean, std, image_size and crop_pct under {SECTION!r} in {CONFIG}"
            check_agrees(path / PREPROCESSOR, own.preprocessor(), "image_processor_type", "do_convert_rgb", by=by)

        # Then it is fitted to what is wanted, and built.
        wanted = _adapted(config or stored, in_channels, image_size)
        state = resized(state, stored, wanted, layout)
        method = cls(wanted)  # type: ignore[call-arg]
        assert isinstance(method, nn.Module)
        if lacks_heads(state, layout):
            state = _with_new_heads(method, state, layout, source=str(name))
            method.encoder_alone = True
        check_fit(state, unused, _shapes(method), source=f"{source} does not fit {cls.__name__}", strict=strict)
        method.load_state_dict(state, strict=strict)
        if path.is_dir():
            method.load_preprocessor(path)
        return method.eval().to(device=device, dtype=dtype)

    @classmethod
    def sketched(cls, name: str | Path) -> Self:
        """What `from_pretrained(name)` gives, on the meta device: config, tokenizer and
        `architecture()` without weights.

        Beside a config.json no tensor is read. Raises as `from_pretrained`, which alone compares
        the weights with their sums and with the config.
        """
        path, layout = _located(name), layout_of(cls)
        state, config = read_sketch(path, cls.config_class, layout)
        method = sketch(cls, config)
        method.encoder_alone = lacks_heads(state, layout)
        if path.is_dir():
            method.load_preprocessor(path)
        return method

    def push_to_hub(
        self, repo_id: str, *, token: str | None = None, private: bool | None = None, license: str | None = None
    ) -> str:
        """Publish the weights in one commit and return its URL; `ssl_core.hub.remote.push` does it
        for a run folder.

        `license` is that of the weights, Apache-2.0 by default. Weights trained from CC-BY-NC
        weights stay CC-BY-NC.
        """
        with tempfile.TemporaryDirectory() as folder:
            self.save_pretrained(folder)
            write_card(folder, name=repo_id, layout=layout_of(self), license=license)
            return push(folder, repo_id, token=token, private=private)


def _located(name: str | Path, **hub: Any) -> Path:
    """The folder or the checkpoint file of this name, from the Hub if need be; of a run that has no
    weights yet, its newest checkpoint."""
    if (checkpoint := checkpoint_of(name)) is not None:
        return checkpoint
    path = resolve(str(name), **hub)
    return path.parent if path.name in (WEIGHTS, INDEX) else path  # its config.json lies beside it


def _shapes(method: nn.Module) -> dict[str, torch.Size]:
    return {key: tensor.shape for key, tensor in method.state_dict().items()}


def _adapted(config: Any, in_channels: int | None, image_size: int | tuple[int, int] | None) -> Any:
    """`config` for another image size or number of channels, whose mean and std are then those of
    the mean colour."""
    if image_size is not None:
        config = dataclasses.replace(config, image_size=image_size)
    if in_channels is not None and in_channels != config.in_channels:
        mean, std = ((sum(v) / len(v),) * in_channels for v in (config.mean, config.std))
        config = dataclasses.replace(config, in_channels=in_channels, mean=mean, std=std)
    return config


def _with_new_heads(method: nn.Module, state: dict[str, Tensor], layout: Layout, *, source: str) -> dict[str, Tensor]:
    """An encoder's `state` with the heads that `method` has just initialised, and momentum copies
    of both."""
    own = method.state_dict()
    new = {key: own[key] for key in own if key.startswith(layout.heads) and key not in state}
    if new:
        names = sorted({next(head for head in layout.heads if key.startswith(head)).rstrip(".") for key in new})
        warnings.warn(f"{source} holds an encoder without {', '.join(names)}: these are initialised anew", stacklevel=3)
    state = {**new, **state}
    for copy, original in layout.copies.items():
        state |= {copy + key[len(original) :]: state[key] for key in list(state) if key.startswith(original)}
    return state
