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
from collections.abc import Iterator, Mapping
from importlib.metadata import distributions
from typing import Any

from ssl_core.config import ConfigError, Format, from_dict, to_dict

SECTION = "ssl_core"
"""our key in config.json"""
Writers = Mapping[str, Mapping[str, Any]]
"""package -> what `written_by` says of it"""


def written_by(cls: type) -> dict[str, dict[str, Any]]:
    """Package → version, format, the earliest format whose readers understand this one, and format
    → the fields that it introduced and their defaults, for a config class as it is now."""
    writers: dict[str, dict[str, Any]] = {}
    unstated = to_dict(cls())
    for package, base, formats in _stated(cls):
        by = writers.setdefault(package, writer(package) | {"defaults": {}})
        by["format"] = max([by["format"], *formats])
        by["readable_from"] = max([by["readable_from"], *(n for n in formats if formats[n].breaks)])
        added = {name: (str(n), default) for n in formats for name, default in formats[n].added.items()}
        for name in [field.name for field in dataclasses.fields(base) if field.name in unstated]:
            default = unstated.pop(name)  # a field belongs to the first class that has it
            number, default = added.get(name, ("1", default))
            by["defaults"].setdefault(number, {})[name] = default
    return writers


def writer(package: str, number: int = 1) -> dict[str, Any]:
    """Version and format of a package that reads no format but this."""
    installed = next(iter(distributions(name=package)), None)  # None: a method in a notebook or a script
    version = installed.version if installed else None
    return {"version": version, "format": number, "readable_from": number}


def own_config(section: Any, cls: type) -> tuple[Any, str]:
    """(config, `later`) of our section of config.json, or of a checkpoint's state.json, for the
    config class `cls`.

    Raises ConfigError for a damaged section, for a field or a value that `cls` does not have, and
    for what another version wrote and this one cannot read: the message says what to install.
    """
    if not isinstance(section, dict) or not isinstance(section.get("config"), dict):
        raise ConfigError(f"{SECTION!r} holds no config")
    values, writers = dict(section["config"]), section.get("written_by")
    try:
        install = later(writers, written_by(cls))
        tables = [(package, fields) for package in writers for fields in writers[package].get("defaults", {}).values()]
        stated = {name: (package, default) for package, fields in tables for name, default in fields.items()}
    except (AttributeError, KeyError, TypeError) as error:
        raise ConfigError(f"{SECTION!r} does not say who wrote it: written_by = {writers!r}") from error
    for package, _, formats in _stated(cls):
        for number in (n for n in formats if package in writers and n > writers[package]["format"]):
            values = {formats[number].renamed.get(name, name): value for name, value in values.items()}
            values = {**formats[number].added, **values}

    module, _, method = str(section.get("method", "")).partition(":")
    mine = cls.__name__.removesuffix("Config")
    if method == mine:  # else, a field is unknown because it is another method's
        for name in (stated.keys() & values.keys()) - {field.name for field in dataclasses.fields(cls)}:
            package, default = stated[name]
            if (value := values.pop(name)) != default:
                hint = install or _sentence(package, writers[package], "==")
                raise ConfigError(f"{name} = {value!r} is unknown in the version here: {hint}")
    try:
        return from_dict(cls, values), install
    except ConfigError as error:
        if install:
            raise ConfigError(f"{error}; {install}") from error
        if not method or method == mine:
            raise
        whose = f"these are weights of {_package(module)}'s {method}, not of {mine}"
        advice = f"`{_package(module)} export` writes layouts that others read"
        raise ConfigError(f"{error}; {whose}: {advice}") from error


def later(writers: Any, now: Mapping[str, Any]) -> str:
    """What to install, if a later format of one of the packages in `now` is among `writers`; else
    "". Raises ConfigError with the same words if it cannot be read here."""
    newer = [package for package in now if package in writers and writers[package]["format"] > now[package]["format"]]
    for package in newer:
        if writers[package]["readable_from"] > now[package]["format"]:
            raise ConfigError(_sentence(package, writers[package]))
    return _sentence(newer[0], writers[newer[0]]) if newer else ""


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
