"""Folders of other formats: read where that is right, else refused with what to install.

Formats 2 and 3 are imitated here. A method of one package is written by one version and read by
another; between them fields are added and renamed, and defaults change.
"""

from __future__ import annotations

import json
from dataclasses import make_dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Literal

import pytest
import torch
from torch import nn

from ssl_core.config import ConfigError, Format, ImageConfig, TrainConfig, from_dict, to_dict
from ssl_core.hub import format as format_module
from ssl_core.hub.checkpoint import read_manifest
from ssl_core.hub.format import later, own_config, writer, written_by
from ssl_core.hub.keymap import KeyMap
from ssl_core.hub.layout import Layout, WeightsMismatch
from ssl_core.hub.pretrained import Pretrained
from ssl_core.hub.weights_file import load_weights, save_weights, sha256, sum_of

RELEASED = Path(__file__).parent / "formats"
"""A folder of each format of the core that was released, from the method below in its format 1,
with the weights 0, 1, 2, …"""

FIELDS: dict[int, list[tuple[str, type, Any]]] = {
    1: [("dim", int, 4), ("share", float, 0.75)],
    2: [("dim", int, 4), ("share", float, 0.75), ("registers", int, 0)],
    3: [("dim", int, 4), ("rate", float, 0.5), ("registers", int, 4)],
}
"""The config of three releases: 2 adds `registers`; 3 renames `share` and changes both defaults."""
TABLE = {2: Format(added={"registers": 0}), 3: Format(renamed={"share": "rate"}, added={"rate": 0.75})}
VERSIONS = {1: "0.1.0", 2: "0.2.0", 3: "0.4.0"}
SENTENCE = r"written by ssl-plain 0\.4\.0 \(format 3\): pip install 'ssl-plain>=0\.4\.0'"

LAYOUT = Layout(
    keymap=KeyMap(rows=(("stem.{w}", "embeddings.{w}"),)),
    to_theirs=lambda config: {"model_type": "plain", "hidden_size": config.dim},
    from_theirs=lambda values, preprocessor: None,
    infer=lambda state: None,
)


def release(number: int, monkeypatch, **changes: Any) -> Any:
    """The method as the release of that format has it, whose versions are then the installed ones;
    `changes` are of the table's entry for this format."""
    fields = [(name, kind, default) for name, kind, default in FIELDS[number]]
    table = {n: entry for n, entry in TABLE.items() if n <= number}
    if changes:
        table[number] = Format(**{**vars(table.get(number, Format())), **changes})
    bases, names = (ImageConfig, TrainConfig), {"FORMATS": table}
    config_class = make_dataclass("PlainConfig", fields, bases=bases, namespace=names, frozen=True, kw_only=True)
    config_class.__module__ = "ssl_plain.config"  # the namespace's own does not last from Python 3.12 on
    install(monkeypatch, number)

    class Plain(nn.Module, Pretrained):
        layout = f"{__name__}:LAYOUT"

        def __init__(self, config: Any) -> None:
            super().__init__()
            self.config = config
            self.stem = nn.Linear(3, config.dim)
            self.queue = nn.Parameter(torch.ones(2))

    Plain.config_class, Plain.__module__, Plain.__qualname__ = config_class, "ssl_plain.plain", "Plain"
    return Plain


def install(monkeypatch, number: int) -> None:
    found = SimpleNamespace(version=VERSIONS[number])
    monkeypatch.setattr(format_module, "distributions", lambda name: [found] if name == "ssl-plain" else [])


def written(method: Any, folder: Path, **fields: Any) -> Path:
    torch.manual_seed(0)
    return method(method.config_class(**fields)).save_pretrained(folder)


def section(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "config.json").read_text())["ssl_core"]


def edit(folder: Path, **changes: Any) -> None:
    """Change our section, or with a dotted name what lies deeper in it."""
    values = json.loads((folder / "config.json").read_text())
    for path, value in changes.items():
        *parents, last = path.split(".")
        place = values["ssl_core"]
        for name in parents:
            place = place[name]
        place[last] = value
    (folder / "config.json").write_text(json.dumps(values))
    (folder / "SHA256SUMS").unlink()


def test_a_folder_says_who_wrote_it_and_which_format_introduced_each_field(tmp_path, monkeypatch):
    by = section(written(release(3, monkeypatch), tmp_path))["written_by"]
    defaults = {"1": {"dim": 4}, "2": {"registers": 0}, "3": {"rate": 0.75}}
    assert by["ssl-plain"] == {"version": "0.4.0", "format": 3, "readable_from": 1, "defaults": defaults}
    assert by["ssl-core"]["format"] == by["ssl-core"]["readable_from"] == 1
    assert by["ssl-core"]["defaults"]["1"]["epochs"] == 100 and "dim" not in by["ssl-core"]["defaults"]["1"]


@pytest.mark.parametrize("reads", [1, 2, 3])
@pytest.mark.parametrize("folder", sorted(RELEASED.iterdir()), ids=lambda folder: folder.name)
def test_folders_of_every_released_format_of_the_core_load(folder, reads, monkeypatch):
    method = release(reads, monkeypatch).from_pretrained(folder)
    assert torch.equal(method.stem.weight, torch.arange(6.0).view(2, 3))
    assert torch.equal(method.queue, torch.arange(2.0))
    assert method.config == type(method.config)(dim=2, **({"rate": 0.75, "registers": 0} if reads == 3 else {}))


def test_todays_format_of_the_core_is_among_the_released(monkeypatch):
    today = written_by(release(1, monkeypatch).config_class)["ssl-core"]
    stored = section(RELEASED / f"core-{today['format']}")["written_by"]["ssl-core"]
    names = {number: set(fields) for number, fields in today["defaults"].items()}
    assert {number: set(fields) for number, fields in stored["defaults"].items()} == names


@pytest.mark.parametrize(
    ("wrote", "reads", "fields", "meant"),
    [
        (1, 1, {"share": 0.6}, {"share": 0.6}),
        (1, 2, {"share": 0.6}, {"share": 0.6, "registers": 0}),
        (1, 3, {"share": 0.6}, {"rate": 0.6, "registers": 0}),
        (1, 3, {}, {"rate": 0.75, "registers": 0}),
        (2, 1, {"share": 0.6}, {"share": 0.6}),
        (2, 2, {"registers": 2}, {"share": 0.75, "registers": 2}),
        (2, 3, {"registers": 2}, {"rate": 0.75, "registers": 2}),
        (3, 1, {"rate": 0.75, "registers": 0}, {"share": 0.75}),
        (3, 2, {"rate": 0.75, "registers": 4}, {"share": 0.75, "registers": 4}),
        (3, 3, {}, {"rate": 0.5, "registers": 4}),
    ],
)
def test_each_format_reads_what_each_other_one_wrote(wrote, reads, fields, meant, tmp_path, monkeypatch):
    folder = written(release(wrote, monkeypatch), tmp_path, dim=5, **fields)
    method = release(reads, monkeypatch).from_pretrained(folder)
    assert method.config == type(method.config)(dim=5, **meant)
    assert method.stem.weight.shape == (5, 3)


@pytest.mark.parametrize(
    ("wrote", "reads", "fields", "which"),
    [
        (2, 1, {"registers": 2}, r"registers = 2 .* 0\.2\.0 \(format 2\): pip install 'ssl-plain>=0\.2\.0'"),
        (3, 1, {"rate": 0.75}, f"registers = 4 .*{SENTENCE}"),
        (3, 1, {"registers": 0}, f"rate = 0.5 .*{SENTENCE}"),
        (3, 2, {"rate": 0.6}, f"rate = 0.6 .*{SENTENCE}"),
    ],
)
def test_a_later_field_that_means_something_is_refused_with_what_to_install(
    wrote, reads, fields, which, tmp_path, monkeypatch
):
    folder = written(release(wrote, monkeypatch), tmp_path, **fields)
    with pytest.raises(ConfigError, match=rf"config\.json: {which}"):
        release(reads, monkeypatch).from_pretrained(folder)
    with pytest.raises(ConfigError, match=rf"config\.json: {which}"):
        release(reads, monkeypatch).sketched(folder)


def test_a_format_that_breaks_is_refused_by_all_before_it(tmp_path, monkeypatch):
    fields = {"rate": 0.75, "registers": 0}
    folder = written(release(3, monkeypatch, breaks=True), tmp_path, **fields)
    for earlier in (1, 2):
        with pytest.raises(ConfigError, match=rf"config\.json: {SENTENCE}$"):
            release(earlier, monkeypatch).from_pretrained(folder)
    assert release(3, monkeypatch, breaks=True).from_pretrained(folder).config.registers == 0


def test_a_later_core_is_named_where_it_is_the_core_that_must_be_newer(tmp_path, monkeypatch):
    method = release(1, monkeypatch)
    with monkeypatch.context() as newer:
        newer.setattr(ImageConfig, "FORMATS", {2: Format(breaks=True)}, raising=False)
        found = SimpleNamespace(version="1.1.0")
        newer.setattr(format_module, "distributions", lambda name: [found])
        folder = written(method, tmp_path)
    with pytest.raises(ConfigError, match=r"written by ssl-core 1\.1\.0 \(format 2\): pip install 'ssl-core>=1\.1\.0'"):
        method.from_pretrained(folder)


def test_a_later_value_of_a_known_field_is_refused_with_what_to_install(tmp_path, monkeypatch):
    wide, narrow = Literal["cls", "mean", "gated"], Literal["cls", "mean"]
    with monkeypatch.context() as newer:
        newer.setitem(FIELDS, 2, [*FIELDS[1], ("pool", wide, "cls")])
        folder = written(release(2, newer, added={}), tmp_path, pool="gated")
    monkeypatch.setitem(FIELDS, 1, [*FIELDS[1], ("pool", narrow, "cls")])
    with pytest.raises(ConfigError, match=r"pool = 'gated': expected one of cls, mean; written by ssl-plain 0\.2\.0"):
        release(1, monkeypatch).from_pretrained(folder)


def test_a_removed_field_is_left_out_while_it_has_its_default(tmp_path, monkeypatch):
    folder = written(release(2, monkeypatch), tmp_path / "plain")
    other = written(release(2, monkeypatch), tmp_path / "other", registers=2)
    monkeypatch.setitem(FIELDS, 3, [("dim", int, 4), ("rate", float, 0.75)])
    later_release = release(3, monkeypatch)
    assert later_release.from_pretrained(folder).config == later_release.config_class()
    with pytest.raises(ConfigError, match=r"registers = 2 .* \(format 2\): pip install 'ssl-plain==0\.2\.0'"):
        later_release.from_pretrained(other)


def test_another_methods_fields_are_never_left_out(tmp_path, monkeypatch):
    folder = written(release(2, monkeypatch), tmp_path)
    edit(folder, method="ssl_plain.plain:Fancy")
    with pytest.raises(ConfigError, match="no field 'registers'.*written by ssl-plain"):
        release(1, monkeypatch).from_pretrained(folder)


def test_tensors_that_only_a_later_format_needs_are_left_out(tmp_path, monkeypatch):
    folder = written(release(2, monkeypatch), tmp_path)
    for name in ("model.safetensors", "heads.safetensors"):
        save_weights(folder / name, load_weights(folder / name) | {"age": torch.zeros(2)})
    (folder / "SHA256SUMS").unlink()
    earlier = release(1, monkeypatch).from_pretrained(folder)
    assert sorted(earlier.state_dict()) == ["queue", "stem.bias", "stem.weight"]
    with pytest.raises(WeightsMismatch, match="unused: age"):  # its own format vouches for no other
        release(2, monkeypatch).from_pretrained(folder)


def test_a_tensor_that_a_later_format_lacks_is_named_with_what_to_install(tmp_path, monkeypatch):
    folder = written(release(3, monkeypatch), tmp_path, rate=0.75, registers=0)
    (folder / "heads.safetensors").unlink()
    (folder / "SHA256SUMS").unlink()
    with pytest.raises(WeightsMismatch, match=rf"\({SENTENCE}\) does not fit Plain:\n  missing: queue"):
        release(1, monkeypatch).from_pretrained(folder)


def test_keys_for_transformers_may_change_in_a_later_format(tmp_path, monkeypatch):
    folder = written(release(2, monkeypatch), tmp_path)
    values = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(values | {"model_type": "plain_2"}))
    (folder / "preprocessor_config.json").write_text("{}")
    (folder / "SHA256SUMS").unlink()
    assert release(1, monkeypatch).from_pretrained(folder).config.dim == 4
    with pytest.raises(ConfigError, match="contradicts its own 'ssl_core' section: model_type"):
        release(2, monkeypatch).from_pretrained(folder)


def test_keys_of_a_later_section_that_are_unknown_here_are_left_alone(tmp_path, monkeypatch):
    folder = written(release(1, monkeypatch), tmp_path)
    edit(folder, more=1, **{"written_by.ssl-plain.more": [2], "written_by.ssl-other": writer("ssl-other", 7)})
    assert release(1, monkeypatch).from_pretrained(folder).config.dim == 4


@pytest.mark.parametrize("damage", [None, 3, [], "1", {"format": 1}, {"format": "1", "readable_from": 1}])
@pytest.mark.parametrize("place", ["written_by", "written_by.ssl-plain", "written_by.ssl-plain.defaults"])
def test_a_damaged_section_is_a_config_error(place, damage, tmp_path, monkeypatch):
    folder = written(release(2, monkeypatch), tmp_path)
    edit(folder, **{place: damage})
    with pytest.raises(
        ConfigError, match=r"config\.json: ('ssl_core' holds no config, or does not say|.*no field 'registers')"
    ):
        release(1, monkeypatch).from_pretrained(folder)


def test_what_users_type_stays_strict(monkeypatch):
    config_class = release(1, monkeypatch).config_class
    for unknown in ({"registers": 0}, {"rate": 0.75}):
        with pytest.raises(ConfigError, match="has no field"):
            from_dict(config_class, unknown)
    with pytest.raises(ConfigError, match="has no field 'share'"):
        from_dict(release(3, monkeypatch).config_class, {"share": 0.75})


def checkpoint(method: Any, folder: Path, **fields: Any) -> Path:
    """A checkpoint as the engine writes it, of a method of the installed version."""
    torch.manual_seed(0)
    network = method(method.config_class(**fields))
    folder.mkdir()
    save_weights(folder / "model.safetensors", network.state_dict())
    files = {"model.safetensors": {"sha256": sha256(folder / "model.safetensors")}}
    own = {"method": "ssl_plain.plain:Plain", "config": to_dict(network.config)}
    state = {**own, "written_by": written_by(method.config_class), "step": 3, "files": files}
    (folder / "state.json").write_text(json.dumps({**state, "sha256": sum_of(state)}))
    return folder


def test_checkpoints_are_read_as_folders_are(tmp_path, monkeypatch):
    early = checkpoint(release(1, monkeypatch), tmp_path / "step-000003", share=0.6)
    late = checkpoint(release(3, monkeypatch), tmp_path / "step-000004")
    assert read_manifest(late)["written_by"]["ssl-plain"]["format"] == 3
    assert release(3, monkeypatch).from_pretrained(early).config.rate == 0.6
    with pytest.raises(ConfigError, match=SENTENCE):
        release(1, monkeypatch).from_pretrained(late)


def test_versions_of_a_method_that_is_no_package_are_unknown(monkeypatch):
    method = release(2, monkeypatch)
    monkeypatch.setattr(format_module, "distributions", lambda name: [])
    stored = {
        "config": {"registers": 2},
        "method": "ssl_plain.plain:Plain",
        "written_by": written_by(method.config_class),
    }
    assert stored["written_by"]["ssl-plain"]["version"] is None
    with pytest.raises(ConfigError, match=r"written by ssl-plain of an unknown version \(format 2\)$"):
        own_config(stored, release(1, monkeypatch).config_class)


def test_later_names_nothing_where_the_formats_are_the_same(monkeypatch):
    now = written_by(release(2, monkeypatch).config_class)
    assert later(now, now) == ""
    assert later(now, {"ssl-other": writer("ssl-other")}) == ""
