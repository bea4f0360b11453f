"""Weights in and out: the one mixin that every method has."""

from __future__ import annotations

import dataclasses
import json
import os
import tempfile
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn

from ssl_core.config import (
    BackboneConfig,
    ConfigError,
    TrainConfig,
    differences,
    encoder_fields,
    from_dict,
    to_dict,
)
from ssl_core.errors import InputError
from ssl_core.hub.keymap import KeyMap
from ssl_core.hub.weights_file import (
    load_pickle,
    load_weights,
    read_sums,
    save_weights,
    verify_sums,
    write_sums,
)

CONFIG, WEIGHTS, HEADS, PREPROCESSOR = (
    "config.json", "model.safetensors", "heads.safetensors", "preprocessor_config.json",
)  # fmt: skip
PICKLE = "pytorch_model.bin"


class WeightsMismatch(InputError, ValueError):
    """A checkpoint and the network disagree; the message lists missing, unused and misshapen tensors."""


@dataclass(frozen=True)
class Layout:
    """How a method's weights look to others: what its `convert.py` provides.

    `keymap` maps our names to the file's. `to_theirs` turns our config into transformers' keys, `from_theirs` takes
    their config.json and preprocessor_config.json (empty when absent) back;
    `infer` reads a config off the shapes of an author's checkpoint, which holds none; `adapt(state, stored, wanted)`
    fits a state dict in our names to another number of channels or image size, after `check_shapes` against `stored`.

    `heads` are prefixes of what only training needs. A checkpoint that holds none of them, another's encoder, is read
    all the same: heads start anew, a warning says so. `copies` are prefixes of momentum copies and what they copy.
    `unwrap` finds the tensors in what an author's training checkpoint unpickles to, where they are not under "model".
    """

    keymap: KeyMap
    to_theirs: Callable[[Any], dict[str, Any]]
    from_theirs: Callable[[dict[str, Any], dict[str, Any]], Any]
    infer: Callable[[Mapping[str, Tensor]], Any]
    adapt: Callable[[dict[str, Tensor], Any, Any], dict[str, Tensor]]
    heads: tuple[str, ...] = ()
    head_fields: tuple[str, ...] = ()
    """fields of a `BackboneConfig`'s heir that the shapes of its heads fix"""
    recipe: tuple[str, ...] = ()
    """fields of another config, beside the optimiser's, that no weights fix: views, masks, dropout"""
    copies: Mapping[str, str] = field(default_factory=dict)
    unwrap: Callable[[Mapping[str, Any]], Mapping[str, Any]] = lambda raw: raw
    rewritten: tuple[str, ...] = ()
    """keys of `to_theirs` that transformers gives another value when it saves the folder again"""


class Pretrained:
    """Mixin of an `nn.Module` that is built as `Method(config)` and keeps it as `self.config`.

    A folder holds config.json (transformers' keys, ours under "ssl"), model.safetensors in the layout that transformers
    reads, heads.safetensors for what that layout has no place for, preprocessor_config.json (a text method: its
    tokenizer's files) and SHA256SUMS.
    """

    config_class: ClassVar[type]
    config: Any
    encoder_alone = False
    """whether `from_pretrained` found no heads, so that those here are new"""

    @classmethod
    def layout(cls) -> Layout:
        """The method's `Layout`, from its `convert.py`."""
        raise TypeError(f"{cls.__name__} has no weight layout")

    def architecture(self) -> list[str]:
        """Names of the config's fields that these weights fix, which a run that starts from them takes: with a
        `BackboneConfig` the encoder's and, where the file had heads, theirs; else all but those of the recipe."""
        if isinstance(self.config, BackboneConfig):
            return [*encoder_fields(self.config), *(() if self.encoder_alone else self.layout().head_fields)]
        recipe = {*self.layout().recipe, *(field.name for field in dataclasses.fields(TrainConfig))}
        return [field.name for field in dataclasses.fields(self.config) if field.name not in recipe]

    def save_pretrained(self, folder: str | Path) -> Path:
        """Write the folder that `from_pretrained` and transformers read. Every file is replaced whole or not at all."""
        assert isinstance(self, nn.Module)
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        layout = self.layout()
        theirs, heads = layout.keymap.to_theirs(self.state_dict())
        with tempfile.TemporaryDirectory(dir=folder, prefix=".saving-") as temporary:
            staged = Path(temporary)
            save_weights(staged / WEIGHTS, theirs)
            if heads:
                save_weights(staged / HEADS, heads)
            own = {
                "method": f"{type(self).__module__}:{type(self).__qualname__}",
                "config": to_dict(self.config),
            }
            _write_json(staged / CONFIG, {**layout.to_theirs(self.config), "ssl": own})
            self.save_preprocessor(staged)
            names = sorted(path.name for path in staged.iterdir())
            write_sums(staged, names)
            for name in (*names, "SHA256SUMS"):
                os.replace(staged / name, folder / name)
        return folder

    def save_preprocessor(self, folder: Path) -> None:
        """Write what inputs are made by: an image method's preprocessor_config.json, a tokenizer's files of text."""
        _write_json(folder / PREPROCESSOR, self.preprocessor())

    def load_preprocessor(self, folder: Path) -> None:
        """Take what `save_preprocessor` wrote, where it is there; an image method has it in its config."""

    def preprocessor(self) -> dict[str, Any]:
        """preprocessor_config.json of an image method: shorter side, centre crop, mean and std of the config."""
        h, w = self.config.size
        return {
            "image_processor_type": "BitImageProcessor",
            "do_resize": True,
            "size": {"shortest_edge": int(min(h, w) / self.config.crop_pct)},
            "do_center_crop": True,
            "crop_size": {"height": h, "width": w},
            "resample": 3,
            "do_rescale": True,
            "rescale_factor": 1 / 255,
            "do_normalize": True,
            "image_mean": list(self.config.mean),
            "image_std": list(self.config.std),
            "do_convert_rgb": self.config.in_channels == 3,
        }

    @classmethod
    def read(cls, path: Path) -> tuple[dict[str, Tensor], list[str], Any]:
        """(state dict in our names, keys of the file that have none, config) of a folder or checkpoint file."""
        layout = cls.layout()
        state, unused = read_state(path, layout)
        return state, unused, read_config(path, cls.config_class, layout, state)

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
        tensor is missing, unused or of another shape; with `strict=False` missing ones keep their initialisation and
        unused ones are dropped, which a warning lists.
        """
        from ssl_core.hub.repo import resolve

        path = resolve(
            str(name),
            revision=revision,
            token=token,
            cache_dir=cache_dir,
            local_files_only=local_files_only,
        )
        if path.name == WEIGHTS:
            path = path.parent  # its config.json lies beside it
        layout = cls.layout()
        state, unused, stored = cls.read(path)
        verify_config(path)
        wanted = config or stored
        if image_size is not None:
            wanted = dataclasses.replace(wanted, image_size=image_size)
        if in_channels is not None and in_channels != wanted.in_channels:
            mean, std = ((sum(v) / len(v),) * in_channels for v in (wanted.mean, wanted.std))
            wanted = dataclasses.replace(wanted, in_channels=in_channels, mean=mean, std=std)
        state = layout.adapt(state, stored, wanted)
        method = cls(wanted)  # type: ignore[call-arg]
        assert isinstance(method, nn.Module)
        if state and not any(key.startswith((*layout.heads, *layout.copies)) for key in state):
            state = with_new_heads(method, state, layout, source=str(name))
            method.encoder_alone = True
        load_state(method, state, unused, source=str(name), strict=strict)
        if path.is_dir():
            method.load_preprocessor(path)
        return method.eval().to(device=device, dtype=dtype)

    def push_to_hub(
        self, repo_id: str, *, token: str | None = None, private: bool | None = None, license: str | None = None
    ) -> str:
        """Publish the weights in one commit and return its URL; `ssl_core.hub.repo.push` does it for a run folder.

        `license` is that of the weights, Apache-2.0 by default; those trained from CC-BY-NC weights stay CC-BY-NC.
        """
        from ssl_core.hub.card import write_card
        from ssl_core.hub.repo import push

        with tempfile.TemporaryDirectory() as folder:
            self.save_pretrained(folder)
            write_card(folder, name=repo_id, license=license)
            return push(folder, repo_id, token=token, private=private)


def read_state(path: Path, layout: Layout) -> tuple[dict[str, Tensor], list[str]]:
    """(state dict in our names, keys of the file that have none) of a folder or a checkpoint file."""
    if path.is_file():
        raw = load_weights(path) if path.suffix == ".safetensors" else _unwrap(load_pickle(path), path, layout)
        return layout.keymap.to_ours(raw)
    verify_sums(path, [name for name in (WEIGHTS, HEADS) if (path / name).exists()])
    state: dict[str, Tensor] = {}
    unused: list[str] = []
    if (path / WEIGHTS).exists():
        state, unused = layout.keymap.to_ours(load_weights(path / WEIGHTS))
    elif (path / PICKLE).exists():
        state, unused = layout.keymap.to_ours(_unwrap(load_pickle(path / PICKLE), path / PICKLE, layout))
    else:
        found = sorted(p.name for p in path.iterdir())[:20]
        raise FileNotFoundError(f"{path} holds no {WEIGHTS}; it holds {found}")
    if (path / HEADS).exists():
        state |= load_weights(path / HEADS)
    return state, unused


def _unwrap(raw: Any, path: Path, layout: Layout) -> dict[str, Tensor]:
    """The tensors of an author's training checkpoint, under "model", "state_dict" or where `layout` says."""
    for key in ("model", "state_dict"):
        if isinstance(raw, Mapping) and isinstance(raw.get(key), Mapping):
            raw = raw[key]
    if isinstance(raw, Mapping):
        raw = layout.unwrap(raw)
    if not isinstance(raw, Mapping) or not all(isinstance(k, str) and isinstance(v, Tensor) for k, v in raw.items()):
        raise WeightsMismatch(f"{path} holds no state dict, nor one under 'model' or 'state_dict'")
    return dict(raw)


def read_config(path: Path, config_class: type, layout: Layout, state: Mapping[str, Tensor]) -> Any:
    """Config of a folder: ours where it is stored, else transformers', else what the shapes say."""
    file = path / CONFIG if (path / CONFIG).is_file() else path
    values = {} if file == path else _read_json(file)
    try:
        if "model_type" not in values:
            return _as_timm_says(layout.infer(state), values)
        if "ssl" not in values:
            preprocessor = path / PREPROCESSOR
            return layout.from_theirs(values, _read_json(preprocessor) if preprocessor.exists() else {})
        own = values["ssl"]
        if not isinstance(own, dict) or not isinstance(own.get("config"), dict):
            raise ConfigError("'ssl' holds no config")
        package, _, method = str(own.get("method", "")).partition(":")
        package = package.partition(".")[0].replace("_", "-")
        try:
            config = from_dict(config_class, own["config"])
        except ConfigError as error:
            name = config_class.__name__.removesuffix("Config")
            if not method or method == name:
                raise
            raise ConfigError(
                f"{error}; these are weights of {package}'s {method}, not of {name}: `{package} export` writes layouts "
                "that others read"
            ) from error
    except ConfigError as error:
        raise ConfigError(f"{file}: {error}") from error
    # When transformers saves our folder again, it leaves out its defaults, adds keys and names what it saved.
    says = json.loads(json.dumps(layout.to_theirs(config)))
    both = (says.keys() & values.keys()) - {"architectures", "dtype", *layout.rewritten}
    if differing := differences({key: values[key] for key in both}, {key: says[key] for key in both}):
        raise ConfigError(f"{file} contradicts its own 'ssl' section: {'; '.join(differing)}")
    return config


def verify_config(path: Path) -> None:
    """WeightsError when config.json or preprocessor_config.json is not what SHA256SUMS beside it says.

    Files that it does not list pass, and a folder that transformers has saved again, which leaves our sums behind.
    """
    if not (path / CONFIG).is_file() or "transformers_version" in _read_json(path / CONFIG):
        return
    verify_sums(path, [name for name in (CONFIG, PREPROCESSOR) if name in read_sums(path)])


def _as_timm_says(config: Any, values: dict[str, Any]) -> Any:
    """`config` with what shapes do not tell and timm's config.json says: mean, std, crop, the attention heads, the
    pooling; and with positions resampled as timm does it."""
    stored, arguments = values.get("pretrained_cfg", values), values.get("model_args", {})
    for name, value in (("pretrained_cfg", stored), ("model_args", arguments)):
        if not isinstance(value, dict):
            raise ConfigError(f"{name} = {value!r}: expected an object")
    known = {key: stored[key] for key in ("mean", "std", "crop_pct") if key in stored}
    own = {field.name for field in dataclasses.fields(config)}
    if "architecture" in values:
        known |= {"pos_interp": "antialias"} if "pos_interp" in own else {}
        if "heads" in own and "num_heads" in arguments:
            known["heads"] = arguments["num_heads"]
        pool = {"token": "cls", "avg": "mean"}.get(str(arguments.get("global_pool", values.get("global_pool"))))
        if "pool" in own and pool is not None:
            known["pool"] = pool
    return from_dict(type(config), {**to_dict(config), **known})


def check_shapes(state: Mapping[str, Tensor], expected: Mapping[str, tuple[int, ...]]) -> None:
    """WeightsMismatch when a tensor of `state` has another shape than its own config says; absent ones pass.

    For a layout's `adapt`: before it relies on these shapes, and before a network of a damaged config's size is built.
    """
    if shapes := _misshapen(state, expected):
        raise WeightsMismatch(f"the weights contradict their config:\n  {_shown(shapes)}")


def _misshapen(state: Mapping[str, Tensor], expected: Mapping[str, tuple[int, ...]]) -> list[str]:
    return [
        f"shape: {k}: {tuple(state[k].shape)} in the file, {tuple(expected[k])} in the network"
        for k in sorted(expected.keys() & state.keys())
        if tuple(state[k].shape) != tuple(expected[k])
    ]


def _shown(problems: list[str]) -> str:
    return "\n  ".join(problems[:20]) + (f"\n  … {len(problems) - 20} more" if len(problems) > 20 else "")


def with_new_heads(method: nn.Module, state: dict[str, Tensor], layout: Layout, *, source: str) -> dict[str, Tensor]:
    """An encoder's `state` with the heads that `method` has just initialised, and momentum copies of both."""
    own = method.state_dict()
    new = {key: own[key] for key in own if key.startswith(layout.heads) and key not in state}
    if new:
        names = sorted({next(head for head in layout.heads if key.startswith(head)).rstrip(".") for key in new})
        warnings.warn(f"{source} holds an encoder without {', '.join(names)}: these start anew", stacklevel=3)
    state = {**new, **state}
    for copy, original in layout.copies.items():
        state |= {copy + key[len(original) :]: state[key] for key in list(state) if key.startswith(original)}
    return state


def load_state(method: nn.Module, state: dict[str, Tensor], unused: list[str], *, source: str, strict: bool) -> None:
    """Copy `state` into `method`, or WeightsMismatch with a table of what does not fit."""
    own = method.state_dict()
    missing = sorted(own.keys() - state.keys())
    unused = sorted([*unused, *(state.keys() - own.keys())])
    shapes = _misshapen(state, {key: tensor.shape for key, tensor in own.items()})
    problems = [*(f"missing: {k}" for k in missing), *(f"unused: {k}" for k in unused), *shapes]
    if shapes or (strict and problems):
        hint = "" if shapes else "\nstrict=False keeps the initialisation of missing tensors and drops unused ones"
        raise WeightsMismatch(f"{source} does not fit {type(method).__name__}:\n  {_shown(problems)}{hint}")
    if problems:
        warnings.warn(f"{source}: {'; '.join(problems)}", stacklevel=3)
    method.load_state_dict(state, strict=strict)


def _read_json(file: Path) -> dict[str, Any]:
    try:
        values = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ConfigError(f"{file} is not readable JSON: {error}") from error
    if not isinstance(values, dict):
        raise ConfigError(f"{file} holds {type(values).__name__}, not an object")
    return values


def _write_json(path: Path, value: dict[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")
