"""A model goes to the Hub and comes back; the Hub is a server on 127.0.0.1."""

from __future__ import annotations

import pytest
import torch

from ssl_core.hub.transfer import HubError
from ssl_mae import MAE, MAEConfig
from ssl_mae.config import RECIPES
from ssl_train.cli.main import main

pytest_plugins = ["ssl_testing.fixtures"]

IMAGES = torch.randint(0, 256, (2, 3, 16, 16), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def mae() -> MAE:
    torch.manual_seed(0)
    return MAE(
        MAEConfig(
            image_size=16, patch_size=4, dim=16, depth=2, heads=2,
            decoder_dim=8, decoder_depth=1, decoder_heads=2, epochs=1, warmup_epochs=0, batch_size=4,
        )
    ).eval()  # fmt: skip


def test_a_pushed_model_comes_back_bit_for_bit(hub, mae):
    name = f"{hub.user}/my-mae"
    url = mae.push_to_hub(name, token=hub.token, license="cc-by-nc-4.0")
    assert f"/{name}/commit/" in url
    same = MAE.from_pretrained(name)
    assert same.config == mae.config
    assert torch.equal(same.encode(IMAGES), mae.encode(IMAGES))
    repo = hub.repos[name]
    card = repo.commits[repo.refs["main"]]["README.md"].decode()
    assert "license: cc-by-nc-4.0" in card
    assert f'from_pretrained("{name}")' in card


def test_a_revision_pins_the_weights(hub, mae):
    name = f"{hub.user}/my-mae"
    mae.push_to_hub(name, token=hub.token)
    first = mae.encode(IMAGES).clone()
    commit = hub.repos[name].refs["main"]
    with torch.no_grad():
        mae.encoder.cls_token.add_(1)
        mae.encoder.norm.bias.add_(1)
    mae.push_to_hub(name, token=hub.token)
    assert torch.equal(MAE.from_pretrained(name, revision=commit).encode(IMAGES), first)
    assert not torch.equal(MAE.from_pretrained(name).encode(IMAGES), first)


def test_the_command_pushes_a_run_and_reads_it_back(hub, mae, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("HF_TOKEN", hub.token)
    run, name = str(mae.save_pretrained(tmp_path / "run")), f"{hub.user}/from-a-run"
    assert main(RECIPES, ["push", run, name]) == 0
    assert f"/{name}/commit/" in capsys.readouterr().out
    assert main(RECIPES, ["info", name]) == 0
    assert main(RECIPES, ["push", run, name, "--dry-run"]) == 0
    assert "model.safetensors" in capsys.readouterr().out


def test_a_repository_that_does_not_exist_is_one_line_and_exit_code_2(hub, capsys):
    with pytest.raises(HubError):
        MAE.from_pretrained("nobody/nothing")
    assert main(RECIPES, ["embed", "nobody/nothing"]) == 2
    message = capsys.readouterr().err
    assert message.startswith("ssl-mae: ") and "nobody/nothing" in message and "Traceback" not in message


@pytest.mark.network
def test_the_published_checkpoint_reconstructs_like_transformers(tmp_path):
    """The real `facebook/vit-mae-base`: same prediction and loss as transformers on the same noise."""
    transformers = pytest.importorskip("transformers")
    theirs = transformers.ViTMAEForPreTraining.from_pretrained("facebook/vit-mae-base").eval()
    ours = MAE.from_pretrained("facebook/vit-mae-base", cache_dir=tmp_path)
    images, noise = torch.randn(2, 3, 224, 224), torch.rand(2, 196)
    with torch.no_grad():
        expected = theirs(pixel_values=images, noise=noise)
    result = ours.reconstruct(images, noise=noise)
    torch.testing.assert_close(result.pred, expected.logits, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(result.loss, expected.loss, atol=1e-5, rtol=1e-5)
