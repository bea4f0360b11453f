"""The same embeddings and logits as transformers and open_clip, on random weights in files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from ssl_clip import CLIP, CLIPConfig
from ssl_clip.convert_open_clip import from_theirs
from ssl_core.config import ConfigError
from ssl_core.hub.layout import WeightsMismatch

transformers = pytest.importorskip("transformers")
open_clip = pytest.importorskip("open_clip")

VOCABULARY, END = 60, 50
IDS = torch.tensor([[58, 3, 50, 59, 0, 0], [58, 50, 7, 50, 2, 1], [58, 4, 9, 12, 59, 50]])
IMAGES = torch.randn(3, 3, 32, 32, generator=torch.Generator().manual_seed(1))


def randomised(model: Any) -> Any:
    """Every weight, batch statistic and scale another number."""
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for name, tensor in model.state_dict().items():
            if tensor.is_floating_point():
                noise = torch.rand(tensor.shape, generator=generator)
                tensor.copy_(noise + 0.5 if "running_var" in name else tensor + 0.3 * (noise - 0.5))
    return model.eval()


def of_transformers(activation: str, eos: int, **vision: Any) -> Any:
    both = {"projection_dim": 12, "num_hidden_layers": 2, "hidden_act": activation}
    words = {"vocab_size": VOCABULARY, "max_position_embeddings": 6, "eos_token_id": eos, "bos_token_id": 58}
    text = {"hidden_size": 16, "intermediate_size": 64, "num_attention_heads": 2, **words, **both}
    pixels = {"image_size": 32, "patch_size": 8, **vision}
    image = {"hidden_size": 24, "intermediate_size": 96, "num_attention_heads": 3, **pixels, **both}
    config = transformers.CLIPConfig(projection_dim=12, text_config=text, vision_config=image)
    return randomised(transformers.CLIPModel(config))


def of_open_clip(vision: dict[str, Any], **model: Any) -> Any:
    sizes = {"context_length": 6, "vocab_size": VOCABULARY, "width": 16, "heads": 2, "layers": 2}
    text = {**sizes, **model.pop("text", {})}
    vision = {"image_size": 32, "head_width": 8, **vision}
    return {"embed_dim": 12, "vision_cfg": vision, "text_cfg": text, **model}


def open_clip_folder(folder: Path, config: dict[str, Any]) -> Any:
    options = {"quick_gelu": config.get("quick_gelu", False), "init_logit_bias": config.get("init_logit_bias")}
    network = open_clip.model.CLIP(config["embed_dim"], config["vision_cfg"], config["text_cfg"], **options)
    model = randomised(network)
    folder.mkdir()
    save_file({k: v.contiguous() for k, v in model.state_dict().items()}, folder / "open_clip_model.safetensors")
    values = {"model_cfg": config, "preprocess_cfg": {"mean": [0.1, 0.2, 0.3], "std": [0.5, 0.6, 0.7]}}
    (folder / "open_clip_config.json").write_text(json.dumps(values))
    return model


def outputs_of_transformers(model: Any) -> list[Tensor]:
    with torch.no_grad():
        out = model(pixel_values=IMAGES, input_ids=IDS)
    return [out.image_embeds, out.text_embeds, out.logits_per_image]


def outputs_of_open_clip(model: Any) -> list[Tensor]:
    with torch.no_grad():
        image, text = model.encode_image(IMAGES, normalize=True), model.encode_text(IDS, normalize=True)
        logits = model.logit_scale.exp() * image @ text.T
    return [image, text, logits if model.logit_bias is None else logits + model.logit_bias]


def ours(clip: CLIP) -> list[Tensor]:
    with torch.no_grad():
        return [clip.encode_image(IMAGES), clip.encode_text(IDS), clip.logits(IMAGES, IDS)]


def assert_same(a: list[Tensor], b: list[Tensor], tolerance: float = 1e-4) -> None:
    for x, y in zip(a, b, strict=True):
        assert x.abs().max() > 0.1
        torch.testing.assert_close(x, y, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("activation", ["quick_gelu", "gelu"])
@pytest.mark.parametrize("eos", [2, END], ids=["argmax", "by id"])
def test_a_folder_of_transformers_gives_its_outputs_and_goes_back(activation, eos, tmp_path):
    theirs = of_transformers(activation, eos)
    theirs.save_pretrained(tmp_path / "theirs")
    clip = CLIP.from_pretrained(tmp_path / "theirs")
    assert (clip.config.activation, clip.config.text_pool) == (activation, "argmax" if eos == 2 else "eos")
    assert_same(ours(clip), outputs_of_transformers(theirs))
    clip.save_pretrained(tmp_path / "ours")
    back, report = transformers.AutoModel.from_pretrained(tmp_path / "ours", output_loading_info=True)
    assert type(back).__name__ == "CLIPModel"
    assert not any(report[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys")), report
    assert_same(outputs_of_transformers(back.eval()), outputs_of_transformers(theirs), 1e-6)


def test_the_names_that_transformers_has_in_memory_load_too(tmp_path):
    theirs = of_transformers("gelu", END)
    theirs.save_pretrained(tmp_path / "theirs")
    save_file({k: v.contiguous() for k, v in theirs.state_dict().items()}, tmp_path / "theirs" / "model.safetensors")
    assert_same(ours(CLIP.from_pretrained(tmp_path / "theirs")), outputs_of_transformers(theirs))


def test_where_two_end_tokens_stand_the_rule_decides(tmp_path):
    for eos in (2, END):
        of_transformers("gelu", eos).save_pretrained(tmp_path / str(eos))
    largest, first = (CLIP.from_pretrained(tmp_path / str(eos)) for eos in (2, END))
    assert not torch.allclose(largest.encode_text(IDS), first.encode_text(IDS))


VIT = {"layers": 2, "width": 24, "patch_size": 8}
RESNET = {"layers": [1, 2, 1, 1], "width": 8, "patch_size": None, "head_width": 32, "image_size": 64}


@pytest.mark.parametrize(
    "config",
    [
        of_open_clip(VIT, quick_gelu=True),
        of_open_clip(VIT),
        of_open_clip(VIT, text={"pool_type": "eos", "eos_id": END}),
        of_open_clip(VIT, init_logit_bias=-10),
        of_open_clip(RESNET | {"image_size": 32}, quick_gelu=True),
    ],
    ids=["quick-gelu", "gelu", "end by id", "siglip", "resnet"],
)
def test_a_folder_of_open_clip_gives_its_outputs_and_goes_back(config, tmp_path):
    theirs = open_clip_folder(tmp_path / "theirs", config)
    clip = CLIP.from_pretrained(tmp_path / "theirs")
    assert clip.config.activation == ("quick_gelu" if config.get("quick_gelu") else "gelu")
    assert clip.config.mean == (0.1, 0.2, 0.3)
    assert_same(ours(clip), outputs_of_open_clip(theirs))
    again = CLIP.from_pretrained(clip.save_pretrained(tmp_path / "ours"))
    assert_same(ours(again), ours(clip), 1e-7)


@pytest.mark.parametrize("vision", [VIT, RESNET | {"image_size": 32}], ids=["vit", "resnet"])
def test_what_is_exported_to_open_clip_opens_there(vision, tmp_path):
    from ssl_clip.config import RECIPES
    from ssl_train.cli.main import main

    theirs = open_clip_folder(tmp_path / "theirs", of_open_clip(vision))
    run = CLIP.from_pretrained(tmp_path / "theirs").save_pretrained(tmp_path / "run")
    assert main(RECIPES, ["export", str(run), str(tmp_path / "out"), "--to", "open_clip"]) == 0
    back = open_clip.create_model(f"local-dir:{tmp_path / 'out'}").eval()
    assert_same(outputs_of_open_clip(back), outputs_of_open_clip(theirs), 1e-6)


def test_a_training_checkpoint_of_open_clip_loads_when_the_config_is_said(tmp_path):
    theirs = open_clip_folder(tmp_path / "theirs", of_open_clip(VIT))
    wrapped = {"epoch": 1, "state_dict": {f"module.{k}": v for k, v in theirs.state_dict().items()}}
    torch.save(wrapped, tmp_path / "epoch_1.pt")
    config = CLIP.from_pretrained(tmp_path / "theirs").config
    assert_same(ours(CLIP.from_pretrained(tmp_path / "epoch_1.pt", config=config)), outputs_of_open_clip(theirs))
    with pytest.raises(ConfigError, match="says nothing of its activation"):
        CLIP.from_pretrained(tmp_path / "epoch_1.pt")


@pytest.mark.parametrize(
    ("section", "key", "value"),
    [
        ("vision_cfg", "timm_model_name", "vit_base"),
        ("vision_cfg", "no_ln_pre", True),
        ("text_cfg", "no_causal_mask", True),
        ("text_cfg", "pool_type", "last"),
        ("multimodal_cfg", "layers", 2),
    ],
)
def test_a_model_of_open_clip_that_is_not_ours_is_named(section, key, value, tmp_path):
    config = of_open_clip(VIT)
    open_clip_folder(tmp_path / "theirs", config)
    config.setdefault(section, {})[key] = value
    (tmp_path / "theirs" / "open_clip_config.json").write_text(json.dumps({"model_cfg": config}))
    with pytest.raises(ConfigError, match=f"{key if section != 'multimodal_cfg' else section}.*use open_clip"):
        CLIP.from_pretrained(tmp_path / "theirs")


def test_epsilons_of_the_towers_that_differ_are_refused_and_a_resnet_has_that_of_the_text(tmp_path):
    text = {"norm_kwargs": {"eps": 1e-6}}
    with pytest.raises(ConfigError, match=r"norm_kwargs\.eps is 1e-05 in the image and 1e-06 in the text tower"):
        from_theirs(of_open_clip(VIT, text=text))
    assert from_theirs(of_open_clip(VIT | text, text=text)).layer_norm_eps == 1e-6
    assert from_theirs(of_open_clip(RESNET, text=text)).layer_norm_eps == 1e-6


def test_another_image_size_resamples_positions_and_channels_are_adapted(tmp_path):
    of_transformers("gelu", END).save_pretrained(tmp_path / "theirs")
    clip = CLIP.from_pretrained(tmp_path / "theirs", image_size=48, in_channels=1)
    grey = torch.randint(0, 256, (2, 1, 48, 48), dtype=torch.uint8)
    assert clip.encode_image(grey).shape == (2, 12)


def test_towers_of_different_activations_are_refused(tmp_path):
    of_transformers("gelu", END).save_pretrained(tmp_path / "theirs")
    values = json.loads((tmp_path / "theirs" / "config.json").read_text())
    values["text_config"]["hidden_act"] = "quick_gelu"
    (tmp_path / "theirs" / "config.json").write_text(json.dumps(values))
    with pytest.raises(ConfigError, match="hidden_act is 'gelu' in the image and 'quick_gelu' in the text tower"):
        CLIP.from_pretrained(tmp_path / "theirs")


def test_a_missing_tensor_is_named(tmp_path):
    theirs = of_transformers("gelu", END)
    theirs.save_pretrained(tmp_path / "theirs")
    state = {k: v.contiguous() for k, v in theirs.state_dict().items() if "text_projection" not in k}
    save_file(state, tmp_path / "theirs" / "model.safetensors")
    with pytest.raises(WeightsMismatch, match=r"missing: text_projection\.weight"):
        CLIP.from_pretrained(tmp_path / "theirs")


def test_presets_have_the_published_numbers_of_parameters():
    from ssl_clip.config import rn50, vit_b32

    for config, expected in ((vit_b32(), 151_277_313), (rn50(), 102_007_137)):
        with torch.device("meta"):
            assert sum(p.numel() for p in CLIP(config).parameters()) == expected
    assert CLIPConfig() == vit_b32()
