"""The rule by which a method has learned, and what the scripts `learns*.py` share.

A figure counts as learned where its mean over three seeds is better than every baseline's by more than three times the
spread. With fewer seeds there is no verdict.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from ssl_core.config import from_dict, to_dict

SEEDS = 3


def flags(description: str | None, out: str) -> argparse.ArgumentParser:
    """--seeds, --set and --out, for a script to add its own to."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[*range(SEEDS)])
    parser.add_argument("--set", nargs="+", default=[], metavar="FIELD=JSON", help="settings other than the preset's")
    parser.add_argument("--out", type=Path, default=Path(out))
    return parser


def changed(config: Any, settings: Sequence[str]) -> Any:
    """`config` with the fields of --set."""
    fields = {key: json.loads(value) for key, value in (pair.split("=", 1) for pair in settings)}
    return from_dict(type(config), to_dict(config) | fields)


def once(file: Path, config: Any, run: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """What `run()` gave the first time, kept in `file` beside the config that it belongs to."""
    if file.exists():
        kept = json.loads(file.read_text())
        if kept["config"] != json.loads(json.dumps(to_dict(config))):
            raise SystemExit(f"{file} is of other settings: choose another --out, or remove it")
        return kept["figures"]
    figures = run()
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps({"config": to_dict(config), "figures": figures}, indent=1))
    return figures


def cell(values: Sequence[float], *, scale: float = 100.0, digits: int = 1) -> str:
    """Mean ± standard deviation over the seeds; in percent by default."""
    mean, spread = scale * statistics.mean(values), scale * statistics.pstdev(values)
    return f"{mean:.{digits}f} ± {spread:.{digits}f}"


def verdict(values: Sequence[float], baselines: Sequence[Sequence[float]]) -> str:
    """Whether the gate holds, `values` and each of `baselines` having a figure a seed, of which more is better."""
    margin = statistics.mean(values) - max(statistics.mean(baseline) for baseline in baselines)
    spread = max(statistics.pstdev(figures) for figures in (values, *baselines))
    if len(values) < SEEDS:
        return f"margin {margin:.3f}; no verdict, the gate asks for {SEEDS} seeds"
    return f"margin {margin:.3f}, spread {spread:.3f}: the gate {'holds' if margin > 3 * spread else 'DOES NOT HOLD'}"
