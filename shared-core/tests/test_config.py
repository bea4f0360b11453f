"""Settings are read strictly: what does not fit is an error that names the field."""

from __future__ import annotations

import json
import re
import tracemalloc
from dataclasses import dataclass
from typing import Literal

import numpy as np
import pytest

from ssl_core.config import (
    ConfigError,
    ImageConfig,
    TrainConfig,
    check_jitter,
    check_scale,
    check_shares,
    differences,
    from_dict,
    to_dict,
)
from ssl_core.errors import InputError
from ssl_testing.faults import STRANGE, mutate_json
from ssl_testing.tiny import TinyConfig
from ssl_train.cli.config_file import read_file
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
    with pytest.raises(ConfigError, match=f"^{field} = "):
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


@pytest.mark.parametrize(
    ("check", "value", "good"),
    [
        (check_scale, (0.0, 1.0), (1e-9, 1.0)), (check_scale, (0.5, 0.4), (0.5, 0.5)), (check_scale, (0.5, 1.1), (1, 1)),
        (check_shares, -0.1, 0.0), (check_shares, 1.1, 1.0), (check_shares, (0.5, 1.1), (0.0, 0.5, 1.0)),
        (check_jitter, (0.4, -0.1, 0.4, 0.1), (0.0, 0.0, 0.0, 0.0)), (check_jitter, (0.4, 0.4, 0.4, 0.6), (2, 2, 2, 0.5)),
    ],
)  # fmt: skip
def test_ranges_that_views_share_are_checked_at_both_ends(check, value, good):
    check("field", good)
    with pytest.raises(ConfigError, match=re.escape(f"field = {value!r}: must ")):
        check("field", value)


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
