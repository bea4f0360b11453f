"""Names of weights in other projects' checkpoints, as tables that are read in both directions.

A row pairs one of our names with theirs. `{i}` stands for a layer's number, `{w}` for weight or
bias and `{b}` for what a batch norm holds, the same on both sides. Where theirs is a tuple, their
tensors are ours cut along the first axis: a fused qkv against query, key and value.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from operator import itemgetter

import torch
from torch import Tensor

from ssl_core.errors import InputError

Row = tuple[str, str | tuple[str, ...]]

_HOLES = {
    "{i}": r"(?P<i>\d+)",
    "{w}": r"(?P<w>weight|bias)",
    "{b}": r"(?P<b>weight|bias|running_mean|running_var|num_batches_tracked)",
}


WRAPPERS = r"(module|model|backbone|encoder)\."
"""What other people's training code puts before a name: DDP, Lightning, a class around the
encoder."""


@dataclass(frozen=True)
class KeyMap:
    """`rows` are written and read; `also` are other spellings that are read; `drop` are keys
    without a meaning here."""

    rows: tuple[Row, ...]
    also: tuple[Row, ...] = ()
    drop: tuple[str, ...] = ()

    def to_ours(self, theirs: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], list[str]]:
        """(our state dict, the keys that no row knows).

        The parts of a fused tensor that is not complete, and a tensor given again in another
        spelling, are unknown too. A name that no row knows is looked up again without its wrapper,
        and so on: `torch.compile`'s `_orig_mod.` anywhere, `WRAPPERS` at its beginning. Raises
        InputError when parts cannot be joined.
        """
        readers = [
            (_pattern(name), ours, part, len(_parts(names)))
            for ours, names in (*self.rows, *self.also)
            for part, name in enumerate(_parts(names))
        ]
        found: dict[str, dict[int, tuple[str, Tensor]]] = {}
        sizes: dict[str, int] = {}
        unknown = []
        for key, tensor in theirs.items():
            for known in _unwrapped(key):
                if any(re.fullmatch(pattern, known) for pattern in self.drop):
                    break
                hits = ((pattern.fullmatch(known), *reader) for pattern, *reader in readers)
                if hit := next(filter(itemgetter(0), hits), None):
                    match, ours, part, size = hit
                    name = _fill(ours, match.groupdict())
                    if part in found.setdefault(name, {}):
                        unknown.append(key)
                    else:
                        found[name][part], sizes[name] = (key, tensor), size
                    break
            else:
                unknown.append(key)
        state = {}
        for name, parts in found.items():
            if len(parts) < sizes[name]:
                unknown += [key for key, _ in parts.values()]
            elif len(parts) == 1:
                state[name] = parts[0][1]
            else:
                state[name] = _joined([parts[i] for i in range(sizes[name])])
        return state, unknown

    def to_theirs(self, ours: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """(their state dict, the part of ours that they have no name for)."""
        writers = [(_pattern(name), _parts(names)) for name, names in self.rows]
        theirs, rest = {}, {}
        for key, tensor in ours.items():
            for pattern, names in writers:
                if match := pattern.fullmatch(key):
                    parts = tensor.chunk(len(names)) if len(names) > 1 else (tensor,)
                    for name, part in zip(names, parts, strict=True):
                        theirs[_fill(name, match.groupdict())] = part.contiguous()
                    break
            else:
                rest[key] = tensor
        return theirs, rest


def prefixed(rows: Iterable[Row], *, ours: str = "", theirs: str = "") -> tuple[Row, ...]:
    """The same rows inside a larger module: a prefix on our side, one on theirs."""
    return tuple(
        (ours + name, tuple(theirs + n for n in names) if isinstance(names, tuple) else theirs + names)
        for name, names in rows
    )


def same(*names: str) -> tuple[Row, ...]:
    """Rows of names that are the same on both sides."""
    return tuple((name, name) for name in names)


def _unwrapped(key: str) -> Iterator[str]:
    """`key`, and what is left of it without one wrapper, two, and so on."""
    yield key
    key = key.replace("_orig_mod.", "")
    yield key
    while match := re.match(WRAPPERS, key):
        key = key[match.end() :]
        yield key


def _parts(names: str | tuple[str, ...]) -> tuple[str, ...]:
    return names if isinstance(names, tuple) else (names,)


def _joined(parts: list[tuple[str, Tensor]]) -> Tensor:
    tensors = [tensor for _, tensor in parts]
    if len({tensor.shape[1:] for tensor in tensors}) > 1 or not all(tensor.ndim for tensor in tensors):
        shapes = ", ".join(f"{key} {tuple(tensor.shape)}" for key, tensor in parts)
        raise InputError(f"the checkpoint's parts of one tensor do not fit each other: {shapes}")
    return torch.cat(tensors)


def _pattern(name: str) -> re.Pattern[str]:
    parts = re.split(r"(\{[iwb]\})", name)
    return re.compile("".join(_HOLES[p] if p in _HOLES else re.escape(p) for p in parts))


def _fill(name: str, holes: Mapping[str, str]) -> str:
    for hole, value in holes.items():
        name = name.replace(f"{{{hole}}}", value)
    return name
