"""Fine-tuning: what is trained, by which rates, that no other run is taken for this one, and that
the network says the classes of pictures when its folder is opened again."""

from __future__ import annotations

import csv
import json
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from ssl_core.batch_norm import BatchNorm
from ssl_core.config import BackboneConfig, ConfigError, TrainConfig
from ssl_core.encoder import ImageEncoder, build_encoder
from ssl_core.errors import InputError
from ssl_core.hub.encoders import encoder_layout
from ssl_core.hub.pretrained import Pretrained
from ssl_core.method import Recipe
from ssl_testing.tiny import RECIPES as TINY
from ssl_testing.tiny import Pictures, Tiny, TinyConfig, write_pictures
from ssl_train.classifier import Classifier, check_encoder
from ssl_train.cli.main import main
from ssl_train.data.split import Subset
from ssl_train.data.views import eval_view
from ssl_train.errors import EvaluationError
from ssl_train.finetune import FineTune, FinetuneConfig, compare, finetune, layer_of, settings
from ssl_train.optim import build_optimizer
from ssl_train.options import RunOptions

SHORT = FinetuneConfig(epochs=1, warmup_epochs=0, batch_size=8, precision="fp32")
OPTIONS = RunOptions(device="cpu", workers=0)
CLASSES = ("dark", "dim", "light", "bright")


@dataclass(frozen=True, kw_only=True)
class SmallConfig(BackboneConfig, TrainConfig):
    image_size: int | tuple[int, int] = 8
    patch_size: int = 4
    crop_pct: float = 1.0
    dim: int = 12
    depth: int = 2
    heads: int = 2
    width: int = 4


class Small(nn.Module, ImageEncoder, Pretrained):
    """A method that is nothing but its encoder."""

    config_class = SmallConfig
    layout = f"{__name__}:LAYOUT"

    def __init__(self, config: SmallConfig) -> None:
        super().__init__()
        self.config, self.encoder = config, build_encoder(config)


LAYOUT = encoder_layout(SmallConfig)
RECIPES = {
    "small": Recipe(
        name="small",
        package="ssl_small",
        config=f"{__name__}:SmallConfig",
        method=f"{__name__}:Small",
        views="",
        show="",
    )
}
RESNET = {"backbone": "resnet18", "small_stem": True}


def small(seed: int = 0, **changes: Any) -> Small:
    torch.manual_seed(seed)
    return Small(SmallConfig(**changes))


def network(seed: int = 0, **changes: Any) -> Classifier:
    torch.manual_seed(seed)
    return Classifier.of(small(seed, **changes), CLASSES)


def labelled(number: int) -> Pictures:
    return Pictures(number, size=(10, 10))


def run(folder: Path, of: Classifier, config: FinetuneConfig = SHORT) -> dict[str, float]:
    return finetune(of, labelled(32), labelled(16), config, folder, options=OPTIONS)


def compared(folder: Path, train: Any, test: Any, **changes: Any) -> dict[str, Any]:
    methods = {"pretrained": small(0, **changes), "random init": small(1, **changes)}
    empty = {"data": "d", "protocol": {}, "rows": []}
    return compare(empty, methods, (train, test), folder, epochs=1, options=OPTIONS)


def test_rates_of_a_vit_fall_by_layer_and_one_dimensional_tensors_do_not_decay():
    config = FinetuneConfig(layer_decay=0.5, weight_decay=0.05)
    model = FineTune(network(), config)
    rates = {name: group for group in model.param_groups(config) for name, _ in group["params"]}
    assert rates["head.weight"]["lr_scale"] == 1 and rates["fc_norm.weight"]["lr_scale"] == 1
    assert rates["encoder.blocks.1.mlp.fc1.weight"]["lr_scale"] == 0.5
    assert rates["encoder.blocks.0.mlp.fc1.weight"]["lr_scale"] == 0.25
    assert rates["encoder.patch_embed.proj.weight"]["lr_scale"] == 0.125
    assert rates["encoder.pos_embed"]["weight_decay"] == 0 and rates["head.bias"]["weight_decay"] == 0
    assert rates["encoder.blocks.1.mlp.fc1.weight"]["weight_decay"] == 0.05
    assert {name for name, _ in model.network.named_parameters()} == set(rates)


def test_beits_shared_table_of_positions_has_the_rate_of_the_head():
    assert layer_of("encoder.rel_pos_bias.relative_position_bias_table", 12) == layer_of("head.weight", 12) == 13
    assert layer_of("encoder.cls_token", 12) == 0


def test_a_resnet_has_simclrs_recipe():
    resnet = network(**RESNET)
    config = settings(resnet, 4096, None, pretrained=True)
    assert (config.optimizer, config.base_lr, config.momentum, config.epochs) == ("sgd", 0.05, 0.9, 60)
    assert config.weight_decay == config.warmup_epochs == config.mixup == config.smoothing == config.erase == 0
    assert settings(resnet, 4096, 7, pretrained=False) == replace(config, epochs=7), "from scratch it is the same"
    groups = build_optimizer(FineTune(resnet, config), config).param_groups
    assert {(group["nesterov"], group["weight_decay"], group["lr"]) for group in groups} == {(True, 0.0, config.lr)}


def test_a_vit_has_maes_recipe_and_one_rate_from_scratch():
    config = settings(network(), 80, None, pretrained=True)
    assert (config.epochs, config.warmup_epochs, config.layer_decay, config.batch_size) == (100, 5, 0.65, 8)
    assert settings(network(), 80, None, pretrained=False) == replace(config, layer_decay=1.0)


def test_every_weight_of_a_resnet_is_trained_and_its_statistics_are_those_of_the_labelled_data(tmp_path):
    resnet = network(**RESNET)
    before = {key: tensor.clone() for key, tensor in resnet.state_dict().items()}
    run(tmp_path, resnet, replace(settings(resnet, 64, 1, pretrained=True), precision="fp32"))
    after = resnet.state_dict()
    assert [key for key in after if torch.equal(after[key], before[key])] == []

    # torch's rule: a tenth of the batch's mean after the first step, and so on
    assert after["encoder.bn1.num_batches_tracked"] == 4
    norms = [module for module in resnet.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]
    assert norms and all(type(norm) is BatchNorm and norm.momentum == 0.1 for norm in norms)


def test_batch_norm_reads_the_batch_in_training_and_its_running_statistics_in_a_prediction():
    resnet = network(**RESNET)
    config = settings(resnet, 64, 1, pretrained=True)
    seen: list[Tensor] = []
    resnet.encoder.bn1.register_forward_hook(lambda norm, inputs, output: seen.append(output.detach().clone()))
    images = torch.randint(0, 256, (8, 3, 8, 8), dtype=torch.uint8)
    FineTune(resnet, config).train()({"views": [images], "label": torch.arange(8) % 4}, 0.0)
    assert seen[-1].mean((0, 2, 3)).abs().max() < 1e-5
    resnet.eval()
    whole, alone = resnet(images), torch.cat([resnet(image[None]) for image in images])
    torch.testing.assert_close(whole, alone, rtol=1e-4, atol=1e-5)


def test_micro_batches_are_for_networks_without_batch_norm():
    assert FineTune(network(), SHORT).accumulates and not FineTune(network(**RESNET), SHORT).accumulates


def test_repeated_it_gives_its_figure_and_weights_again_without_a_step(tmp_path, monkeypatch):
    first, again = network(), network()
    scores = run(tmp_path, first)
    assert 0 <= scores["top1"] <= 1 and 0 <= scores["mean_per_class"] <= 1 and scores["n"] == 16
    monkeypatch.setattr(FineTune, "forward", lambda *_: pytest.fail("it was trained again"))
    assert run(tmp_path, again) == scores
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), again.parameters(), strict=True))


def test_another_encoder_and_other_settings_are_other_runs_in_the_same_folder(tmp_path):
    longer = replace(SHORT, epochs=2)
    for of, config in ((network(0), SHORT), (network(1), SHORT), (network(0, dim=16), SHORT), (network(0), longer)):
        run(tmp_path, of, config)
    records = [json.loads(file.read_text()) for file in tmp_path.glob("*/run.json")]
    assert len({record["weights"] for record in records}) == 3 and len(records) == 4
    assert sorted(record["config"]["epochs"] for record in records) == [1, 1, 1, 2]


def test_the_figure_is_that_of_the_last_epoch_and_of_the_weights_that_are_saved(tmp_path):
    train, test = labelled(32), labelled(20)
    test.fingerprint = lambda: "other pictures"
    result = compared(tmp_path, train, test)
    saved = Classifier.from_pretrained(tmp_path / "finetuned")
    images = torch.stack([eval_view(saved.config.network)(test.load(i), None)["views"][0] for i in range(20)])
    right = (saved(images).argmax(1).numpy() == test.labels).mean()
    row = next(row for row in result["rows"] if row["features"] == "pretrained")
    assert row["finetune"] == pytest.approx(right)
    assert result["protocol"]["finetune"]["chosen"] == "the last epoch" and result["protocol"]["test"]["n"] == 20
    assert saved.config.classes == CLASSES


def test_samples_without_a_label_are_left_out(tmp_path):
    train, test = labelled(40), labelled(20)
    train.labels, test.labels = train.labels.copy(), test.labels.copy()
    train.labels[3], test.labels[5] = -1, -1
    result = compared(tmp_path, train, test)
    assert (result["protocol"]["train"]["n"], result["protocol"]["test"]["n"]) == (39, 19)


def test_test_data_that_are_the_training_data_or_have_other_classes_are_refused(tmp_path):
    with pytest.raises(EvaluationError, match="the same samples"):
        compared(tmp_path, labelled(32), labelled(32))
    other = labelled(16)
    other.classes = ["cat", "cow", "dog", "hen"]
    with pytest.raises(EvaluationError, match="a label does not mean the same"):
        compared(tmp_path, labelled(32), other)
    findings = labelled(32)
    findings.labels = np.eye(4, dtype=np.int64)[findings.labels]
    with pytest.raises(EvaluationError, match="one label a sample"):
        compared(tmp_path, findings, labelled(16))
    with pytest.raises(EvaluationError, match=r"labels \[2, 3\] of the test data have no training sample"):
        compared(tmp_path, Subset(labelled(32), np.flatnonzero(labelled(32).labels < 2)), labelled(16))
    assert not list(tmp_path.iterdir())


def test_a_method_without_a_vit_or_a_resnet_is_refused():
    with pytest.raises(InputError, match="that of a ViT or a ResNet, and Tiny has neither"):
        check_encoder(Tiny(TinyConfig()))


# ------------------------------------------------ the folder, and the classes of pictures


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Published weights in `run`, 64 pictures in four classes in `data`; the network fine-tuned on
    these is in run/finetuned."""
    place = tmp_path_factory.mktemp("tuned")
    small().save_pretrained(place / "run")
    write_pictures(place / "data", SmallConfig())
    line = ["evaluate", str(place / "run"), "--data", str(place / "data"), "--protocols", "finetune"]
    assert main(RECIPES, [*line, "--finetune-epochs", "2", "--device", "cpu", "--workers", "0"]) == 0
    return place


def test_a_fine_tuned_folder_opens_with_its_classes_and_can_be_published(folder, capsys):
    tuned = folder / "run" / "finetuned"
    model = Classifier.from_pretrained(tuned)
    assert model.config.classes == tuple(sorted(CLASSES)) and model.config.network == small().config
    assert json.loads((tuned / "preprocessor_config.json").read_text()) == small().preprocessor()
    assert main(RECIPES, ["push", str(tuned), "me/pictures", "--dry-run"]) == 0
    listed = capsys.readouterr().out
    assert all(name in listed for name in ("config.json", "model.safetensors", "SHA256SUMS", "evaluation.json"))
    card = (tuned / "README.md").read_text()
    assert "pipeline_tag: image-classification" in card and "library_name: timm" in card
    assert 'Classifier.from_pretrained("me/pictures")' in card and "ssl-small predict me/pictures" not in card
    assert "Classes: bright, dark, dim, light" in card and "| layer_decay | 0.65 |" in card
    assert main(RECIPES, ["info", str(tuned)]) == 0
    assert "4 classes: bright, dark, dim, light" in capsys.readouterr().out


def test_the_runs_own_card_has_the_fine_tuned_figure(folder):
    found = json.loads((folder / "run" / "evaluation.json").read_text())
    first = found["rows"][0]
    assert f"| pretrained | {100 * first['finetune']:.1f} (" in (folder / "run" / "README.md").read_text()
    own = json.loads((folder / "run" / "finetuned" / "evaluation.json").read_text())
    assert own["rows"][0] == {"features": "pretrained", "finetune": first["finetune"]}


@pytest.mark.parametrize("fields", [{}, {**RESNET, "small_stem": False, "width": 64}], ids=["vit", "resnet"])
def test_timm_opens_a_fine_tuned_folder_with_the_same_logits(fields, tmp_path):
    timm = pytest.importorskip("timm")
    ours = network(**fields, image_size=32).eval()
    with torch.no_grad():
        for parameter in ours.parameters():
            parameter += 0.02 * torch.randn_like(parameter)
    theirs = timm.create_model(f"local-dir:{ours.save_pretrained(tmp_path)}", pretrained=True).eval()
    images = torch.randn(2, 3, 32, 32)
    torch.testing.assert_close(theirs(images), ours(images), rtol=1e-4, atol=1e-4)
    assert theirs.pretrained_cfg["label_names"] == list(CLASSES)


def test_predict_takes_files_folders_pil_images_and_arrays(folder):
    model = Classifier.from_pretrained(folder / "run" / "finetuned")
    path = folder / "data" / "dark" / "000.png"
    [(name, row)] = model.predict(path).items()
    assert name == str(path) and sorted(label for label, _ in row) == sorted(CLASSES)
    shares = [share for _, share in row]
    assert shares == sorted(shares, reverse=True) and sum(shares) == pytest.approx(1)
    with Image.open(path) as picture:
        for image in (picture, np.asarray(picture)):
            assert list(model.predict(image).values()) == [row]
    below = model.predict([folder / "data" / "dark", path.parent.parent / "dim" / "001.png"], top=2)
    assert len(below) == 17 and all(len(row) == 2 for row in below.values())
    assert below[str(path)][0][0] == row[0][0]


def test_equal_probabilities_go_to_the_first_class(folder):
    model = Classifier.from_pretrained(folder / "run" / "finetuned")
    nn.init.zeros_(model.head.weight), nn.init.zeros_(model.head.bias)
    [row] = model.predict(folder / "data" / "dark" / "000.png").values()
    assert row == [(label, 0.25) for label in sorted(CLASSES)]


@pytest.mark.parametrize("name", ["run", "run/finetuned"])
def test_the_command_predicts_by_a_run_or_its_fine_tuned_folder(name, folder, tmp_path, capsys):
    line = ["predict", str(folder / name), str(folder / "data" / "dim"), str(folder / "data" / "dark" / "000.png")]
    assert main(RECIPES, [*line, "--top", "2", "--out", str(tmp_path / "x" / "found.csv"), "--device", "cpu"]) == 0
    out = capsys.readouterr().out.splitlines()
    assert len(out) == 18 and out[0].startswith(str(folder / "data" / "dim" / "001.png")) and out[0].count(" %") == 2
    rows = list(csv.reader((tmp_path / "x" / "found.csv").read_text().splitlines()))
    assert rows[0] == ["path", "rank", "class", "probability"] and len(rows) == 1 + 2 * 17
    assert f"{rows[1][2]} {100 * float(rows[1][3]):.1f} %" in out[0]


def test_a_run_that_was_not_fine_tuned_is_told_how(folder, tmp_path, capsys):
    small().save_pretrained(tmp_path / "my run")
    assert main(RECIPES, ["predict", str(tmp_path / "my run"), str(folder / "data")]) == 2
    told = capsys.readouterr().err
    assert told.count("\n") == 1
    assert f"ssl-small evaluate '{tmp_path}/my run' --data LABELLED --protocols finetune" in told


def test_a_picture_that_does_not_exist_is_named_and_an_unreadable_one_left_out(folder, tmp_path, capsys):
    assert main(RECIPES, ["predict", str(folder / "run"), "nowhere.png"]) == 2
    assert "nowhere.png: no such file or folder" in capsys.readouterr().err
    (tmp_path / "cut.png").write_bytes((folder / "data" / "dark" / "000.png").read_bytes()[:60])
    with pytest.warns(UserWarning, match="1 of 2 samples cannot be read and are left out: .*cut.png"):
        found = Classifier.from_pretrained(folder / "run" / "finetuned").predict(
            [tmp_path / "cut.png", folder / "data" / "dark" / "000.png"]
        )
    assert len(found) == 1


def test_the_command_leaves_out_pictures_of_more_pixels_than_it_was_told(folder, tmp_path, capsys):
    Image.new("RGB", (60, 60)).save(tmp_path / "large.png")
    pictures = [str(folder / "data" / "dark" / "000.png"), str(tmp_path / "large.png")]
    with pytest.warns(UserWarning, match="1 of 2 samples cannot be read and are left out: .*large.png"):
        line = ["predict", str(folder / "run"), *pictures, "--max-pixels", "3000", "--device", "cpu"]
        assert main(RECIPES, line) == 0
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()] == pictures[:1]


def test_the_other_of_two_kinds_of_weights_is_named(folder):
    with pytest.raises(ConfigError, match="weights of .*'s Small .*, not of Classifier"):
        Classifier.from_pretrained(folder / "run")
    with pytest.raises(ConfigError, match=r"weights of ssl-train's Classifier \(ssl_train.classifier\), not of Small"):
        Small.from_pretrained(folder / "run" / "finetuned")


@pytest.mark.parametrize("method", ["antigravity:geohash", "os:system", "ssl_train.run:train", "ssl_none.x:X", "", "a"])
def test_a_strangers_config_imports_nothing_but_methods(method, folder, tmp_path):
    values = json.loads((folder / "run" / "finetuned" / "config.json").read_text())
    values["ssl_core"]["config"]["method"] = method
    (tmp_path / "config.json").write_text(json.dumps(values))
    (tmp_path / "model.safetensors").write_bytes((folder / "run" / "finetuned" / "model.safetensors").read_bytes())
    with pytest.raises(ConfigError, match="is no method of these packages|install ssl-none to open it"):
        Classifier.from_pretrained(tmp_path)
    assert "antigravity" not in sys.modules


def test_weights_that_are_no_folder_need_a_place_for_the_network(folder, capsys):
    line = ["evaluate", str(folder / "run" / "model.safetensors"), "--data", str(folder / "data")]
    assert main(RECIPES, [*line, "--protocols", "finetune", "--device", "cpu"]) == 2
    assert "is no folder: give --out" in capsys.readouterr().err


def test_a_run_of_a_method_without_such_an_encoder_is_told_so(folder, tmp_path, capsys):
    Tiny(TinyConfig()).save_pretrained(tmp_path / "run")
    assert main(TINY, ["predict", str(tmp_path / "run"), str(folder / "data")]) == 2
    assert "that of a ViT or a ResNet, and Tiny has neither" in capsys.readouterr().err
