"""Settings are read strictly: what does not fit is an error that names the field."""

from __future__ import annotations

import copy
import json
import pickle
import re
import tracemalloc
from dataclasses import dataclass
from typing import Annotated, Literal

import numpy as np
import pytest
from annotated_types import Gt, Interval, MultipleOf

from ssl_core.bounds import Checked, Count, Jitter, Rate, Scale, Share, field_hints
from ssl_core.config import ConfigError, ImageConfig, TrainConfig, ViTConfig, differences, from_dict, to_dict
from ssl_core.errors import InputError, OutOfRange
from ssl_testing.faults import STRANGE, mutate_json
from ssl_testing.tiny import TinyConfig
from ssl_train.cli.config_file import read_file
from ssl_train.cli.main import bounds_in_words
from ssl_train.options import RunOptions


@dataclass(frozen=True, kw_only=True)
class Everything(ImageConfig, TrainConfig):
    name: str = "a"
    flag: bool = False
    kind: Literal["a", 1] = "a"
    size_or_none: int | None = None
    pair: tuple[int, float] = (1, 0.5)


@pytest.mark.parametrize(
    "config", [TrainConfig(), ImageConfig(), TinyConfig(image_size=(8, 12)), RunOptions(), Everything()]
)
def test_a_config_goes_to_json_and_back(config):
    values = json.loads(json.dumps(to_dict(config)))
    again = from_dict(type(config), values)
    assert again == config and to_dict(again) == to_dict(config)


def test_missing_fields_take_their_defaults():
    assert from_dict(TrainConfig, {"epochs": 3}) == TrainConfig(epochs=3.0)


def test_an_unknown_field_is_named_with_the_nearest_known_one():
    with pytest.raises(ConfigError, match="TrainConfig has no field 'epoch'; did you mean 'epochs'"):
        from_dict(TrainConfig, {"epoch": 3})
    with pytest.raises(ConfigError, match="TrainConfig has no field 'qqq'$"):
        from_dict(TrainConfig, {"qqq": 3})
    with pytest.raises(ConfigError, match="TrainConfig has no field 3"):
        from_dict(TrainConfig, {3: 3})


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("epochs", "3"), ("epochs", True), ("epochs", None), ("epochs", [3]), ("epochs", float("nan")),
        ("epochs", float("inf")), ("epochs", 10**400), ("batch_size", 3.0), ("batch_size", True), ("batch_size", 2**63),
        ("betas", [0.9]), ("betas", [0.9, 0.99, 0.999]), ("betas", [0.9, "x"]), ("betas", 0.9), ("precision", "fp64"),
        ("precision", ["fp32"]), ("kind", True), ("kind", "b"), ("flag", 1), ("name", 3), ("size_or_none", 1.5),
        ("pair", [1.5, 2]), ("image_size", [8, 8, 8]), ("mean", "abc"), ("mean", {"a": 1}),
    ],
)  # fmt: skip
def test_a_wrong_type_names_the_field(field, value):
    with pytest.raises(ConfigError, match=rf"^{field}(\[\d\])? = "):
        from_dict(Everything, {field: value})


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("epochs", 0), ("epochs", -1), ("batch_size", 0), ("base_lr", 0), ("min_lr", -1), ("weight_decay", -0.1),
        ("warmup_epochs", -1), ("warmup_epochs", 100), ("betas", [0.9, 1.0]), ("clip_grad", 0), ("seed", -1),
        ("image_size", 0), ("image_size", 100), ("image_size", [224, 100]), ("patch_size", 0), ("mean", [0.5]),
        ("std", [1, 1]), ("std", [0, 1, 1]), ("crop_pct", 0), ("crop_pct", 1.5), ("in_channels", 4),
    ],
)  # fmt: skip
def test_a_value_out_of_range_is_an_error(field, value):
    with pytest.raises(ConfigError, match=r" = .*: "):
        from_dict(Everything, {field: value})


@pytest.mark.parametrize("field", ["epochs", "base_lr", "min_lr", "weight_decay", "clip_grad", "crop_pct"])
@pytest.mark.parametrize("value", [float("inf"), float("nan")])
def test_numbers_that_are_not_finite_are_refused_however_they_come(field, value):
    with pytest.raises(ConfigError, match=f"^{field} = "):
        Everything(**{field: value})


@dataclass(frozen=True, kw_only=True)
class Views(Checked):
    scale: Scale = (0.2, 1.0)
    share: Share = 0.5
    shares: tuple[Share, ...] = ()
    jitter: Jitter = (0.4, 0.4, 0.4, 0.1)


@pytest.mark.parametrize(
    ("field", "value", "good", "said"),
    [
        ("scale", (0.0, 1.0), (1e-9, 1.0), "scale[0] = 0.0: must be above 0 and at most 1"),
        ("scale", (0.5, 0.4), (0.5, 0.5), "scale = (0.5, 0.4): must be rising"),
        ("scale", (0.5, 1.1), (1, 1), "scale[1] = 1.1: must be above 0 and at most 1"),
        ("share", -0.1, 0.0, "share = -0.1: must be at least 0 and at most 1"),
        ("share", 1.1, 1.0, "share = 1.1: must be at least 0 and at most 1"),
        ("shares", (0.5, 1.1), (0.0, 0.5, 1.0), "shares[1] = 1.1: must be at least 0 and at most 1"),
        ("jitter", (0.4, -0.1, 0.4, 0.1), (0.0,) * 4, "jitter[1] = -0.1: must be at least 0"),
        ("jitter", (0.4, 0.4, 0.4, 0.6), (2, 2, 2, 0.5), "jitter[3] = 0.6: must be at least 0 and at most 0.5"),
    ],
)
def test_ranges_that_views_share_are_checked_at_both_ends(field, value, good, said):
    assert getattr(Views(**{field: good}), field) == good
    with pytest.raises(OutOfRange, match=f"^{re.escape(said)}$"):
        Views(**{field: value})


@pytest.mark.parametrize(
    ("field", "value", "said"),
    [
        ("precision", "fp64", "precision = 'fp64': expected one of auto, fp32, bf16, fp16"),
        ("kind", True, "kind = True: expected one of a, 1"),
        ("kind", ["a"], "kind = ['a']: expected one of a, 1"),
        ("epochs", "3", "epochs = '3': expected float"),
        ("batch_size", 2.0, "batch_size = 2.0: expected int"),
        ("batch_size", True, "batch_size = True: expected int"),
        ("size_or_none", "x", "size_or_none = 'x': expected int or None"),
        ("clip_grad", 0, "clip_grad = 0: must be above 0"),
        ("image_size", 0, "image_size = 0: must be at least 1"),
        ("image_size", (8, 0), "image_size[1] = 0: must be at least 1"),
        ("image_size", (8, 8, 8), "image_size = (8, 8, 8): expected int or (int, int)"),
        ("mean", 0.5, "mean = 0.5: expected (float, ...)"),
        ("seed", 2**63, "seed = 9223372036854775808: must be below 2^63"),
    ],
)
def test_values_from_python_are_checked_as_those_from_json(field, value, said):
    with pytest.raises(ConfigError, match=f"^{re.escape(said)}$"):
        Everything(**{field: value})


@dataclass(frozen=True, kw_only=True)
class Narrow(ViTConfig):
    dim: Annotated[int, MultipleOf(4)] = 768
    heads: int = 12
    mlp_ratio: int = 4


@pytest.mark.parametrize(
    ("field", "value", "said"),
    [
        ("heads", 0, "heads = 0: must be at least 1"), ("mlp_ratio", 0, "mlp_ratio = 0: must be above 0"),
        ("mlp_ratio", 4.0, "mlp_ratio = 4.0: expected int"), ("dim", 0, "dim = 0: must be at least 1"),
        ("dim", 6, "dim = 6: must be a multiple of 4"), ("dim", 2**16 + 4, "dim = 65540: must be at least 1"),
    ],
)  # fmt: skip
def test_bounds_hold_in_a_subclass_that_states_a_default_or_a_type_alone(field, value, said):
    assert Narrow() and bounds_in_words(*field_hints(Narrow)["dim"]) == "a multiple of 4, at least 1 and at most 65,536"
    with pytest.raises(ConfigError, match=f"^{re.escape(said)}"):
        Narrow(**{field: value})


@pytest.mark.parametrize(
    ("hint", "said"),
    [
        (int | None, ""), (Literal["a", "b"], ""), (tuple[str, ...], ""), (Count | None, "at least 1"),
        (Rate, "at least 0 and below 1"), (tuple[Rate, Rate], "at least 0 and below 1"),
        (Literal["paper"] | tuple[Share, ...], "at least 0 and at most 1"),
        (Scale, "above 0 and at most 1, rising"), (Annotated[int, "a note", Gt(2**20)], "above 1,048,576"),
        (Annotated[int, Interval(ge=4, lt=64), MultipleOf(4)], "at least 4 and below 64 and a multiple of 4"),
    ],
)  # fmt: skip
def test_bounds_are_said_in_words(hint, said):
    assert bounds_in_words(hint) == said


@pytest.mark.parametrize(
    ("field", "value"), [("workers", -1), ("accumulate", 0), ("log_every", 0), ("checkpoint_minutes", -1.0)]
)
def test_options_out_of_range_are_errors(field, value):
    with pytest.raises(ConfigError, match=f"^{field} = {value}"):
        RunOptions(**{field: value})


def test_whole_numbers_and_lists_become_what_the_field_is():
    config = from_dict(Everything, {"epochs": 7, "betas": [0, 0.5], "mean": [0, 0, 1], "image_size": [224, 112]})
    assert config.epochs == 7.0 and type(config.epochs) is float
    assert config.betas == (0.0, 0.5) and config.mean == (0.0, 0.0, 1.0)
    assert config.image_size == (224, 112) == config.size and config.grid == (14, 7) and config.patches == 98


def test_the_learning_rate_grows_with_the_batch():
    assert TrainConfig(base_lr=1.5e-4, batch_size=4096).lr == pytest.approx(2.4e-3)


@pytest.mark.parametrize("cls", [TrainConfig, RunOptions, TinyConfig, Everything], ids=lambda cls: cls.__name__)
def test_a_thousand_damaged_jsons_raise_config_errors_alone_and_take_no_memory(cls, tmp_path):
    rng, outcomes = np.random.default_rng(0), {"refused": 0, "accepted": 0}
    text = json.dumps(to_dict(cls()))
    tracemalloc.start()
    for _ in range(1000):
        mutated = mutate_json(text, rng)
        try:
            values = json.loads(mutated)
        except ValueError:
            outcomes["refused"] += 1
            continue
        try:
            config = from_dict(cls, values)
        except ConfigError as error:
            outcomes["refused"] += 1
            assert len(str(error)) < 60_000
        else:
            outcomes["accepted"] += 1
            assert from_dict(cls, to_dict(config)) == config
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 64 * 2**20
    assert outcomes["refused"] > 500 and outcomes["accepted"] > 5, outcomes


@pytest.mark.parametrize("value", STRANGE, ids=lambda value: repr(value)[:20])
def test_a_strange_value_in_any_field_is_refused_or_valid(value):
    for cls in (TrainConfig, RunOptions, TinyConfig, Everything):
        for field in to_dict(cls()):
            try:
                config = from_dict(cls, {field: value})
            except ConfigError as error:
                assert str(error)
            else:
                assert from_dict(cls, to_dict(config)) == config
        with pytest.raises(ConfigError):
            from_dict(cls, {"fields": value})


@pytest.mark.parametrize("values", [None, [], [["epochs", 3]], "epochs", 3, True])
def test_what_is_no_object_is_refused(values):
    with pytest.raises(ConfigError, match="TrainConfig needs an object, got "):
        from_dict(TrainConfig, values)


def test_toml_and_json_files_are_read(tmp_path):
    (tmp_path / "a.toml").write_text('epochs = 3\nbetas = [0.9, 0.95]\nprecision = "fp32"\n')
    (tmp_path / "a.json").write_text('{"epochs": 3, "betas": [0.9, 0.95], "precision": "fp32"}')
    assert read_file(tmp_path / "a.toml") == read_file(tmp_path / "a.json")
    assert from_dict(TrainConfig, read_file(tmp_path / "a.toml")).betas == (0.9, 0.95)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.json", b"{"), ("a.json", b"[1]"), ("a.json", b"3"), ("a.json", b""), ("a.json", b"\xff\xfe{}"),
        ("a.json", b"[" * 100_000), ("a.json", b"1" * 5000), ("a.toml", b"epochs"), ("a.toml", b"\xff"),
        ("a.toml", b"a = " + b"[" * 5000), ("a.yaml", b"epochs: 3"), ("a", b"{}"), ("missing.json", None),
    ],
)  # fmt: skip
def test_a_file_that_cannot_be_read_is_named(name, content, tmp_path):
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(ConfigError, match=str(tmp_path / name)):
        read_file(tmp_path / name)
    assert issubclass(ConfigError, InputError)


def test_differences_name_every_field_that_changed():
    assert differences({"a": 1, "b": 2, "c": 3}, {"a": 1, "b": 5, "d": None}) == ["b: 2 → 5", "c: 3 → None"]
    assert differences({"a": [1]}, {"a": [1]}) == []


def test_a_name_that_is_no_field_is_an_error_with_the_nearest_ones():
    for wrong, offer in (("batch", "'batch_size'"), ("lr", "'base_lr' or 'min_lr'"), ("epoch", "'epochs'")):
        with pytest.raises(ConfigError, match=f"TrainConfig has no field '{wrong}'; did you mean {offer}?"):
            from_dict(TrainConfig, {wrong: 1})
    with pytest.raises(ConfigError, match="has no field 'colour'$"):
        from_dict(TrainConfig, {"colour": 1})


def test_a_config_prints_what_differs_from_its_defaults_on_a_screen():
    config = Everything(image_size=64, patch_size=8, name="b")
    assert str(config) == "Everything(\n    image_size=64, patch_size=8, name='b'\n)  # otherwise its defaults"
    every = TinyConfig(**{name: value for name, value in vars(TinyConfig()).items() if name != "mean"}, mean=(0.1,) * 3)
    assert eval(str(every), {"TinyConfig": TinyConfig}) == every
    assert eval(repr(config), {"Everything": Everything}) == config
    copied = copy.copy(pickle.loads(pickle.dumps(config)))
    assert copied == config and max(map(len, str(config).splitlines())) <= 96
