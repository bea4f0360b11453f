"""Weights files: whole or an error, and no pickle runs code."""

from __future__ import annotations

import argparse
import json
import os
import pickle
import random
import subprocess
import tarfile
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch
from numpy.testing._private import utils as numpy_utils
from safetensors.torch import save
from torch.utils import collect_env

from ssl_core.hub import weights_file
from ssl_core.hub.weights_file import (
    WeightsError,
    load_pickle,
    load_shapes,
    load_weights,
    save_weights,
    verify_sums,
    write_sums,
)


def state() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return {
        "patch.weight": torch.randn(8, 3, 4, 4, generator=generator),
        "half": torch.randn(5, 7, generator=generator).bfloat16(),
        "steps": torch.tensor(123),
        "none": torch.zeros(0, 4),
        "transposed": torch.randn(6, 5, generator=generator).t(),
    }


def raw(header: dict[str, Any] | bytes, data: bytes = b"") -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + data


def entry(dtype: str, shape: list[Any], begin: Any, stop: Any) -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, stop]}


def test_weights_come_back_equal_in_value_shape_and_dtype(tmp_path: Path) -> None:
    save_weights(tmp_path / "model.safetensors", state(), {"made by": "test"})
    loaded = load_weights(tmp_path / "model.safetensors")
    assert loaded.keys() == state().keys()
    for name, tensor in state().items():
        torch.testing.assert_close(loaded[name], tensor.contiguous(), rtol=0, atol=0)
        assert loaded[name].is_contiguous()
    header = (tmp_path / "model.safetensors").read_bytes()[8:400]
    assert b'"format":"pt"' in header and b'"made by":"test"' in header


def test_a_slice_of_a_large_tensor_is_written_without_the_rest(tmp_path: Path) -> None:
    q, k = torch.randn(20_000).chunk(2)
    save_weights(tmp_path / "w.safetensors", {"q": q[:10], "k": k[:10]})
    assert (tmp_path / "w.safetensors").stat().st_size < 400
    torch.testing.assert_close(load_weights(tmp_path / "w.safetensors")["k"], k[:10])


def test_tied_tensors_are_refused_by_name_and_the_old_file_stays(tmp_path: Path) -> None:
    path = tmp_path / "w.safetensors"
    save_weights(path, {"a": torch.ones(2)})
    shared = torch.zeros(3)
    with pytest.raises(WeightsError, match=r"w\.safetensors.*tied.*(head.*wte|wte.*head)"):
        save_weights(path, {"head": shared, "wte": shared})
    assert load_weights(path)["a"].tolist() == [1, 1]


def test_a_crash_while_saving_leaves_the_old_file_and_no_litter(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "w.safetensors"
    save_weights(path, {"a": torch.ones(2)})

    def crash(tensors: object, temporary: Path, metadata: object) -> None:
        temporary.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(weights_file, "save_file", crash)
    with pytest.raises(OSError, match="No space left"):
        save_weights(path, {"a": torch.zeros(2)})
    monkeypatch.undo()
    assert load_weights(path)["a"].tolist() == [1, 1]
    assert os.listdir(tmp_path) == ["w.safetensors"]


@pytest.mark.skipif(os.name != "posix", reason="permissions of POSIX")
def test_a_saved_file_is_as_readable_as_the_umask_says(tmp_path: Path) -> None:
    old = os.umask(0o027)
    try:
        save_weights(tmp_path / "w.safetensors", {"a": torch.ones(2)})
    finally:
        os.umask(old)
    assert (tmp_path / "w.safetensors").stat().st_mode & 0o777 == 0o640


def mutate(content: bytes, rng: random.Random) -> bytes:
    """One accident of a disk or a transfer: always other bytes than before."""
    at, size = rng.randrange(len(content)), rng.randrange(1, 64)
    match rng.randrange(6):
        case 0:
            return content[:at] + bytes([content[at] ^ (1 << rng.randrange(8))]) + content[at + 1 :]
        case 1:
            return content[:at]
        case 2:
            return content[:at] + rng.randbytes(size) + content[at:]
        case 3:
            return content[:at] + content[at + size :]
        case 4:
            changed = content[:at] + b"\0" * len(content[at : at + size]) + content[at + size :]
            return changed if changed != content else content + b"\0"
        case _:
            return content[:at] + rng.randbytes(size) + content[at + size :]


def test_no_mutation_of_a_published_file_passes_unseen(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    save_weights(path, state())
    write_sums(tmp_path, ["model.safetensors"])
    assert verify_sums(tmp_path)
    content, rng, loads = path.read_bytes(), random.Random(0), 0
    for _ in range(300):
        path.write_bytes(mutate(content, rng))
        with pytest.raises(WeightsError, match="changed since it was published"):
            verify_sums(tmp_path, ["model.safetensors"])
        try:
            load_weights(path)  # nothing but tensors or a WeightsError comes out of it
            loads += 1
        except WeightsError as error:
            assert "model.safetensors" in str(error)
    assert 0 < loads < 300, "some damage is silent without the sums, most is not"


def test_every_truncation_of_a_file_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "w.safetensors"
    save_weights(path, {"first": torch.ones(4), "last": torch.ones(4)})
    content = path.read_bytes()
    for length in range(len(content)):
        path.write_bytes(content[:length])
        with pytest.raises(WeightsError, match=r"w\.safetensors is (truncated|damaged)"):
            load_weights(path)
    with pytest.raises(WeightsError, match="tensor 'last' ends at byte 32 of 31"):
        load_weights(path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "truncated"),
        (b"\xff" * 8 + b"{}", "header would take 18,446,744,073,709,551,615"),
        ((200_000_000).to_bytes(8, "little") + b"{}", "header would take 200,000,000"),
        (raw(b"[1, 2]  "), "damaged in its header"),
        (raw(b"\xff\xfe\x00{"), "damaged in its header"),
        (raw(b'{"a":' * 9000), "damaged in its header"),
        (raw({"a": 5}), "tensor 'a'"),
        (raw({"a": entry("F32", [2], 0, 4)}, b"\0" * 4), "tensor 'a': F32 .* bytes 0 to 4"),
        (raw({"a": entry("F32", [-1, -1], 0, 4)}, b"\0" * 4), "tensor 'a'"),
        (raw({"a": entry("F32", [True], 0, 4)}, b"\0" * 4), "tensor 'a'"),
        (raw({"a": entry("F33", [1], 0, 4)}, b"\0" * 4), "tensor 'a'.*F33"),
        (raw({"a": entry("F32", [1], 4, 8)}, b"\0" * 8), "tensor 'a' starts at byte 4"),
        (raw({"a": entry("F32", [1], 0, 4)}, b"\0" * 8), "4 bytes after its last tensor"),
        (raw({"a": entry("F32", [1], 0, 4), "b": entry("F32", [1], 0, 4)}, b"\0" * 4), "tensor 'b' starts at byte 0"),
        (
            raw(b'{"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]},"a":{"dtype":"U8"}}', b"\0"),
            "a name occurs twice",
        ),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n", "git lfs pull"),
        (b"<!doctype html><html><body>log in", "no safetensors"),
    ],
)
def test_malformed_files_are_errors_that_say_where(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "w.safetensors").write_bytes(content)
    with pytest.raises(WeightsError, match=message) as caught:
        load_weights(tmp_path / "w.safetensors")
    assert "w.safetensors" in str(caught.value)


@pytest.mark.parametrize("zipped", [True, False])
def test_a_pickle_named_safetensors_is_recognised_and_can_be_converted(tmp_path: Path, zipped: bool) -> None:
    wrong, right = tmp_path / "w.safetensors", tmp_path / "new.safetensors"
    torch.save({"a": torch.ones(2)}, tmp_path / "w.pth", _use_new_zipfile_serialization=zipped)
    (tmp_path / "w.pth").rename(wrong)
    with pytest.raises(WeightsError, match=r"pickle.*save_weights"):
        load_weights(wrong)
    wrong.rename(tmp_path / "w.pth")
    save_weights(right, load_pickle(tmp_path / "w.pth"))
    assert load_weights(right)["a"].tolist() == [1, 1]


def test_a_header_whose_length_looks_like_a_pickle_is_none(tmp_path: Path) -> None:
    content = save({"a": torch.ones(1)}, {"pad": "x" * 540})
    pad = 640 - int.from_bytes(content[:8], "little")
    content = save({"a": torch.ones(1)}, {"pad": "x" * (540 + pad)})
    assert content.startswith(b"\x80\x02")
    (tmp_path / "w.safetensors").write_bytes(content)
    assert load_weights(tmp_path / "w.safetensors")["a"].tolist() == [1]


def test_sums_are_in_the_format_of_sha256sum(tmp_path: Path) -> None:
    for name in ("a.bin", "b c.bin"):
        (tmp_path / name).write_bytes(name.encode())
    write_sums(tmp_path, ["a.bin", "b c.bin"])
    check = ["sha256sum", "-c", "--strict", "SHA256SUMS"]
    subprocess.run(check, cwd=tmp_path, check=True, capture_output=True)


def test_sums_name_the_file_that_changed_vanished_or_is_not_listed(tmp_path: Path) -> None:
    for name in ("a.bin", "b.bin", "c.bin"):
        (tmp_path / name).write_bytes(name.encode())
    assert verify_sums(tmp_path) is False
    write_sums(tmp_path, ["a.bin", "b.bin"])
    assert verify_sums(tmp_path) and verify_sums(tmp_path, ["b.bin"])
    with pytest.raises(WeightsError, match=r"SHA256SUMS does not list c\.bin"):
        verify_sums(tmp_path, ["a.bin", "c.bin"])
    (tmp_path / "a.bin").write_bytes(b"A.bin")
    with pytest.raises(WeightsError, match=r"a\.bin has changed since it was published.*save"):
        verify_sums(tmp_path)
    assert verify_sums(tmp_path, ["b.bin"])
    (tmp_path / "b.bin").unlink()
    with pytest.raises(WeightsError, match=r"b\.bin is missing"):
        verify_sums(tmp_path, ["b.bin"])


@pytest.mark.parametrize("line", ["nonsense", "0" * 64 + "  ../a", "0" * 64 + "  /etc/passwd", "0" * 63 + "  a", ""])
def test_damaged_sums_are_an_error(tmp_path: Path, line: str) -> None:
    (tmp_path / "SHA256SUMS").write_text(line and line + "\n")
    with pytest.raises(WeightsError, match="SHA256SUMS is damaged"):
        verify_sums(tmp_path)


@pytest.mark.parametrize("zipped", [True, False])
def test_an_authors_checkpoint_loads_with_its_command_line(tmp_path: Path, zipped: bool) -> None:
    arguments = argparse.Namespace(lr=0.1, arch="vit", betas=(0.9, 0.95))
    saved = {"model": state(), "args": arguments, "epoch": 3}
    torch.save(saved, tmp_path / "x.pth", _use_new_zipfile_serialization=zipped)
    loaded = load_pickle(tmp_path / "x.pth")
    assert loaded["args"] == arguments and loaded["epoch"] == 3
    for name, tensor in state().items():
        torch.testing.assert_close(loaded["model"][name], tensor, rtol=0, atol=0)


class Payload:
    """Unpickles by calling `function(*arguments)`."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self.function, self.arguments = function, arguments

    def __reduce__(self) -> tuple[Any, ...]:
        return self.function, self.arguments


def malicious(kind: str, marker: str) -> tuple[Any, dict[str, Any]]:
    """(what to torch.save so that loading it makes the folder `marker`, options)."""
    mkdir, legacy = f"__import__('os').mkdir({marker!r})", {"_use_new_zipfile_serialization": False}
    return {
        "reduce": (Payload(os.mkdir, marker), {}),
        "reduce in the old format": (Payload(os.mkdir, marker), legacy),
        "nested beside weights": ({"model": state(), "args": [Payload(eval, mkdir)]}, {}),
        "through numpy": ({"model": Payload(numpy_utils.runstring, mkdir, {})}, {}),
        "through torch": ({"model": Payload(collect_env.run, f"mkdir {marker}")}, {}),
    }[kind]


@pytest.mark.parametrize(
    "kind", ["reduce", "reduce in the old format", "nested beside weights", "through numpy", "through torch"]
)
def test_a_malicious_pickle_is_named_and_not_executed(tmp_path: Path, kind: str) -> None:
    marker, path = tmp_path / "executed", tmp_path / "evil.pth"
    saved, options = malicious(kind, str(marker))
    torch.save(saved, path, **options)
    named = r"nothing of it was executed.*asks for (posix\.mkdir|(builtins\.)?eval|numpy\.\S+|torch\.\S+),"
    with pytest.raises(WeightsError, match=named):
        load_pickle(path)
    assert not marker.exists()
    torch.load(path, weights_only=False)
    assert marker.exists(), "the payload is a dud, so the test shows nothing"


def test_a_bare_pickle_is_not_executed_either(tmp_path: Path) -> None:
    for protocol in range(pickle.HIGHEST_PROTOCOL + 1):
        content = pickle.dumps(Payload(os.mkdir, str(tmp_path / "executed")), protocol=protocol)
        (tmp_path / "evil.bin").write_bytes(content)
        with pytest.raises(WeightsError, match="nothing of it was executed"):
            load_pickle(tmp_path / "evil.bin")
        assert not (tmp_path / "executed").exists()


def test_a_zip_bomb_is_refused(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "bomb.pth", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", b"\0" * 50_000_000)
    with pytest.raises(WeightsError, match=r"bomb\.pth.*compressed"):
        load_pickle(tmp_path / "bomb.pth")


@pytest.mark.parametrize("zipped", [True, False])
def test_damaged_checkpoints_raise_nothing_but_weights_errors(tmp_path: Path, zipped: bool) -> None:
    path, rng, refused = tmp_path / "x.pth", random.Random(1), 0
    torch.save({"model": state()}, path, _use_new_zipfile_serialization=zipped)
    content = path.read_bytes()
    for _ in range(60):
        path.write_bytes(mutate(content, rng))
        try:
            load_pickle(path)
        except WeightsError as error:
            assert "x.pth" in str(error)
            refused += 1
    assert refused > 20
    with pytest.raises(FileNotFoundError):
        load_pickle(tmp_path / "missing.pth")
    with pytest.raises(FileNotFoundError):
        load_weights(tmp_path / "missing.safetensors")


class Program(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a = torch.nn.Parameter(torch.ones(2))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.a


def foreign_file(kind: str, path: Path) -> None:
    if kind == "TorchScript":
        torch.jit.script(Program()).save(path)
    elif kind == "tar":
        with tarfile.open(path, "w") as archive:
            archive.add(__file__, "storages")
    else:
        torch.save(state(), path, pickle_protocol=4, _use_new_zipfile_serialization=kind == "protocol 4")


@pytest.mark.filterwarnings("ignore:.*torch.jit")
@pytest.mark.parametrize(
    ("kind", "what", "call"),
    [
        (
            "TorchScript",
            "is a TorchScript program, as OpenAI's own CLIP files",
            r"torch\.jit\.load\('x\.pt'\)\.state_dict",
        ),
        ("tar", "is a tar archive, as the first versions of torch", r"torch\.load\('x\.pt', weights_only=False\)"),
        ("protocol 4", "opcode 149, which pickles of another protocol", r"torch\.load\('x\.pt', weights_only=False\)"),
        ("legacy protocol 4", "opcode 149, which pickles of another", r"torch\.load\('x\.pt', weights_only=False\)"),
    ],
)
def test_a_file_that_only_an_unsafe_call_opens_is_named_with_its_safe_form(
    tmp_path: Path, kind: str, what: str, call: str
) -> None:
    foreign_file(kind, tmp_path / "x.pt")
    with pytest.raises(WeightsError, match=rf"x\.pt .*{what}.*{call}.*save_weights\('new\.safetensors', state\)"):
        load_pickle(tmp_path / "x.pt")


def test_shapes_are_read_from_the_header_alone(tmp_path: Path) -> None:
    save_weights(tmp_path / "w.safetensors", state())
    shapes = load_shapes(tmp_path / "w.safetensors")
    assert {name: t.shape for name, t in shapes.items()} == {name: t.shape for name, t in state().items()}
    assert all(tensor.is_meta for tensor in shapes.values())


@pytest.mark.parametrize("content", [b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR", b"PNG", b"# a text\n", b"GIF89a"])
def test_a_file_that_is_no_checkpoint_is_not_taken_for_a_pickle(content, tmp_path):
    (tmp_path / "x.pt").write_bytes(content)
    with pytest.raises(
        WeightsError, match=r"x\.pt is no intact file of torch\.save; nothing of it was executed"
    ) as told:
        load_pickle(tmp_path / "x.pt")
    assert "weights_only=False" not in str(told.value), "no advice to execute a file of unknown kind"
