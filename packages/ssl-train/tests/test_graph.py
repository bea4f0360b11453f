"""Programs of torch and ONNX compute what the encoder does, or are not written."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from ssl_core.config import BackboneConfig
from ssl_core.encoder import ImageEncoder, build_encoder
from ssl_core.errors import InputError
from ssl_core.hub.pretrained import Pretrained
from ssl_train.graph import as_text, export_program, free_sizes, session, towers

SMALL = {"image_size": 16, "patch_size": 4, "dim": 32, "depth": 2, "heads": 2, "width": 8, "mean": (0.4, 0.5, 0.6)}


class Small(nn.Module, ImageEncoder, Pretrained):
    def __init__(self, **changes):
        super().__init__()
        self.config = BackboneConfig(**{"backbone": "vit", "pos_interp": "size", **SMALL, **changes})
        torch.manual_seed(0)
        self.encoder = build_encoder(self.config)
        if self.config.is_vit:
            nn.init.normal_(self.encoder.pos_embed)


class Texts(nn.Module):
    """Features of tokens: the mean of their embeddings at text."""

    def __init__(self):
        super().__init__()
        self.config = SimpleNamespace(vocab_size=20, context=12)
        self.table = nn.Embedding(20, 8)

    def encode(self, ids):
        text = (ids > 0)[..., None].float()
        return (self.table(ids.clamp(min=0)) * text).sum(1) / text.sum(1).clamp(min=1)

    def save_preprocessor(self, folder):
        (folder / "tokenizer.json").write_text("{}")


def pictures(*shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(1))


def test_a_torch_program_takes_any_number_and_size_and_lies_beside_its_preprocessing(tmp_path):
    method = Small()
    said = export_program(method, "torch", tmp_path / "out", None)
    run = torch.export.load(tmp_path / "out" / "model.pt2").module()
    with torch.no_grad():
        for shape in ((1, 3, 16, 16), (5, 3, 16, 16), (2, 3, 28, 20), (1, 3, 8, 64)):
            torch.testing.assert_close(run(pictures(*shape)), method.encode(pictures(*shape)))
    assert said == json.loads((tmp_path / "out" / "export.json").read_text("utf-8"))
    assert said["programs"]["model.pt2"]["difference"] <= 1e-5 and said["programs"]["model.pt2"]["features"] == 32
    processor = json.loads((tmp_path / "out" / "preprocessor_config.json").read_text("utf-8"))
    assert processor["image_mean"] == [0.4, 0.5, 0.6] and processor["crop_size"] == {"height": 16, "width": 16}
    assert "any sides from 8 that 4 divides" in as_text(said, tmp_path)


def test_an_onnx_program_in_int8_says_how_well_it_agrees(tmp_path):
    pytest.importorskip("onnxscript"), pytest.importorskip("onnxruntime")
    method, sample = Small(), pictures(10, 3, 16, 16)
    export_program(method, "onnx", tmp_path / "whole", None)
    said = export_program(method, "onnx", tmp_path / "small", lambda: (sample, "made pictures"))
    whole, small = (session(tmp_path / name / "model.onnx") for name in ("whole", "small"))
    with torch.no_grad():
        for shape in ((1, 3, 16, 16), (2, 3, 28, 20)):
            torch.testing.assert_close(whole(pictures(*shape)), method.encode(pictures(*shape)), atol=1e-4, rtol=1e-4)
        cosine = F.cosine_similarity(small(sample), method.encode(sample))
    found = said["programs"]["model.onnx"]["int8"]["cosine"]
    assert found["samples"] == 10 and found["of"] == "made pictures"
    assert abs(found["least"] - cosine.min().item()) < 1e-4 and 0.98 < found["least"] < 1
    sizes = [(tmp_path / name / "model.onnx").stat().st_size for name in ("whole", "small")]
    assert sizes[1] < 0.8 * sizes[0] and "int8: cosine" in as_text(said, tmp_path)


def test_a_resnet_has_any_size_and_no_int8(tmp_path):
    pytest.importorskip("onnxscript"), pytest.importorskip("onnxruntime")
    method = Small(backbone="resnet18", small_stem=True)
    assert free_sizes(method)[:2] == (1, 9)
    assert free_sizes(Small(backbone="resnet18", small_stem=False))[0] == 0  # 16 pixels are one cell of its map
    with pytest.raises(InputError, match="no matrix products|has none"):
        export_program(method, "onnx", tmp_path / "out", lambda: (pictures(2, 3, 16, 16), "made"))
    assert list(tmp_path.iterdir()) == []


def test_positions_that_a_factor_resamples_fix_the_size(tmp_path):
    method = Small(pos_interp="offset")
    said = export_program(method, "torch", tmp_path / "out", None)
    assert "16x16 alone: its positions are resampled by a factor" in said["programs"]["model.pt2"]["free"]
    with torch.no_grad():
        program = torch.export.load(tmp_path / "out" / "model.pt2").module()
        torch.testing.assert_close(program(pictures(7, 3, 16, 16)), method.encode(pictures(7, 3, 16, 16)))
        with pytest.raises(Exception, match="16"):
            program(pictures(1, 3, 20, 20))


def test_a_text_program_takes_any_length_up_to_the_context(tmp_path):
    method = Texts()
    export_program(method, "torch", tmp_path / "out", None)
    run = torch.export.load(tmp_path / "out" / "model.pt2").module()
    for shape in ((1, 12), (6, 3)):
        ids = torch.randint(20, shape)
        torch.testing.assert_close(run(ids), method.encode(ids))
    assert (tmp_path / "out" / "tokenizer.json").is_file()


def test_a_method_with_two_towers_has_two_programs():
    method = Small()
    method.encode_image, method.encode_text = method.encode, method.encode
    method.config = SimpleNamespace(**vars(method.config), size=(16, 16), vocab_size=9, context_length=5)
    found = [(tower.name, tower.function, tower.input) for tower in towers(method)]
    assert found == [("image", "encode_image", "images"), ("text", "encode_text", "input_ids")]


def test_a_program_that_differs_is_not_written(tmp_path, monkeypatch):
    wrong = SimpleNamespace(module=lambda: lambda x: torch.zeros(len(x), 32))
    monkeypatch.setattr(torch.export, "load", lambda file: wrong)
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "model.pt2").write_text("an older one")
    with pytest.raises(InputError, match="model.pt2 differs from the module by .*nothing is written"):
        export_program(Small(), "torch", tmp_path / "out", None)
    assert [path.name for path in tmp_path.rglob("*")] == ["out", "model.pt2"]
    assert Path(tmp_path / "out" / "model.pt2").read_text() == "an older one"


def test_what_cannot_be_done_is_said(tmp_path, monkeypatch):
    with pytest.raises(InputError, match="--int8 is for --to onnx"):
        export_program(Small(), "torch", tmp_path / "out", lambda: (pictures(1, 3, 16, 16), ""))
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(InputError, match=r"pip install 'ssl-train\[onnx\]'"):
        export_program(Small(), "onnx", tmp_path / "out", None)
    assert list(tmp_path.iterdir()) == []
