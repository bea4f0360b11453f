"""The file of settings that `--config` names. Imports no torch."""

from __future__ import annotations

import json
import tomllib
from pathlib import Path
from typing import Any

from ssl_core.config import ConfigError


def read_file(path: str | Path) -> dict[str, Any]:
    """The values of a .toml or .json configuration file, or the settings of a run folder.

    Raises ConfigError when it is missing, is neither, does not parse, or holds something else than
    fields.
    """
    path = Path(path)
    if path.is_dir():
        return read_file(path / "run.json").get("config", {})
    parse = {".toml": tomllib.loads, ".json": json.loads}.get(path.suffix)
    if parse is None:
        raise ConfigError(f"{path}: a configuration file ends in .toml or .json")
    try:
        values = parse(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{path}: {error}") from error
    if not isinstance(values, dict):
        raise ConfigError(f"{path} holds {type(values).__name__}, not fields and their values")
    return values
