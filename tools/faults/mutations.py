"""Damage files at random: reading one must give our error, or the same result as before."""

from __future__ import annotations

import json
import shutil
import warnings
from collections import Counter
from pathlib import Path

import numpy as np
from tools.faults.table import Row

from ssl_core.config import ConfigError, from_dict, to_dict
from ssl_core.device import seed_step
from ssl_core.errors import InputError
from ssl_core.method import load
from ssl_testing.faults import mutate, mutate_json
from ssl_testing.state import differing, whole_state
from ssl_testing.trial import Trial
from ssl_train.checkpoint import Checkpoints
from ssl_train.optim import build_optimizer


def mutations(trial: Trial, place: Path, count: int, seed: int) -> list[Row]:
    """Damage the newest checkpoint, the published folder, and the settings as JSON."""
    ended = trial.replace(epochs=3 / 8, warmup_epochs=0.0).train(place / "run")
    assert ended.code == 0, ended
    rng = np.random.default_rng(seed)
    return [
        _checkpoints(trial, place, count // 4, rng),
        _published(trial, place, count, rng),
        _settings(trial, count // 2, rng),
    ]


def _checkpoints(trial: Trial, place: Path, count: int, rng: np.random.Generator) -> Row:
    run_id = json.loads((place / "run" / "run.json").read_text("utf-8"))["run_id"]
    method = load(trial.recipe.method)(trial.config)
    optimizer = build_optimizer(method, trial.config)
    good = {step: whole_state(place / "run" / "checkpoints" / f"step-{step:06d}") for step in (2, 3)}
    outcomes = Counter[str]()
    for _ in range(count):
        copy = _copy(place / "run" / "checkpoints", place / "checkpoints")
        mutate(_any_file(copy / "step-000003", rng), rng)
        with warnings.catch_warnings(record=True) as shown:
            warnings.simplefilter("always")
            step = Checkpoints(copy, run_id).restore(method, optimizer)
        state = {f"model: {name}": tensor for name, tensor in method.state_dict().items()}
        same = not differing(state, {name: good[step][name] for name in state})
        outcomes[f"went back to the one before: {step == 2}" if same and (step == 3) != bool(shown) else "wrong"] += 1
    return _row("a damaged checkpoint", trial, "named and passed over, never loaded", count, outcomes)


def _published(trial: Trial, place: Path, count: int, rng: np.random.Generator) -> Row:
    method_class, outcomes = load(trial.recipe.method), Counter[str]()
    seed_step(0)
    names = ("config.json", "model.safetensors", "preprocessor_config.json", "heads.safetensors", "SHA256SUMS")
    source = place / "published"
    source.mkdir()
    for name in names:
        if (place / "run" / name).exists():
            shutil.copy(place / "run" / name, source)
    whole = method_class.from_pretrained(source)
    for _ in range(count):
        copy = _copy(source, place / "damaged")
        mutate(_any_file(copy, rng), rng)
        try:
            loaded = method_class.from_pretrained(copy)
        except (InputError, FileNotFoundError) as error:
            outcomes[type(error).__name__] += 1
        except Exception as error:
            outcomes[f"wrong: {type(error).__name__}: {str(error)[:80]}"] += 1
        else:
            same_tensors = not differing(loaded.state_dict(), whole.state_dict())
            same = same_tensors and loaded.config == whole.config
            outcomes["the same method" if same else f"wrong: other {'settings' if same_tensors else 'tensors'}"] += 1
    return _row(
        "a damaged published folder", trial, "an error that names the file, or the same method", count, outcomes
    )


def _settings(trial: Trial, count: int, rng: np.random.Generator) -> Row:
    text, outcomes = json.dumps(to_dict(trial.config)), Counter[str]()
    for _ in range(count):
        try:
            from_dict(type(trial.config), json.loads(mutate_json(text, rng)))
        except ConfigError:
            outcomes["ConfigError"] += 1
        except json.JSONDecodeError:
            outcomes["no JSON"] += 1
        except Exception as error:
            outcomes[f"wrong: {type(error).__name__}"] += 1
        else:
            outcomes["valid"] += 1
    return _row("damaged settings", trial, "a ConfigError that names the field, or valid", count, outcomes)


def _row(fault: str, trial: Trial, promise: str, count: int, outcomes: Counter[str]) -> Row:
    wrong = sum(number for outcome, number in outcomes.items() if outcome.startswith("wrong"))
    shown = ", ".join(f"{outcome} {number}" for outcome, number in outcomes.most_common())
    return Row(f"{fault}, {trial.recipe.name}", promise, count, count - wrong, shown)


def _copy(source: Path, target: Path) -> Path:
    shutil.rmtree(target, ignore_errors=True)
    return Path(shutil.copytree(source, target))


def _any_file(folder: Path, rng: np.random.Generator) -> Path:
    files = sorted(folder.iterdir())
    return files[int(rng.integers(len(files)))]
