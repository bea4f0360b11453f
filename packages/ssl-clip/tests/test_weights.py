"""CLIP checkpoints of others that hold no config."""

from __future__ import annotations

import pytest
import torch

from ssl_clip import CLIP, CLIPConfig
from ssl_clip.convert_open_clip import to_theirs
from ssl_core.config import ConfigError
from ssl_core.hub.weights_file import save_weights

TEXT = {"text_dim": 32, "text_heads": 2, "text_depth": 1, "vocab_size": 50, "context_length": 8, "eos_token_id": 49}
RESNET = CLIPConfig(
    **TEXT, tower="resnet", stages=(1, 1, 1, 1), dim=8, heads=4, image_size=64, patch_size=32, embed_dim=16
)
VIT = CLIPConfig(**TEXT, dim=64, heads=1, depth=1, image_size=16, patch_size=8, embed_dim=16)


@pytest.mark.parametrize("config", [RESNET, VIT], ids=["resnet", "vit"])
@pytest.mark.parametrize("wrap", ["", "module.", "model.module._orig_mod."])
def test_a_bare_checkpoint_loads_with_its_config(tmp_path, config, wrap):
    torch.manual_seed(0)
    clip = CLIP(config).eval()
    tensors, *_ = to_theirs(clip.state_dict(), config)
    # what OpenAI's own state dict holds besides
    sizes = {name: torch.tensor(8) for name in ("input_resolution", "context_length", "vocab_size")}
    save_weights(tmp_path / "new.safetensors", {wrap + key: t.contiguous() for key, t in (tensors | sizes).items()})
    with pytest.raises(ConfigError, match="says nothing of its activation: give config="):
        CLIP.from_pretrained(tmp_path / "new.safetensors")
    with pytest.raises(ConfigError, match="says nothing of its activation"):
        CLIP.sketched(tmp_path / "new.safetensors")
    loaded = CLIP.from_pretrained(tmp_path / "new.safetensors", config=config)
    assert all(torch.equal(t, loaded.state_dict()[key]) for key, t in clip.state_dict().items())
