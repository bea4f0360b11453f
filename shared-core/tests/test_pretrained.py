"""The mixin that reads and writes weights, with a small method of its own."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from ssl_core.config import ConfigError, ImageConfig, PosInterp, TrainConfig, from_dict
from ssl_core.hub import layout as layout_module
from ssl_core.hub.keymap import KeyMap
from ssl_core.hub.layout import Layout, WeightsMismatch
from ssl_core.hub.pretrained import Pretrained
from ssl_core.hub.resize import stem
from ssl_core.hub.weights_file import WeightsError, load_weights, save_weights


@dataclass(frozen=True, kw_only=True)
class ToyConfig(ImageConfig, TrainConfig):
    image_size: int | tuple[int, int] = 8
    patch_size: int = 4
    dim: int = 6
    pos_interp: PosInterp = "size"


def to_theirs(config: ToyConfig) -> dict[str, Any]:
    return {
        "model_type": "toy", "architectures": ["ToyModel"], "hidden_size": config.dim,
        "image_size": config.image_size, "num_channels": config.in_channels,
    }  # fmt: skip


def from_theirs(values: dict[str, Any], preprocessor: dict[str, Any]) -> ToyConfig:
    if values["model_type"] != "toy":
        raise ConfigError(f"model_type is {values['model_type']!r}: this reads 'toy'")
    names = {"hidden_size": "dim", "image_size": "image_size", "num_channels": "in_channels"}
    fields = {ours: values[theirs] for theirs, ours in names.items() if theirs in values}
    pixels = {name: preprocessor[f"image_{name}"] for name in ("mean", "std") if f"image_{name}" in preprocessor}
    return from_dict(ToyConfig, {**fields, **pixels})


def infer(state: dict[str, Tensor]) -> ToyConfig:
    if "stem.weight" not in state:
        raise ConfigError("the checkpoint is no toy")
    return ToyConfig(dim=state["stem.weight"].shape[0])


LAYOUT = Layout(
    keymap=KeyMap(
        rows=(("stem.{w}", "embeddings.{w}"),),
        also=(("stem.{w}", "conv.{w}"), ("stem.{w}", "stem.{w}"), ("queue", "queue")),
        drop=(r"pooler\..*",),
    ),
    to_theirs=to_theirs,
    from_theirs=from_theirs,
    infer=infer,
    resize=((r"stem\.weight", stem),),
)


class Toy(nn.Module, Pretrained):
    config_class = ToyConfig
    layout = f"{__name__}:LAYOUT"

    def __init__(self, config: ToyConfig) -> None:
        super().__init__()
        self.config = config
        self.stem = nn.Conv2d(config.in_channels, config.dim, config.patch_size)
        self.queue = nn.Parameter(torch.randn(3, config.dim))


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    return toy().save_pretrained(tmp_path / "saved")


def toy(**fields: Any) -> Toy:
    torch.manual_seed(0)
    return Toy(ToyConfig(**fields))


def equal(a: nn.Module, b: nn.Module) -> bool:
    return a.state_dict().keys() == b.state_dict().keys() and all(
        torch.equal(x, y) for x, y in zip(a.state_dict().values(), b.state_dict().values(), strict=True)
    )


def edit(folder: Path, **changes: Any) -> None:
    values = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**values, **changes}))


def reseal(folder: Path, name: str, state: dict[str, Tensor]) -> None:
    """Another weights file of that name, without sums: as somebody else's tool would leave it."""
    save_weights(folder / name, state)
    (folder / "SHA256SUMS").unlink(missing_ok=True)


def test_what_is_saved_loads_again_bit_for_bit_in_eval_mode(saved):
    loaded = Toy.from_pretrained(saved)
    assert equal(loaded, toy())
    assert loaded.config == ToyConfig()
    assert not loaded.training


def test_a_folder_holds_their_layout_and_what_it_has_no_place_for_apart(saved):
    assert sorted(path.name for path in saved.iterdir()) == [
        "SHA256SUMS", "config.json", "heads.safetensors", "model.safetensors", "preprocessor_config.json",
    ]  # fmt: skip
    assert sorted(load_weights(saved / "model.safetensors")) == ["embeddings.bias", "embeddings.weight"]
    assert list(load_weights(saved / "heads.safetensors")) == ["queue"]
    values = json.loads((saved / "config.json").read_text())
    assert values["ssl_core"]["config"]["dim"] == values["hidden_size"] == 6
    assert values["ssl_core"]["method"].endswith(":Toy")


def test_the_preprocessor_says_what_an_evaluation_does(tmp_path):
    config = dict(image_size=(8, 12), crop_pct=0.8, in_channels=1, mean=(0.3,), std=(0.2,))
    folder = toy(**config).save_pretrained(tmp_path)
    values = json.loads((folder / "preprocessor_config.json").read_text())
    assert values["size"] == {"shortest_edge": 10}
    assert values["crop_size"] == {"height": 8, "width": 12}
    assert (values["image_mean"], values["image_std"]) == ([0.3], [0.2])
    assert values["do_convert_rgb"] is False


def test_saving_again_replaces_the_folder_and_keeps_what_else_is_there(saved):
    (saved / "metrics.jsonl").write_text("{}")
    network = toy(dim=4)
    network.save_pretrained(saved)
    assert equal(Toy.from_pretrained(saved), network)
    assert (saved / "metrics.jsonl").exists()


def test_a_failed_save_leaves_the_old_folder(saved, monkeypatch):
    def full(*_: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr("ssl_core.hub.weights_file.write_sums", full)
    with pytest.raises(OSError, match="disk full"):
        toy(dim=4).save_pretrained(saved)
    assert equal(Toy.from_pretrained(saved), toy())
    assert not [path for path in saved.iterdir() if path.name.startswith(".")]


def test_the_weights_file_of_a_folder_stands_for_the_folder(saved):
    assert equal(Toy.from_pretrained(saved / "model.safetensors"), toy())


def test_dtype_and_device_are_those_asked_for(saved):
    loaded = Toy.from_pretrained(saved, dtype=torch.float16, device="cpu")
    assert {p.dtype for p in loaded.parameters()} == {torch.float16}
    assert torch.equal(loaded.stem.weight, toy().stem.weight.half())
    assert {p.device.type for p in Toy.from_pretrained(saved, device="meta").parameters()} == {"meta"}


def test_channels_adapt_the_stem_and_the_pixel_statistics(saved):
    grey = Toy.from_pretrained(saved, in_channels=1)
    assert torch.equal(grey.stem.weight, toy().stem.weight.sum(1, keepdim=True))
    assert grey.config.mean == pytest.approx((sum(ToyConfig.mean) / 3,))
    assert grey.config.std == pytest.approx((sum(ToyConfig.std) / 3,))
    same = Toy.from_pretrained(saved, in_channels=3)
    assert same.config == ToyConfig()


def test_a_given_config_replaces_the_stored_one(saved):
    wanted = ToyConfig(epochs=3, mean=(0.5, 0.5, 0.5))
    assert Toy.from_pretrained(saved, config=wanted).config == wanted
    with pytest.raises(WeightsMismatch, match=r"shape: stem.weight: \(6, 3, 4, 4\) in the file, \(5, 3, 4, 4\)"):
        Toy.from_pretrained(saved, config=ToyConfig(dim=5))


@pytest.mark.parametrize("fields", [{"image_size": 9}, {"in_channels": -1}])
def test_an_impossible_adaptation_is_refused(saved, fields):
    with pytest.raises(ConfigError):
        Toy.from_pretrained(saved, **fields)


def test_missing_and_unused_tensors_are_listed_and_refused(saved):
    weights = load_weights(saved / "model.safetensors")
    reseal(saved, "model.safetensors", {"embeddings.weight": weights["embeddings.weight"], "extra": torch.zeros(1)})
    with pytest.raises(WeightsMismatch) as refused:
        Toy.from_pretrained(saved)
    message = str(refused.value)
    assert "missing: stem.bias" in message
    assert "unused: extra" in message
    assert "strict=False" in message


def test_without_strict_missing_tensors_keep_their_initialisation_and_a_warning_lists_them(saved):
    weights = load_weights(saved / "model.safetensors")
    reseal(saved, "model.safetensors", {"embeddings.weight": weights["embeddings.weight"], "extra": torch.zeros(1)})
    torch.manual_seed(5)
    with pytest.warns(UserWarning, match=r"missing: stem.bias; unused: extra"):
        loaded = Toy.from_pretrained(saved, strict=False)
    torch.manual_seed(5)
    assert torch.equal(loaded.stem.bias, Toy(ToyConfig()).stem.bias)
    assert torch.equal(loaded.stem.weight, toy().stem.weight)


@pytest.mark.parametrize("strict", [True, False])
def test_a_misshapen_tensor_is_refused_in_any_case(saved, strict):
    weights = load_weights(saved / "model.safetensors")
    reseal(saved, "model.safetensors", weights | {"embeddings.bias": torch.zeros(7)})
    with pytest.raises(WeightsMismatch, match=r"shape: stem.bias: \(7,\) in the file, \(6,\) in the network"):
        Toy.from_pretrained(saved, strict=strict)


def test_a_long_list_of_problems_is_cut(saved):
    weights = load_weights(saved / "model.safetensors")
    reseal(saved, "model.safetensors", weights | {f"extra.{i}": torch.zeros(1) for i in range(30)})
    with pytest.raises(WeightsMismatch, match="… 10 more"):
        Toy.from_pretrained(saved)


def test_dropped_keys_and_other_spellings_load_without_a_word(saved):
    weights = load_weights(saved / "model.safetensors")
    renamed = {f"conv.{name.removeprefix('embeddings.')}": tensor for name, tensor in weights.items()}
    reseal(saved, "model.safetensors", renamed | {"pooler.dense.weight": torch.zeros(2)})
    assert equal(Toy.from_pretrained(saved), toy())


def test_their_folder_without_our_section_loads(saved):
    values = json.loads((saved / "config.json").read_text())
    del values["ssl_core"]
    (saved / "config.json").write_text(json.dumps(values))
    (saved / "SHA256SUMS").unlink()
    (saved / "preprocessor_config.json").write_text(json.dumps({"image_mean": [0.1, 0.2, 0.3]}))
    loaded = Toy.from_pretrained(saved)
    assert equal(loaded, toy())
    assert loaded.config == ToyConfig(mean=(0.1, 0.2, 0.3))
    for changes, message in (
        ({"model_type": "bert"}, r"config\.json: model_type is 'bert': this reads 'toy'"),
        ({"hidden_size": "6"}, r"config\.json: dim = '6': expected int"),
    ):
        (saved / "config.json").write_text(json.dumps({**values, **changes}))
        with pytest.raises(ConfigError, match=message):
            Toy.from_pretrained(saved)


def test_a_folder_that_transformers_saved_again_loads(saved):
    values = json.loads((saved / "config.json").read_text())
    values |= {"transformers_version": "5.0", "initializer_range": 0.02, "architectures": ["ToyForPreTraining"]}
    del values["num_channels"]  # it may write what differs from its defaults alone
    (saved / "config.json").write_text(json.dumps(values))
    (saved / "preprocessor_config.json").write_text("{}")
    assert Toy.from_pretrained(saved).config == ToyConfig()


@pytest.mark.parametrize("name", ["config.json", "preprocessor_config.json"])
def test_a_changed_description_is_refused_and_told_how_to_go_on(saved, name):
    values = json.loads((saved / name).read_text())
    # Nothing else in the folder contradicts these.
    values.update(note="") if name.startswith("pre") else values["ssl_core"]["config"].update(base_lr=0.5)
    (saved / name).write_text(json.dumps(values))
    with pytest.raises(WeightsError, match=rf"{name} has changed since .* save the model anew or delete SHA256SUMS"):
        Toy.from_pretrained(saved)
    sums = (saved / "SHA256SUMS").read_text().splitlines(keepends=True)
    (saved / "SHA256SUMS").write_text("".join(line for line in sums if f"  {name}" not in line))
    assert equal(Toy.from_pretrained(saved), toy()), "what is not listed is not compared"
    (saved / "SHA256SUMS").unlink()
    assert equal(Toy.from_pretrained(saved), toy())


@pytest.mark.parametrize("listed", [True, False], ids=["edited by transformers", "without sums"])
@pytest.mark.parametrize(
    ("key", "value"), [("image_mean", [0.1, 0.2, 0.3]), ("size", {"shortest_edge": 12}), ("do_normalize", False)]
)
def test_an_edited_preprocessor_is_refused_with_the_difference(saved, key, value, listed):
    file = saved / "preprocessor_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {key: value}))
    if listed:
        edit(saved, transformers_version="5.0")  # then the sums of these two files are not compared
    else:
        (saved / "SHA256SUMS").unlink()
    with pytest.raises(ConfigError, match=rf"preprocessor_config\.json contradicts mean, std.*config\.json: {key}"):
        Toy.from_pretrained(saved)


def sharded(saved, **weight_map):
    """The folder with its model.safetensors in two files and an index."""
    state = load_weights(saved / "model.safetensors")
    (saved / "model.safetensors").unlink()
    (saved / "SHA256SUMS").unlink()
    where = {key: f"model-{i}.safetensors" for i, key in enumerate(state)}
    for key, tensor in state.items():
        save_weights(saved / where[key], {key: tensor})
    (saved / "model.safetensors.index.json").write_text(json.dumps({"weight_map": where | weight_map}))
    return list(where.values())


def test_a_model_in_several_files_loads_by_its_folder_or_its_index(saved):
    assert len(sharded(saved)) > 1
    for path in (saved, saved / "model.safetensors.index.json"):
        assert equal(Toy.from_pretrained(path), toy())


def test_a_shard_that_is_missing_or_holds_something_else_is_named(saved):
    first, second, *_ = sharded(saved)
    content = (saved / first).read_bytes()
    (saved / first).write_bytes((saved / second).read_bytes())
    with pytest.raises(WeightsError, match=rf"{first} lacks \w+\.\w+, which .*: get the folder again"):
        Toy.from_pretrained(saved)
    (saved / first).write_bytes(content[:-1])
    with pytest.raises(WeightsError, match="truncated"):
        Toy.from_pretrained(saved)
    (saved / first).unlink()
    with pytest.raises(WeightsError, match=rf"lacks {first}, which model\.safetensors\.index\.json names"):
        Toy.from_pretrained(saved)


@pytest.mark.parametrize("shard", ["../other.safetensors", "a.bin", 3, None])
def test_an_index_that_leads_elsewhere_is_refused(saved, shard):
    sharded(saved, other=shard)
    with pytest.raises(WeightsError, match=r"index\.json is damaged: it has 'other'"):
        Toy.from_pretrained(saved)


@pytest.mark.parametrize("content", [{}, {"weight_map": []}, {"weight_map": {}}])
def test_an_index_of_nothing_is_refused(saved, content):
    sharded(saved)
    (saved / "model.safetensors.index.json").write_text(json.dumps(content))
    with pytest.raises(WeightsError, match="has no weight_map"):
        Toy.from_pretrained(saved)


def test_a_sketch_has_config_and_architecture_and_reads_no_tensor(saved, monkeypatch):
    monkeypatch.setattr(layout_module, "load_weights", None)
    sketched = Toy.sketched(saved)
    assert sketched.config == ToyConfig() and sketched.stem.weight.is_meta
    assert sketched.architecture() == toy().architecture()


def test_a_given_config_serves_where_the_shapes_do_not_say_one(tmp_path):
    torch.save({"queue": toy().queue.detach()}, tmp_path / "odd.pth")
    with pytest.raises(ConfigError, match="no toy"):
        Toy.from_pretrained(tmp_path / "odd.pth")
    with pytest.warns(UserWarning, match="missing: stem"):
        loaded = Toy.from_pretrained(tmp_path / "odd.pth", config=ToyConfig(), strict=False)
    assert torch.equal(loaded.queue, toy().queue)


def test_a_config_that_contradicts_itself_is_refused_with_the_difference(saved):
    edit(saved, hidden_size=12)
    with pytest.raises(ConfigError, match=r"contradicts its own 'ssl_core' section: hidden_size: 12 → 6"):
        Toy.from_pretrained(saved)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model_type": "bert"}, "contradicts its own 'ssl_core' section: model_type: 'bert' → 'toy'"),
        ({"hidden_size": "6"}, "contradicts its own 'ssl_core' section: hidden_size: '6' → 6"),
        ({"ssl_core": 3}, "'ssl_core' holds no config"),
        ({"ssl_core": {"config": [], "written_by": {}}}, "'ssl_core' holds no config"),
        ({"ssl_core": {"config": {}}}, "'ssl_core' holds no config, or does not say who wrote it in 'written_by'"),
        ({"ssl_core": {"config": {"dmi": 6}, "written_by": {}}}, "no field 'dmi'; did you mean 'dim'"),
        (
            {"ssl_core": {"method": "ssl_other.net:Net", "config": {"dmi": 6}, "written_by": {}}},
            r"these are weights of ssl-other's Net \(ssl_other.net\), not of Toy: open them with it",
        ),
        ({"ssl_core": {"config": {"epochs": -1}, "written_by": {}}}, "epochs = -1: must be above 0"),
    ],
)
def test_a_bad_config_is_named_with_its_file(saved, changes, message):
    edit(saved, **changes)
    with pytest.raises(ConfigError, match=message) as refused:
        Toy.from_pretrained(saved)
    assert "config.json" in str(refused.value)


@pytest.mark.parametrize("text", ["", "{", "[1]", "nul", "[" * 100_000, "\xff"])
def test_a_config_that_is_no_json_object_is_refused(saved, text):
    (saved / "config.json").write_text(text, encoding="latin-1")
    with pytest.raises(ConfigError, match=r"config\.json"):
        Toy.from_pretrained(saved)


@pytest.mark.parametrize("dim", [10**7, 10**12, 10**18])
def test_a_config_that_asks_for_any_amount_of_memory_is_refused_before_it_is_taken(saved, dim):
    values = json.loads((saved / "config.json").read_text())
    (saved / "SHA256SUMS").unlink()
    values["hidden_size"] = values["ssl_core"]["config"]["dim"] = dim
    (saved / "config.json").write_text(json.dumps(values))
    shapes = rf"shape: stem.weight: \(6, 3, 4, 4\) in the file, \({dim}, 3, 4, 4\)"
    beyond_any_tensor = dim == 10**18
    error, words = (ConfigError, "no network") if beyond_any_tensor else (WeightsMismatch, shapes)
    with pytest.raises(error, match=words):
        Toy.from_pretrained(saved)


def test_a_damaged_weights_file_is_refused(saved):
    for name in ("model.safetensors", "heads.safetensors"):
        intact = (saved / name).read_bytes()
        (saved / name).write_bytes(intact[:-1] + bytes([intact[-1] ^ 1]))
        with pytest.raises(WeightsError, match=name):
            Toy.from_pretrained(saved)
        (saved / name).write_bytes(intact)
    assert equal(Toy.from_pretrained(saved), toy())


def test_a_folder_without_weights_lists_what_it_holds(saved, tmp_path):
    (saved / "model.safetensors").unlink()
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match=r"holds no model\.safetensors; it holds nothing"):
        Toy.from_pretrained(tmp_path / "empty")
    with pytest.raises(FileNotFoundError, match=r"holds no model\.safetensors; it holds .*config\.json"):
        Toy.from_pretrained(saved)


def test_an_authors_checkpoint_is_read_by_its_shapes(tmp_path):
    network = toy(dim=9)
    state = network.state_dict()
    for name, content in (("flat.pth", state), ("nested.pth", {"model": state, "epoch": 3})):
        torch.save(content, tmp_path / name)
        assert equal(Toy.from_pretrained(tmp_path / name), network)
    torch.save({"other": torch.zeros(1)}, tmp_path / "other.pth")
    with pytest.raises(ConfigError, match=r"other\.pth: the checkpoint is no toy"):
        Toy.from_pretrained(tmp_path / "other.pth")


@pytest.mark.parametrize(
    "content", [[1, 2], {"model": 3}, {"a": 1}, {1: torch.zeros(1)}, torch.zeros(2), {"model": [1]}]
)
def test_a_pickle_without_a_state_dict_is_refused(tmp_path, saved, content):
    torch.save(content, tmp_path / "x.pth")
    with pytest.raises(WeightsMismatch, match="holds no state dict, nor one under 'model'"):
        Toy.from_pretrained(tmp_path / "x.pth")
    (saved / "model.safetensors").unlink()
    torch.save(content, saved / "pytorch_model.bin")
    with pytest.raises(WeightsMismatch, match="holds no state dict"):
        Toy.from_pretrained(saved)


def test_timms_config_gives_the_pixel_statistics(saved):
    timm = {"architecture": "toy", "pretrained_cfg": {"mean": [0.5, 0.5, 0.5], "std": [0.4, 0.4, 0.4], "crop_pct": 0.9}}
    (saved / "config.json").write_text(json.dumps(timm))
    (saved / "SHA256SUMS").unlink()
    expected = ToyConfig(mean=(0.5,) * 3, std=(0.4,) * 3, crop_pct=0.9, pos_interp="antialias")
    assert Toy.from_pretrained(saved).config == expected
    (saved / "config.json").write_text(json.dumps({"architecture": "toy", **timm["pretrained_cfg"]}))
    assert Toy.from_pretrained(saved).config == expected, "as older versions of timm wrote it"
    (saved / "config.json").write_text(json.dumps({"architecture": "toy", "pretrained_cfg": {"mean": [0.5]}}))
    with pytest.raises(ConfigError, match="mean"):
        Toy.from_pretrained(saved)
    (saved / "config.json").write_text(json.dumps({"architecture": "toy", "pretrained_cfg": 7}))
    with pytest.raises(ConfigError, match="pretrained_cfg = 7: expected an object"):
        Toy.from_pretrained(saved)


def test_a_config_is_stored_whole(tmp_path):
    config = ToyConfig(image_size=(8, 16), betas=(0.8, 0.9), clip_grad=2.0, seed=2**40, precision="bf16")
    assert Toy.from_pretrained(Toy(config).save_pretrained(tmp_path)).config == config
    changed = {field.name for field in dataclasses.fields(config) if getattr(config, field.name) != field.default}
    assert changed >= {"image_size", "betas", "clip_grad", "seed", "precision"}


def test_a_method_without_a_layout_says_so(tmp_path):
    class Bare(nn.Module, Pretrained):
        pass

    with pytest.raises(TypeError, match="Bare has no weight layout"):
        Bare().save_pretrained(tmp_path)


def test_a_method_prints_its_parts_and_its_repr_every_layer():
    method = toy()
    first, *parts = str(method).splitlines()
    assert first == f"Toy for images {(method.config.in_channels, *method.config.size)}"
    total = sum(p.numel() for p in method.parameters())
    assert parts[-1].split() == ["all", f"{total:,}", "parameters"]
    assert [line.split()[0] for line in parts[:-1]] == [
        name for name, part in method.named_children() if list(part.parameters())
    ]
    assert repr(method) == nn.Module.__repr__(method) != str(method)
