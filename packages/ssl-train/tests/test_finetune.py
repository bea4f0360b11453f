"""Fine-tuning: what is trained, by which rates, and that no other run is taken for this one."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from ssl_core.config import ImageConfig
from ssl_core.errors import DataError, InputError
from ssl_core.vit import ViT
from ssl_testing.tiny import Pictures, Tiny, TinyConfig
from ssl_train import finetune as protocol
from ssl_train.finetune import FineTune, FinetuneConfig, finetune
from ssl_train.options import RunOptions

IMAGES = ImageConfig(image_size=8, patch_size=4)
SHORT = FinetuneConfig(epochs=1, warmup_epochs=0, batch_size=8, precision="fp32")
OPTIONS = RunOptions(device="cpu", workers=0)


def vit(seed: int, dim: int = 12) -> ViT:
    torch.manual_seed(seed)
    return ViT(image_size=8, patch_size=4, dim=dim, depth=2, heads=2)


def labelled(number: int) -> Pictures:
    return Pictures(number, size=(10, 10))


def run(folder: Path, encoder: ViT, config: FinetuneConfig = SHORT) -> dict[str, float]:
    return finetune(encoder, IMAGES, labelled(32), labelled(16), config, folder, options=OPTIONS)


def test_rates_fall_by_layer_and_one_dimensional_tensors_do_not_decay():
    config = FinetuneConfig(layer_decay=0.5, weight_decay=0.05)
    model = FineTune(vit(0), 4, config, IMAGES)
    rates = {name: group for group in model.param_groups(config) for name, _ in group["params"]}
    assert rates["head.weight"]["lr_scale"] == 1 and rates["fc_norm.weight"]["lr_scale"] == 1
    assert rates["encoder.blocks.1.mlp.fc1.weight"]["lr_scale"] == 0.5
    assert rates["encoder.blocks.0.mlp.fc1.weight"]["lr_scale"] == 0.25
    assert rates["encoder.patch_embed.proj.weight"]["lr_scale"] == 0.125
    assert rates["encoder.pos_embed"]["weight_decay"] == 0 and rates["head.bias"]["weight_decay"] == 0
    assert rates["encoder.blocks.1.mlp.fc1.weight"]["weight_decay"] == 0.05
    assert {name for name, _ in model.named_parameters()} == set(rates)


def test_repeated_it_gives_its_figure_again_without_a_step(tmp_path, monkeypatch):
    scores = run(tmp_path, vit(0))
    assert 0 <= scores["top1"] <= 1 and 0 <= scores["mean_per_class"] <= 1
    monkeypatch.setattr(FineTune, "forward", lambda *_: pytest.fail("it was trained again"))
    assert run(tmp_path, vit(0)) == scores


def test_another_encoder_and_other_settings_are_other_runs_in_the_same_folder(tmp_path):
    longer = FinetuneConfig(epochs=2, warmup_epochs=0, batch_size=8, precision="fp32")
    for encoder, config in ((vit(0), SHORT), (vit(1), SHORT), (vit(0, dim=16), SHORT), (vit(0), longer)):
        run(tmp_path, encoder, config)
    records = [json.loads(file.read_text()) for file in tmp_path.glob("*/run.json")]
    assert len({record["weights"] for record in records}) == 3 and len(records) == 4
    assert sorted(record["config"]["epochs"] for record in records) == [1, 1, 1, 2]


def test_samples_without_a_label_are_refused(tmp_path):
    source = labelled(32)
    source.labels[3] = -1
    with pytest.raises(DataError, match="needs a label for every training sample"):
        finetune(vit(0), IMAGES, source, labelled(16), SHORT, tmp_path, options=OPTIONS)
    assert not list(tmp_path.iterdir())


def test_an_encoder_without_layers_is_refused():
    with pytest.raises(InputError, match="finetune is that of a ViT"):
        protocol.check_encoder(Tiny(TinyConfig()))
