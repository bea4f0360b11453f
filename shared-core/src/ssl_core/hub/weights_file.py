"""Weights on disk: safetensors written whole or not at all, checksums beside them, and authors'
pickles read safely.

A damaged safetensors file may still parse and hand out wrong numbers: the header has no checksum.
`SHA256SUMS`, in the format of `sha256sum -c`, closes that hole; what can be told from the file
alone is told by `load_weights`.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import os
import re
import tarfile
import tempfile
import warnings
import zipfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from ssl_core.errors import InputError

SUMS = "SHA256SUMS"
MAX_HEADER = 100_000_000  # bytes; the bound of the format itself
TYPES = {8: "BOOL U8 I8 F8_E4M3 F8_E5M2", 16: "U16 I16 F16 BF16", 32: "U32 I32 F32", 64: "U64 I64 F64 C64"}
BITS = {name: bits for bits, names in TYPES.items() for name in names.split()}


class WeightsError(InputError, RuntimeError):
    """A weights file that cannot be trusted or read; the message names the file and says what to
    do."""


def save_weights(path: str | Path, state: dict[str, Tensor], metadata: dict[str, str] | None = None) -> None:
    """Write `state` as safetensors, atomically: a reader sees the old file or the new one, never a
    part.

    Tensors are written from the CPU, contiguous, in their own dtype. Raises WeightsError when two
    of them share memory (drop the tied alias first) and OSError when the disk fails; `path` is
    untouched then.
    """
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in state.items()}

    def write(temporary: Path) -> None:
        try:
            save_file(tensors, temporary, {"format": "pt", **(metadata or {})})
        except RuntimeError as error:
            shared = re.search(r"\[\{.*\}\]", str(error))
            reason = f"tensors share memory, drop the tied aliases: {shared[0]}" if shared else str(error)
            raise WeightsError(f"{path} was not written: {reason}") from error

    write_whole(Path(path), write)


def load_weights(path: str | Path) -> dict[str, Tensor]:
    """The tensors of a safetensors file, on the CPU.

    Raises WeightsError for a file that is truncated, malformed or no safetensors file, naming the
    tensor where the damage can be located; FileNotFoundError when there is none.
    """
    path = Path(path)
    _check_layout(path)
    try:
        return load_file(path)
    except (SafetensorError, ValueError, TypeError, RuntimeError) as error:
        raise WeightsError(f"{path} cannot be read as safetensors: {error}") from error


def load_shapes(path: str | Path) -> dict[str, Tensor]:
    """The tensors of a safetensors file without their values, on the meta device and in float32.

    Reads the header alone. Raises as `load_weights`.
    """
    shapes = _check_layout(Path(path))
    return {name: torch.empty(shape, device="meta") for name, shape in shapes.items()}


def write_sums(folder: str | Path, files: Iterable[str]) -> None:
    """Write `folder/SHA256SUMS` for these file names of the folder."""
    folder = Path(folder)
    lines = [f"{sha256(folder / name)}  {name}\n" for name in files]
    write_whole(folder / SUMS, lambda temporary: temporary.write_text("".join(lines), "utf-8"))


def verify_sums(folder: str | Path, files: Iterable[str] | None = None) -> bool:
    """Compare files of `folder` with its `SHA256SUMS`: those named, or else all that are listed.

    False when the folder has no sums, as those of transformers have none; True when all is well.
    Raises WeightsError for a file that differs, is missing or is not listed.
    """
    folder = Path(folder)
    if not (folder / SUMS).is_file():
        return False
    sums = read_sums(folder)
    for name in sums if files is None else files:
        if name not in sums:
            raise WeightsError(f"{folder / SUMS} does not list {name}")
        if not (folder / name).is_file():
            raise WeightsError(f"{folder / name} is missing, though {SUMS} lists it: get the folder again")
        if sha256(folder / name) != sums[name]:
            advice = f"Get it again; if you changed it on purpose, save the model anew or delete {SUMS}"
            what = f"{folder / name} has changed since it was published: its sha256 is not the one in {SUMS}"
            raise WeightsError(f"{what}. {advice}")
    return True


def read_sums(folder: Path) -> dict[str, str]:
    """File name -> sha256 of `folder/SHA256SUMS`, empty when there is none. Raises WeightsError
    when it is damaged."""
    if not (folder / SUMS).is_file():
        return {}
    sums = {}
    for line in (folder / SUMS).read_bytes().decode(errors="replace").splitlines():
        match = re.fullmatch(r"([0-9a-f]{64}) [ *]([^/\\\0]+)", line)
        if not match or match[2] in (".", ".."):
            raise WeightsError(f"{folder / SUMS} is damaged: it has the line {line[:100]!r}")
        sums[match[2]] = match[1]
    if not sums:
        raise WeightsError(f"{folder / SUMS} is damaged: it is empty")
    return sums


def load_pickle(path: str | Path) -> Any:
    """What `torch.save` put into an author's .pth, .pt or .bin, without executing anything in it.

    That is tensors, on the CPU and mapped from the file where its format allows, containers,
    numbers, and the argparse.Namespace of the author's command line.
    Raises WeightsError for a pickle that asks for anything else, naming it, and for a file that is
    damaged or no pickle.
    """
    path = Path(path)
    is_zip = zipfile.is_zipfile(path)
    if is_zip:
        _check_stored(path)
    elif path.is_file() and tarfile.is_tarfile(path):
        what = "is a tar archive, as the first versions of torch wrote them"
        raise WeightsError(f"{path} {what}. {_resave(f'torch.load({path.name!r}, weights_only=False)')}")
    try:
        with torch.serialization.safe_globals([argparse.Namespace]), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that this pickle may not load: it loads or raises
            return torch.load(path, map_location="cpu", weights_only=True, mmap=is_zip)
    except OSError:
        raise
    except Exception as error:  # damaged pickles raise whatever they like
        refused = re.search(r"GLOBAL (\S+)", str(error))
        if refused:
            why = f"besides tensors it asks for {refused[1]}, and that could run any code"
            advice = "If you trust its author, open it with their code and save its state_dict alone"
            raise WeightsError(f"{path} was not loaded and nothing of it was executed: {why}. {advice}") from error
        operand = re.search(r"Unsupported operand (\d+)", str(error))
        if operand and (is_zip or path.read_bytes()[:1] == b"\x80"):  # other files have opcodes by chance
            what = f"has opcode {operand[1]}, which pickles of another protocol than torch's 2 have"
            how = _resave(f"torch.load({path.name!r}, weights_only=False)")
            raise WeightsError(f"{path} {what}; nothing of it was executed. {how}") from error
        found = re.search(r"WeightsUnpickler error:\s*(.+)", str(error))
        why = found[1] if found else f"{type(error).__name__}: {error}"
        raise WeightsError(f"{path} is no intact file of torch.save; nothing of it was executed: {why}") from error


@contextmanager
def staged(folder: Path) -> Iterator[Path]:
    """A new folder inside `folder`, whose files then replace those of `folder`, SHA256SUMS last."""
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder, prefix=".saving-") as temporary:
        beside = Path(temporary)
        yield beside
        names = sorted(path.name for path in beside.iterdir())
        write_sums(beside, names)
        for name in (*names, SUMS):
            os.replace(beside / name, folder / name)


def write_json(path: Path, value: dict[str, Any]) -> None:
    """`value` as indented JSON."""
    path.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")


def sum_of(values: dict[str, Any]) -> str:
    """sha256 of what a JSON file says, however it is laid out."""
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()


def sha256(path: Path) -> str:
    """Hex digest of a file's content."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_whole(path: Path, write: Callable[[Path], object]) -> None:
    """Let `write(temporary)` make a file beside `path`, then put it in its place in one step.

    The data are flushed to the disk before the rename and the folder after it, so that a crash
    leaves old or new.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        temporary.touch()
        mode = temporary.stat().st_mode  # by the umask; safetensors would leave 0600
        write(temporary)
        temporary.chmod(mode)
        fsync(temporary)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    fsync(path.parent)


def fsync(path: Path) -> None:
    """Wait until a file, or the names in a folder, are on the disk.

    Windows flushes only what is open for writing and opens no folder: there the names are left to
    the file system.
    """
    folder = path.is_dir()
    try:
        handle = os.open(path, os.O_RDONLY if folder else os.O_RDWR)
    except PermissionError:
        if not folder:
            raise
        return
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _check_layout(path: Path) -> dict[str, list[int]]:
    """Name -> shape; WeightsError unless the header is sane and its tensors fill the file, one
    after another."""
    size = path.stat().st_size
    with path.open("rb") as file:
        start = file.read(24)
        _refuse_other_formats(path, start)
        length = int.from_bytes(start[:8], "little")
        if not 2 <= length <= min(MAX_HEADER, size - 8):
            why = f"of its {size:,} bytes the header would take {length:,}"
            raise WeightsError(f"{path} is truncated or no safetensors file: {why}")
        file.seek(8)
        raw = file.read(length)
    try:
        header = json.loads(raw, object_pairs_hook=_unique)
        header.pop("__metadata__", None)
        spans = [(*_span(name, entry), name) for name, entry in header.items()]
    except (ValueError, TypeError, AttributeError, RecursionError) as error:
        raise WeightsError(f"{path} is damaged in its header: {error}") from error
    end, available = 0, size - 8 - length
    for begin, stop, name in sorted(spans):
        if begin != end:
            raise WeightsError(f"{path} is damaged: tensor {name!r} starts at byte {begin:,}, not at {end:,}")
        if stop > available:
            raise WeightsError(f"{path} is truncated: tensor {name!r} ends at byte {stop:,} of {available:,}")
        end = stop
    if end != available:
        raise WeightsError(f"{path} is damaged: {available - end:,} bytes after its last tensor belong to none")
    return {name: entry["shape"] for name, entry in header.items()}


def _span(name: str, entry: dict[str, Any]) -> tuple[int, int]:
    """First and last byte of a tensor in the data; ValueError when its entry is contradictory."""
    try:
        shape, (begin, stop) = entry["shape"], entry["data_offsets"]
        whole = all(type(n) is int and n >= 0 for n in (*shape, begin, stop))
        if not whole or (stop - begin) * 8 != math.prod(shape) * BITS[entry["dtype"]]:
            raise ValueError(f"{entry['dtype']} {shape} does not take bytes {begin} to {stop}")
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"tensor {name!r}: {error}") from error
    return begin, stop


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    if len(dict(pairs)) != len(pairs):
        raise ValueError("a name occurs twice")
    return dict(pairs)


def _refuse_other_formats(path: Path, start: bytes) -> None:
    if start[8:9] == b"{":  # a header of 640 bytes begins like a pickle
        return
    if start.startswith((b"PK\x03\x04", b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05")):
        how = f"save_weights('new.safetensors', load_pickle({path.name!r})) of ssl_core.hub.weights_file"
        raise WeightsError(f"{path} is a zip or a pickle, as torch.save writes, not safetensors. Convert it by {how}")
    if start.startswith(b"version https://git-lfs"):
        raise WeightsError(f"{path} is a pointer of git-lfs, not the weights: run `git lfs pull` in its folder")


def _check_stored(path: Path) -> None:
    """WeightsError for a zip with compressed members, which torch.save does not write: a bomb."""
    try:
        with zipfile.ZipFile(path) as archive:
            members = archive.infolist()
    except (zipfile.BadZipFile, NotImplementedError, ValueError) as error:
        raise WeightsError(f"{path} is no intact file of torch.save: {error}") from error
    if any(m.filename.endswith("/constants.pkl") for m in members):
        how = _resave(f"torch.jit.load({path.name!r}).state_dict()")
        raise WeightsError(
            f"{path} is a TorchScript program, as OpenAI's own CLIP files are, and could run code. {how}"
        )
    packed = [m.filename for m in members if m.compress_type != zipfile.ZIP_STORED]
    if packed:
        raise WeightsError(f"{path} was not written by torch.save: its member {packed[0]!r} is compressed")


def _resave(read: str) -> str:
    """How to make a safetensors file of a file that only `read`, an unsafe call, opens."""
    save = "save_weights('new.safetensors', state) of ssl_core.hub.weights_file"
    return f"If you trust its author, make a safetensors file: state = {read}, then {save}"
