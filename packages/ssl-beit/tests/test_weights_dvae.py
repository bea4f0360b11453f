"""The tokenizer's weights in transformers' codebook and in DALL-E's pickles."""

from __future__ import annotations

import os
import sys
import types
from collections import OrderedDict
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from transformers import FlavaImageCodebook, FlavaImageCodebookConfig

from ssl_beit import DVAE, DVAEConfig
from ssl_beit.config import RECIPES
from ssl_beit.convert_dvae import DALLE
from ssl_beit.dalle import read_dalle
from ssl_core.hub.keymap import KeyMap, prefixed
from ssl_core.hub.layout import WeightsMismatch
from ssl_core.hub.weights_file import WeightsError
from ssl_train.cli.main import main

TOKENIZER = DVAEConfig(image_size=32, hidden=8, blocks=2, decoder_init=6, vocab=24)


def drawn(network: nn.Module) -> Any:
    """`network` in eval mode with every parameter drawn anew."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.copy_(0.1 * torch.randn(parameter.shape, generator=generator))
    return network.eval()


def pixels() -> torch.Tensor:
    return torch.randint(0, 256, (2, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))


def test_the_encoder_has_the_logits_of_transformers_codebook(tmp_path):
    dvae = drawn(DVAE(TOKENIZER))
    theirs, report = FlavaImageCodebook.from_pretrained(dvae.save_pretrained(tmp_path), output_loading_info=True)
    assert not any(report.values()), report
    x = 0.8 * (pixels() / 255) + 0.1
    assert torch.allclose(dvae.average.encoder(x), theirs(x), atol=1e-5)
    assert torch.equal(dvae.tokenize(pixels()), theirs.get_codebook_indices(x))


def test_transformers_codebook_is_an_encoder_whose_decoder_is_missing(tmp_path):
    theirs = FlavaImageCodebook(FlavaImageCodebookConfig(hidden_size=8, vocab_size=24, num_blocks_per_group=1))
    drawn(theirs).save_pretrained(tmp_path)
    with pytest.raises(WeightsMismatch, match="missing: average.decoder.blocks.group_1"):
        DVAE.from_pretrained(tmp_path)
    with pytest.warns(UserWarning, match="missing"):
        dvae = DVAE.from_pretrained(tmp_path, strict=False)
    assert torch.equal(dvae.tokenize(pixels()), theirs.get_codebook_indices(0.8 * (pixels() / 255) + 0.1))


def test_an_exported_tokenizer_is_that_codebook(tmp_path):
    dvae = drawn(DVAE(TOKENIZER))
    dvae.save_pretrained(tmp_path / "ours")
    assert main(RECIPES, ["export", str(tmp_path / "ours"), str(tmp_path / "theirs")]) == 0
    theirs = FlavaImageCodebook.from_pretrained(tmp_path / "theirs")
    assert torch.equal(theirs.get_codebook_indices(0.8 * (pixels() / 255) + 0.1), dvae.tokenize(pixels()))


class Conv2d(nn.Module):
    """As DALL-E's: weights `w` and `b`."""

    def __init__(self, w: torch.Tensor, b: torch.Tensor) -> None:
        super().__init__()
        self.w, self.b = nn.Parameter(w), nn.Parameter(b)
        self.use_float16, self.kw = True, w.shape[-1]


def dalle_modules(dvae: DVAE, monkeypatch: pytest.MonkeyPatch) -> dict[str, nn.Module]:
    """Encoder and decoder as objects of classes named as DALL-E's, whose modules exist only now."""
    shells: dict[str, type] = {}
    for path in ("encoder.Encoder", "encoder.EncoderBlock", "decoder.Decoder", "decoder.DecoderBlock", "utils.Conv2d"):
        module, name = path.split(".")
        base = Conv2d if name == "Conv2d" else nn.Module
        shells[name] = type(name, (base,), {"__module__": f"dall_e.{module}", "__qualname__": name})
        home = sys.modules.get(f"dall_e.{module}") or types.ModuleType(f"dall_e.{module}")
        setattr(home, name, shells[name])
        monkeypatch.setitem(sys.modules, f"dall_e.{module}", home)
    monkeypatch.setitem(sys.modules, "dall_e", types.ModuleType("dall_e"))

    def converted(module: nn.Module, part: str) -> nn.Module:
        if isinstance(module, nn.Conv2d):
            return shells["Conv2d"](module.weight.detach().clone(), module.bias.detach().clone())
        children = {name: converted(child, part) for name, child in module.named_children()}
        if isinstance(module, nn.Sequential):
            return nn.Sequential(OrderedDict(children))
        if not children:
            return module
        made = shells[part if "blocks" in children else f"{part}Block"]()
        for name, child in children.items():
            setattr(made, name, child)
        made.n_hid, made.device = 8, torch.device("cpu")
        return made

    return {part: converted(getattr(dvae.average, part), part.title()) for part in ("encoder", "decoder")}


@pytest.fixture
def dalle(monkeypatch, tmp_path):
    """(a tokenizer, the folder of its `encoder.pkl` and `decoder.pkl` as DALL-E publishes them)."""
    dvae = drawn(DVAE(TOKENIZER))
    with monkeypatch.context() as patch:
        for part, module in dalle_modules(dvae, patch).items():
            torch.save(module, tmp_path / f"{part}.pkl")
    assert "dall_e" not in sys.modules
    return dvae, tmp_path


def test_dalles_pickles_are_read_without_its_code(dalle):
    dvae, folder = dalle
    loaded = DVAE.from_pretrained(folder)
    sizes = (loaded.config.hidden, loaded.config.vocab, loaded.config.blocks, loaded.config.decoder_init)
    assert sizes == (8, 24, 2, 6)
    assert torch.equal(loaded.tokenize(pixels()), dvae.tokenize(pixels()))
    assert torch.equal(loaded.decode(loaded.tokenize(pixels())), dvae.decode(dvae.tokenize(pixels())))
    for online, average in zip(loaded.online.parameters(), loaded.average.parameters(), strict=True):
        assert torch.equal(online, average), "training goes on from the published weights"
    assert "dall_e" not in sys.modules


def test_dalles_names_go_through_ours_and_come_back_with_the_same_bits(dalle):
    state = read_dalle(dalle[1])
    assert "encoder.blocks.group_1.block_1.res_path.conv_1.w" in state and "decoder.blocks.input.b" in state
    loaded = DVAE.from_pretrained(dalle[1])
    back, rest = KeyMap(rows=prefixed(DALLE, ours="average.")).to_theirs(loaded.state_dict())
    assert back.keys() == state.keys()
    assert all(torch.equal(back[name], state[name]) for name in state)
    assert all(name.startswith("online.") for name in rest)


class Payload:
    """Leaves a trace if anything of it is executed."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> tuple:
        return os.mkdir, (str(self.trace),)


def test_code_in_a_tokenizers_pickle_is_named_and_not_executed(tmp_path):
    trace = tmp_path / "executed"
    torch.save({"blocks": Payload(trace)}, tmp_path / "encoder.pkl")
    with pytest.raises(WeightsError, match=r"nothing of it was executed: .*mkdir"):
        DVAE.from_pretrained(tmp_path)
    assert not trace.exists()


def test_a_module_that_dalle_does_not_have_is_refused(tmp_path):
    torch.save(nn.Linear(2, 2), tmp_path / "encoder.pkl")
    with pytest.raises(WeightsError, match=r"nothing of it was executed: .*Linear"):
        DVAE.from_pretrained(tmp_path)


def test_half_a_tokenizer_is_named(dalle):
    (dalle[1] / "decoder.pkl").unlink()
    with pytest.raises(FileNotFoundError, match=r"holds no decoder\.pkl"):
        DVAE.from_pretrained(dalle[1])


def test_a_dictionary_is_no_tokenizer(tmp_path):
    torch.save({"w": torch.zeros(2)}, tmp_path / "encoder.pkl")
    with pytest.raises(WeightsError, match="holds dict, not DALL-E's encoder"):
        DVAE.from_pretrained(tmp_path)


def test_a_tokenizer_for_one_channel_reads_grey_pictures_alike(tmp_path):
    dvae = drawn(DVAE(TOKENIZER))
    grey = DVAE.from_pretrained(dvae.save_pretrained(tmp_path), in_channels=1)
    x = torch.rand(2, 1, 32, 32)
    assert torch.equal(grey.tokenize(x), dvae.tokenize(x.expand(-1, 3, -1, -1)))
    ids = grey.tokenize(x)
    mu, _ = dvae.average.decoder.from_ids(ids).chunk(2, 1)
    ours_mu, _ = grey.average.decoder.from_ids(ids).chunk(2, 1)
    assert torch.allclose(ours_mu, mu.mean(1, keepdim=True), atol=1e-5)
