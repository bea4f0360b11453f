"""Folders of other versions: who wrote one, in which format, and how its fields are read today.

config.json has our section under `SECTION`: the method, its config, and `written_by`, which says of
each package that states fields of the config

    "ssl-mae": {"version": "0.4.0", "format": 3, "readable_from": 1,
                "defaults": {"1": {"mask_ratio": 0.75, …}, "2": {"registers": 0}}}

Each package counts its formats by itself, as it counts its versions, and its config classes state
in `FORMATS` what each format changed (`ssl_core.config.Format`). A folder of a later format says in
`readable_from` which formats' readers understand it: to them a field that they do not know means
nothing while it has the default that stands there, and nor does a tensor that they do not know.
Anything else is refused with the version to install. A checkpoint's state.json and a run's run.json
hold the same keys.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator, Mapping
from importlib.metadata import distributions
from typing import Any

from ssl_core.bounds import field_hints
from ssl_core.config import ConfigError, Format, from_dict

SECTION = "ssl_core"
"""our key in config.json"""


def written_by(cls: type) -> dict[str, dict[str, Any]]:
    """Package → version, format, the earliest format whose readers understand this one, and format
    → the fields that it introduced and their defaults, for a config class as it is now."""
    writers: dict[str, dict[str, Any]] = {}
    stated = {field.name: field.default for field in dataclasses.fields(cls)}
    # as JSON has them; a field without a default is in every folder
    unstated = json.loads(json.dumps({name: d for name, d in stated.items() if d is not dataclasses.MISSING}))
    for package, base, formats in _stated(cls):
        by = writers.setdefault(package, writer(package) | {"defaults": {}})
        by["format"] = max([by["format"], *formats])
        by["readable_from"] = max([by["readable_from"], *(n for n in formats if formats[n].breaks)])
        added = {name: (str(n), default) for n in formats for name, default in formats[n].added.items()}
        for name in filter(unstated.__contains__, field_hints(base)):  # a field is the first class's that has it
            number, default = added.get(name, ("1", unstated[name]))
            by["defaults"].setdefault(number, {})[name] = default
        unstated = {name: value for name, value in unstated.items() if name not in field_hints(base)}
    return writers


def writer(package: str, number: int = 1) -> dict[str, Any]:
    """Version and format of a package that reads no format but this; without a version for a method
    in a notebook or a script."""
    version = next((found.version for found in distributions(name=package)), None)
    return {"version": version, "format": number, "readable_from": number}


def own_config(section: Any, cls: type) -> tuple[Any, str]:
    """(config, `later`) of our section of config.json, or of a checkpoint's state.json, for the
    config class `cls`.

    Raises ConfigError for a damaged section, for a field or a value that `cls` does not have, and
    for what another version wrote and this one cannot read: the message says what to install.
    """
    now = written_by(cls)
    try:
        values, writers = {**section["config"]}, section["written_by"]
        install = later(writers, now)
        tables = [(package, fields) for package in writers for fields in writers[package].get("defaults", {}).values()]
        stated = {name: (package, default) for package, fields in tables for name, default in fields.items()}
    except (AttributeError, KeyError, TypeError) as error:
        raise ConfigError(f"{SECTION!r} holds no config, or does not say who wrote it in 'written_by'") from error
    for package, _, formats in _stated(cls):
        for number in (n for n in formats if package in writers and n > writers[package]["format"]):
            values = {formats[number].renamed.get(name, name): value for name, value in values.items()}
            values = {**formats[number].added, **values}

    module, _, method = str(section.get("method", "")).partition(":")
    other, mine = _package(module), cls.__name__.removesuffix("Config")
    # another method's fields are not left out
    for name in (stated.keys() & values.keys()) - {*(field_hints(cls) if method == mine else values)}:
        package, default = stated[name]
        if (value := values.pop(name)) != default:
            hint = install or _sentence(package, writers[package], "==")
            raise ConfigError(f"{name} = {value!r} is unknown in the version here: {hint}")
    try:
        return from_dict(cls, values), install
    except ConfigError as error:
        whose = f"these are weights of {other}'s {method} ({module}), not of {mine}"
        hint = install or (
            f"{whose}: open them with it, or read what its `export` writes" if method not in ("", mine) else ""
        )
        raise ConfigError(f"{error}; {hint}" if hint else str(error)) from error


def later(writers: Any, now: Mapping[str, Any]) -> str:
    """What to install, if a later format of one of the packages in `now` is among `writers`; else
    "". Raises ConfigError with the same words if it cannot be read here."""
    newer = {package: by for package, by in writers.items() if package in now and by["format"] > now[package]["format"]}
    sentence = next((_sentence(package, by) for package, by in newer.items()), "")
    if any(by["readable_from"] > now[package]["format"] for package, by in newer.items()):
        raise ConfigError(sentence)
    return sentence


def _stated(cls: type) -> Iterator[tuple[str, type, Mapping[int, Format]]]:
    """(package, class, its `FORMATS` in order) of a config class and its bases, these first."""
    for base in reversed(cls.__mro__):
        if dataclasses.is_dataclass(base):
            yield _package(base.__module__), base, dict(sorted(vars(base).get("FORMATS", {}).items()))


def _package(module: str) -> str:
    return module.partition(".")[0].replace("_", "-")


def _sentence(package: str, by: Mapping[str, Any], sign: str = ">=") -> str:
    version = by.get("version")
    install = f": pip install '{package}{sign}{version}'" if version else ""
    return f"written by {package} {version or 'of an unknown version'} (format {by['format']}){install}"
