"""`export --to torch` and `export --to onnx`: an encoder as a program that runs without this code.

A program takes what `encode` takes: images as float32 (b, c, h, w), normalised by the mean and std
in preprocessor_config.json beside it, or token ids as int64 (b, t). It returns features (b, d). The
number of samples is free. So is the number of tokens up to the context, and the size of images
where `free_sizes` says so. A method with two towers (`encode_image`, `encode_text`) gives two.
"""

from __future__ import annotations

import logging
import os
import tempfile
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch._dynamo.exc import UserError
from torch.export import Dim

from ssl_core.errors import InputError
from ssl_core.hub.weights_file import write_json
from ssl_core.method import Recipe, load
from ssl_core.resnet import ResNet

FACTS = "export.json"
SUFFIX = {"torch": ".pt2", "onnx": ".onnx"}
TOLERANCE = 1e-4
"""Difference from the module that a program may have, as a share of the largest feature or of 1."""
SAMPLE = 64
"""Samples on which int8 is compared."""
Run = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Tower:
    """A function of a method, and what it is traced and checked with."""

    name: str
    function: str
    input: str
    free: str
    """which axes are free and which are not, in words"""
    shape: dict[int, Any]
    """axis -> its `Dim`"""
    examples: tuple[Tensor, ...]
    """inputs of several shapes; the first is traced"""


class _Call(nn.Module):
    """A method, called by one of its functions."""

    def __init__(self, method: nn.Module, function: str) -> None:
        super().__init__()
        self.method, self.function = method, function

    def forward(self, x: Tensor) -> Tensor:
        return getattr(self.method, self.function)(x)


def export_program(method: Any, to: str, out: Path, sample: Callable[[], tuple[Tensor, str]] | None) -> dict[str, Any]:
    """Write the programs of a method on the CPU, its preprocessing and export.json into `out`.

    With `sample`, which returns inputs and what they are in words, the ONNX programs are in int8.
    Each file is checked before any is put in its place. Returns what export.json says. Raises
    InputError where a library is missing, a program computes something else than the module, or
    int8 has nothing to quantise.
    """
    if sample is not None and to != "onnx":
        raise InputError("--int8 is for --to onnx")
    if to == "onnx":
        try:
            import onnx, onnxruntime, onnxscript  # noqa: E401, F401, I001
        except ImportError as error:
            raise InputError(f"--to onnx needs the extra: pip install 'ssl-train[onnx]' ({error})") from error
    method.eval()
    programs = {}
    with tempfile.TemporaryDirectory(dir=out.parent, prefix=f".{out.name}.") as made:
        for tower in towers(method):
            file = Path(made) / f"{tower.name}{SUFFIX[to]}"
            facts = _write(method, tower, file)
            if sample is not None:  # the data's view makes what the first tower takes
                facts |= _to_int8(file, *((tower.examples[0], "made token ids") if programs else sample()))
            programs[file.name] = {"input": tower.input, "free": tower.free, **facts}
        method.save_preprocessor(Path(made))
        said = {"method": type(method).__name__, "layout": to, "torch": torch.__version__, "programs": programs}
        write_json(Path(made) / FACTS, said)
        out.mkdir(parents=True, exist_ok=True)
        for file in sorted(Path(made).iterdir(), key=lambda file: file.name == FACTS):
            os.replace(file, out / file.name)
    return said


def as_text(said: dict[str, Any], out: Path) -> str:
    """What export.json says, for people."""
    lines = []
    for name, facts in said["programs"].items():
        lines.append(f"{out / name}: {facts['input']} -> features (b, {facts['features']}), {facts['free']}")
        differs = f"at most {facts['difference']:.1e}, of features up to {facts['largest']:.2g}"
        lines.append(f"  differs from the module by {differs}")
        if small := facts.get("int8"):
            cosine, sizes = (
                small["cosine"],
                f"{small['bytes'] / 1e6:.1f} MB instead of {small['bytes_of_fp32'] / 1e6:.1f}",
            )
            where = f"on {cosine['samples']} samples ({cosine['of']}); {sizes}"
            lines.append(f"  int8: cosine to fp32 {cosine['mean']:.4f}, least {cosine['least']:.4f}, {where}")
    return "\n".join(lines)


def towers(method: Any) -> list[Tower]:
    """The programs of a method: `model`, or `image` and `text`."""
    if not hasattr(method.config, "in_channels"):
        return [_of_ids("model", "encode", method.config.vocab_size, method.config.context)]
    if not hasattr(method, "encode_text"):
        return [_of_images("model", "encode", method)]
    text = _of_ids("text", "encode_text", method.config.vocab_size, method.config.context_length)
    return [_of_images("image", "encode_image", method), text]


def free_sizes(method: Any) -> tuple[int, int, str]:
    """(divisor of the sides, least number of it, words); divisor 0 where a program has one size."""
    h, w = method.config.size
    fixed = f"images of {h}x{w} alone: "
    encoder = getattr(method, "encoder", None)
    if isinstance(encoder, ResNet):
        least = (8 if method.config.small_stem else 32) + 1  # smaller ones end in a map of one cell
        if min(h, w) < least:
            return 0, 0, f"{fixed}smaller than {least}"
        return 1, least, f"images of any size from {least}x{least}"
    modules = encoder.modules() if isinstance(encoder, nn.Module) else ()
    positions: Any = next((module for module in modules if hasattr(module, "pos_interp")), None)
    if positions is None:
        return 0, 0, f"{fixed}this network's shapes follow from its size"
    if positions.pos_interp == "offset":
        return 0, 0, f"{fixed}its positions are resampled by a factor (pos_interp = offset) that depends on the size"
    side = h // positions.grid[0]
    return side, 2, f"images of any sides from {2 * side} that {side} divides"  # a graph's axis is never of 1


def _of_images(name: str, function: str, method: Any) -> Tower:
    (h, w), c = method.config.size, len(method.config.mean)
    side, least, words = free_sizes(method)
    shape: dict[int, Any] = {0: Dim("batch")}
    # The traced size is not the native one, so that no number of the trace looks like a constant.
    sizes = [(3, h, w), (1, h, w)]
    if side:
        step = max(side, 8)
        sizes = [(3, h + 2 * step, w + 3 * step), *sizes, (2, h + step, w)]
        for axis, side_name in ((2, "rows"), (3, "columns")):
            shape[axis] = Dim(side_name, min=least) if side == 1 else side * Dim(side_name, min=least)
    draw = torch.Generator().manual_seed(0)
    examples = tuple(torch.randn(b, c, h, w, generator=draw) for b, h, w in sizes)
    return Tower(name, function, "images", f"any number of {words}", shape, examples)


def _of_ids(name: str, function: str, vocab: int, context: int) -> Tower:
    draw = torch.Generator().manual_seed(0)
    lengths = [(3, max(2, context - 1)), (1, context), (4, max(2, context // 2))]
    examples = tuple(torch.randint(vocab, size, generator=draw) for size in lengths)
    shape = {0: Dim("batch"), 1: Dim("tokens", min=2, max=context)}
    return Tower(name, function, "input_ids", f"any number of texts of 2 to {context} tokens", shape, examples)


def _write(method: Any, tower: Tower, file: Path) -> dict[str, Any]:
    """Trace a tower into `file`, read that again, and compare it with the module."""
    module = _Call(method, tower.function)
    with torch.no_grad(), _quiet():
        try:
            program = torch.export.export(module, (tower.examples[0],), dynamic_shapes=({**tower.shape},), strict=False)
        except UserError as error:
            raise InputError(f"{type(method).__name__} has no program: its code fixes the shape of inputs") from error
        if file.suffix == ".pt2":
            torch.export.save(program, file)
            run: Run = torch.export.load(file).module()
        else:
            names = [tower.input]
            exported = torch.onnx.export(
                program, dynamo=True, verbose=False, input_names=names, output_names=["features"]
            )
            assert exported is not None
            exported.save(file)
            run = session(file)
    worst = largest = 0.0
    with torch.no_grad():
        for example in tower.examples:
            wanted = module(example)
            worst = max(worst, (run(example) - wanted).abs().max().item())
            largest = max(largest, wanted.abs().max().item())
    if not worst <= TOLERANCE * max(1.0, largest):
        what = (
            f"{file.name} differs from the module by {worst:.2g}, of features up to {largest:.2g}: nothing is written"
        )
        raise InputError(what)
    return {"features": wanted.shape[1], "difference": worst, "largest": largest}


def session(file: Path) -> Run:
    """An ONNX program on the CPU, as a function of tensors."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    opened = onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])
    name = opened.get_inputs()[0].name
    return lambda x: torch.from_numpy(opened.run(None, {name: x.numpy()})[0])


def _to_int8(file: Path, inputs: Tensor, words: str) -> dict[str, Any]:
    """Replace `file` by its program with matrix products in int8, and compare the features."""
    import onnx
    from onnxruntime.quantization import QuantType, quantize_dynamic

    whole = session(file)(inputs)
    with _quiet():
        small = file.with_name("int8")
        quantize_dynamic(file, small, op_types_to_quantize=["MatMul", "Gemm"], weight_type=QuantType.QInt8)
    if not any("Integer" in node.op_type for node in onnx.load(small).graph.node):
        raise InputError("--int8 quantises matrix products, and this network, of convolutions, has none: leave it out")
    before, after = file.stat().st_size, small.stat().st_size
    os.replace(small, file)
    cosine = F.cosine_similarity(whole, session(file)(inputs))
    found = {"mean": cosine.mean().item(), "least": cosine.min().item(), "samples": len(cosine), "of": words}
    return {"int8": {"cosine": found, "bytes": after, "bytes_of_fp32": before}}


def sample_of(recipe: Recipe, weights: str, data: str | None) -> tuple[Tensor, str]:
    """Inputs of `encode` and what they are: of `data`, else of what the run held out, else of the
    built-in data."""
    from ssl_train.data.loader import collate
    from ssl_train.data.split import trained_on
    from ssl_train.opened import Opened

    own = trained_on(weights).data
    place = data or (own if Path(own).exists() and own else None)
    opened = Opened.from_weights(recipe, weights, data=place, device="cpu", as_trained=True)
    source, words = opened.shown()
    view = load(recipe.eval_view)(opened.method.config)
    rows = torch.linspace(0, len(source) - 1, min(SAMPLE, len(source))).long().tolist()
    batch = collate([view(source.load(row), None) for row in rows])["views"][0]
    return (opened.method.normalized(batch) if hasattr(opened.method, "normalized") else batch), words


@contextmanager
def _quiet() -> Iterator[None]:
    """Without what the libraries say of their own insides."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)
