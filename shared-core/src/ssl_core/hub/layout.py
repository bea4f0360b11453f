"""What a folder or a checkpoint file holds: tensors under our names, and the config of the network.

A method's `convert.py` describes in a `Layout` how its weights look in other projects.
`read_weights` reads any of these forms: our own folders, transformers', timm's, and the authors'
checkpoints.
"""

from __future__ import annotations

import dataclasses
import json
import re
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ssl_core.config import ConfigError, differences, from_dict, to_dict
from ssl_core.errors import InputError
from ssl_core.hub.checkpoint import MANIFEST, read_manifest
from ssl_core.hub.format import SECTION, own_config
from ssl_core.hub.keymap import KeyMap
from ssl_core.hub.weights_file import WeightsError, load_pickle, load_shapes, load_weights, read_sums, verify_sums
from ssl_core.method import load

CONFIG, WEIGHTS, HEADS = "config.json", "model.safetensors", "heads.safetensors"
INDEX = "model.safetensors.index.json"
"""which tensor is in which file, where several files hold a model"""
PREPROCESSOR = "preprocessor_config.json"
PICKLE = "pytorch_model.bin"

OPENED = 'transformers reads it too: `AutoModel.from_pretrained("{name}")`.'
"""In `Layout.others`, where others have the network and not the features of `encode`."""

State = Mapping[str, Tensor]
Export = Callable[[dict[str, Tensor], Any], tuple[Any, ...]]
Resize = Callable[[Tensor, Any, Any], Tensor]


class WeightsMismatch(InputError, ValueError):
    """A checkpoint and the network disagree; the message lists missing, unused and misshapen
    tensors."""


@dataclass(frozen=True, kw_only=True)
class Layout:
    """How a method's weights look to others. It knows configs, names and tensors, and never the
    module."""

    keymap: KeyMap
    """our names and the names in files"""
    to_theirs: Callable[[Any], dict[str, Any]]
    """our config → transformers' keys of config.json"""
    from_theirs: Callable[[dict[str, Any], dict[str, Any]], Any]
    """their config.json and preprocessor_config.json (empty when absent) → our config"""
    infer: Callable[[Mapping[str, Tensor]], Any]
    """a checkpoint's shapes → our config, for an author's file that holds none"""
    resize: tuple[tuple[str, Resize], ...] = ()
    """pattern of our names → `(tensor, stored config, wanted config) → tensor`, for other channels
    or image sizes"""
    tidy: Callable[[dict[str, Tensor], Any], dict[str, Tensor]] = lambda state, stored: state
    """the state of a file with this config → the state of the network, where names alone do not
    make it"""
    unwrap: Callable[[Mapping[str, Any]], Mapping[str, Any]] = lambda raw: raw
    """what an author's checkpoint unpickles to → its tensors, where they are not under "model" or
    "state_dict\""""
    foreign: Callable[[Path], tuple[dict[str, Tensor], Any] | None] = lambda path: None
    """a path of another form → (its tensors, our config or None to infer it), or None when it is no
    such form"""
    heads: tuple[str, ...] = ()
    """prefixes of what only training needs; when a file has none of it, the heads are initialised
    anew"""
    head_fields: tuple[str, ...] = ()
    """fields of a `BackboneConfig`'s heir that the shapes of its heads fix"""
    recipe: tuple[str, ...] = ()
    """fields of another config, beside the optimiser's, that no weights fix: views, masks,
    dropout"""
    copies: Mapping[str, str] = field(default_factory=dict)
    """prefix of a momentum copy → prefix of what it copies"""
    kind: Callable[[Any], str] = lambda config: ""
    """what of a config no resizing changes, in words: stored and wanted must be of one kind"""
    rewritten: tuple[str, ...] = ()
    """keys of `to_theirs` that transformers changes when it saves the folder again"""
    others: Mapping[str, tuple[str | None, str | None, str]] = field(default_factory=dict)
    """model type of config.json → (library that opens the folder, its pipeline if it has the same
    features or task, how in Markdown), for the model card; we alone read other types. {name} is the
    model's name, and {pooled} takes the features of `encode` from tokens (b, n, d)"""
    inputs: tuple[str, str] = ("images", "uint8 (b, c, h, w)")
    """what `encode` takes, for the model card: its name, and its type and shape"""
    exports: Mapping[str, Export] = field(default_factory=dict)
    """`export --to` this name: `(state, config) → (tensors, config.json[, another name of that
    file])`"""


def layout_of(method: Any) -> Layout:
    """The `Layout` that a method, or its class, names by its import string `layout`; TypeError when
    it names none."""
    cls = method if isinstance(method, type) else type(method)
    if not hasattr(cls, "layout"):
        raise TypeError(f"{cls.__name__} has no weight layout")
    return load(cls.layout)


def read_weights(path: Path, config_class: type, layout: Layout, given: Any = None) -> tuple[dict, list[str], Any, str]:
    """(state dict in our names, keys of the file that have none, stored config, what to install if
    a later format wrote it) of a folder or a checkpoint file.

    `given` is the config of a file that holds none and whose shapes do not say it.
    """
    if (path / MANIFEST).is_file():  # a checkpoint: the names are ours
        return load_weights(path / WEIGHTS), [], *own_config(read_manifest(path), config_class)
    if (found := layout.foreign(path)) is not None:
        raw, config = found
        state, unused = layout.keymap.to_ours(raw)
        config, install = layout.infer(state) if config is None else config, ""
    else:
        state, unused = read_state(path, layout)
        config, install = read_config(path, config_class, layout, state, given)
        verify_config(path)
    return layout.tidy(state, config), unused, config, install


def read_sketch(path: Path, config_class: type, layout: Layout) -> tuple[State, Any]:
    """(tensors under our names, stored config), as little as possible of them read.

    Beside a config.json that says the architecture, the tensors of safetensors files have shapes
    alone and SHA256SUMS is not compared with them.
    """
    if (path / CONFIG).is_file() and "model_type" in read_json(path / CONFIG):
        verify_config(path)
        state, _ = read_state(path, layout, shapes=True)
        return state, read_config(path, config_class, layout, state)[0]
    state, _, config, _ = read_weights(path, config_class, layout)
    return state, config


def read_state(path: Path, layout: Layout, *, shapes: bool = False) -> tuple[dict[str, Tensor], list[str]]:
    """(state dict in our names, keys of the file that have none) of a folder or a checkpoint file.

    With `shapes`, safetensors files are neither read nor compared with their sums: `load_shapes`.
    """
    if path.is_file():
        return layout.keymap.to_ours(read_tensors(path, layout))
    file = next((path / name for name in (WEIGHTS, INDEX, PICKLE) if (path / name).exists()), None)
    if file is None:
        found = sorted(p.name for p in path.iterdir())[:20]
        raise FileNotFoundError(f"{path} holds no {WEIGHTS}; it holds {found or 'nothing'}")
    shards = read_index(file) if file.name == INDEX else {}
    files = [file.name, *shards] if file.name != PICKLE else []
    heads = [HEADS] if (path / HEADS).exists() else []
    if not shapes:
        verify_sums(path, [*files, *heads])
    load = load_shapes if shapes else load_weights
    tensors = {} if shards else load(file) if file.name == WEIGHTS else read_tensors(file, layout)
    for shard, names in shards.items():
        part = load(path / shard)
        if missing := names - part.keys():
            raise WeightsError(f"{path / shard} lacks {min(missing)}, which {INDEX} says it has: get the folder again")
        tensors |= part
    state, unused = layout.keymap.to_ours(tensors)
    for name in heads:
        state |= load(path / name)
    return state, unused


def read_index(file: Path) -> dict[str, set[str]]:
    """Safetensors files beside `file` -> names of the tensors that this index finds in them.

    Raises WeightsError when the index is damaged, or when one of its files is missing.
    """
    weight_map, shards = read_json(file).get("weight_map"), {}
    for name, shard in weight_map.items() if isinstance(weight_map, dict) else ():
        if not isinstance(shard, str) or not re.fullmatch(r"[^/\\\0]+\.safetensors", shard):
            raise WeightsError(
                f"{file} is damaged: it has {name!r} in {shard!r}, which is no safetensors file beside it"
            )
        if not (file.parent / shard).is_file():
            raise WeightsError(f"{file.parent} lacks {shard}, which {file.name} names: get the folder again")
        shards.setdefault(shard, set()).add(name)
    if not shards:
        raise WeightsError(f"{file} is damaged: it has no weight_map")
    return shards


def read_tensors(file: Path, layout: Layout) -> dict[str, Tensor]:
    """The tensors of a .safetensors file or of an author's pickle, under the file's names."""
    if file.suffix == ".safetensors":
        return load_weights(file)
    raw = load_pickle(file)
    for key in ("model", "state_dict"):
        if isinstance(raw, Mapping) and isinstance(raw.get(key), Mapping):
            raw = raw[key]
    if isinstance(raw, Mapping):
        raw = layout.unwrap(raw)
    if not isinstance(raw, Mapping) or not all(isinstance(k, str) and isinstance(v, Tensor) for k, v in raw.items()):
        raise WeightsMismatch(f"{file} holds no state dict, nor one under 'model' or 'state_dict'")
    return dict(raw)


def read_config(path: Path, config_class: type, layout: Layout, state: State, given: Any = None) -> tuple[Any, str]:
    """Config of a folder: ours where it is stored, else transformers', else what the shapes say,
    else `given`; and what to install, if a later format wrote it."""
    file = path / CONFIG if (path / CONFIG).is_file() else path
    values = {} if file == path else read_json(file)
    try:
        if "model_type" not in values:
            try:
                inferred = layout.infer(state)
            except ConfigError:
                if given is None:
                    raise
                return given, ""
            return _with_timms_facts(inferred, values), ""
        if SECTION not in values:
            preprocessor = path / PREPROCESSOR
            return layout.from_theirs(values, read_json(preprocessor) if preprocessor.exists() else {}), ""
        config, install = own_config(values[SECTION], config_class)
    except ConfigError as error:
        raise ConfigError(f"{file}: {error}") from error
    if not install:  # a later version may write other keys of transformers'
        # When transformers saves our folder again, it leaves out its defaults, adds keys and names
        # what it saved.
        free = ("architectures", "dtype", *layout.rewritten)
        check_agrees(file, layout.to_theirs(config), *free, by=f"its own {SECTION!r} section")
    return config, install


def check_agrees(file: Path, says: dict[str, Any], *free: str, by: str) -> None:
    """Raises ConfigError unless a JSON file holds what `by` `says`, in all keys that both have but
    the `free` ones."""
    values, says = read_json(file), json.loads(json.dumps(says))
    both = (says.keys() & values.keys()) - {*free}
    if differing := differences({key: values[key] for key in both}, {key: says[key] for key in both}):
        raise ConfigError(f"{file} contradicts {by}: {'; '.join(differing)}. Change both alike")


def verify_config(path: Path) -> None:
    """Raises WeightsError when config.json or preprocessor_config.json does not match SHA256SUMS
    beside it.

    A file that SHA256SUMS does not list passes. So does a folder that transformers saved again: it
    leaves our sums.
    """
    if not (path / CONFIG).is_file() or "transformers_version" in read_json(path / CONFIG):
        return
    verify_sums(path, [name for name in (CONFIG, PREPROCESSOR) if name in read_sums(path)])


def _with_timms_facts(config: Any, values: dict[str, Any]) -> Any:
    """`config` with what timm's config.json says and shapes do not: pixels, crop, attention heads,
    pooling.

    timm resamples positions with antialiasing.
    """
    stored, arguments = values.get("pretrained_cfg", values), values.get("model_args", {})
    for name, value in (("pretrained_cfg", stored), ("model_args", arguments)):
        if not isinstance(value, dict):
            raise ConfigError(f"{name} = {value!r}: expected an object")
    known = {key: stored[key] for key in ("mean", "std", "crop_pct") if key in stored}
    own = {field.name for field in dataclasses.fields(config)}
    if "architecture" in values:
        pool = {"token": "cls", "avg": "mean"}.get(str(arguments.get("global_pool", values.get("global_pool"))))
        network = {"pos_interp": "antialias", "heads": arguments.get("num_heads"), "pool": pool}
        known |= {key: value for key, value in network.items() if key in own and value is not None}
    return from_dict(type(config), {**to_dict(config), **known})


def resized(state: dict[str, Tensor], stored: Any, wanted: Any, layout: Layout) -> dict[str, Tensor]:
    """`state` of a network with the config `stored`, for one with the config `wanted`.

    Raises ConfigError when the two are of different kinds.
    """
    if (has := layout.kind(stored)) != (asked := layout.kind(wanted)):
        raise ConfigError(f"the checkpoint is a {has}, but a {asked} is asked for")
    state = dict(state)
    for key in state:
        for pattern, resize in layout.resize:
            if re.fullmatch(pattern, key):
                state[key] = resize(state[key], stored, wanted)
    return state


def sketch(method_class: type, config: Any) -> Any:
    """The method of a config on the meta device: all names and shapes, and nothing is allocated.

    Raises ConfigError when the sizes are beyond what a tensor can have.
    """
    try:
        with torch.device("meta"):
            return method_class(config)
    except RuntimeError as error:
        raise ConfigError(f"no network of this config can be built: {error}") from error


def lacks_heads(state: State, layout: Layout) -> bool:
    """Whether a file holds an encoder and nothing of what only training needs."""
    return bool(state) and not any(key.startswith((*layout.heads, *layout.copies)) for key in state)


def check_fit(
    state: State, unused: Sequence[str], expected: Mapping[str, torch.Size], *, source: str, strict: bool | None = None
) -> None:
    """Raises WeightsMismatch, `source` and a table in its message, when a tensor is of another
    shape than expected.

    Also when one is missing or unused, where `strict`; where not, a warning has the table. None
    means either may be.
    """
    unused = sorted([*unused, *(state.keys() - expected.keys())])
    both = sorted(key for key in expected.keys() & state.keys() if state[key].shape != expected[key])
    shapes = [f"{key}: {tuple(state[key].shape)} in the file, {tuple(expected[key])} in the network" for key in both]
    kinds = {"missing": sorted(expected.keys() - state.keys()), "unused": unused, "shape": shapes}
    problems = [f"{kind}: {line}" for kind, lines in kinds.items() for line in lines]
    if shapes or (strict and problems):
        more = f"\n  … {len(problems) - 20} more" if len(problems) > 20 else ""
        hint = "\nIn Python, from_pretrained(…, strict=False) keeps the initialisation of missing tensors and drops unused ones"
        raise WeightsMismatch(f"{source}:\n  " + "\n  ".join(problems[:20]) + more + ("" if shapes else hint))
    if problems and strict is not None:
        warnings.warn(f"{source}: {'; '.join(problems)}", stacklevel=3)


def read_json(file: Path) -> dict[str, Any]:
    """The object in a JSON file. Raises ConfigError when it is unreadable or holds something
    else."""
    try:
        values = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ConfigError(f"{file} is not readable JSON: {error}") from error
    if not isinstance(values, dict):
        raise ConfigError(f"{file} holds {type(values).__name__}, not an object")
    return values
