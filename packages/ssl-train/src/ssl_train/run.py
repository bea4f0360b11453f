"""A run folder, from an empty directory to published weights: what `ssl-* train` and a package's
`train` do."""

from __future__ import annotations

import json
import os
import platform
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from ssl_core import distributed
from ssl_core.config import TrainConfig, differences, from_dict, to_dict
from ssl_core.errors import InputError
from ssl_core.hub.weights_file import write_whole
from ssl_core.method import Recipe, load
from ssl_train.asked import Asked
from ssl_train.checkpoint import CheckpointError, bytes_needed
from ssl_train.cost import check_memory
from ssl_train.fit import fit
from ssl_train.opened import Opened
from ssl_train.options import RunOptions
from ssl_train.probe import Probe
from ssl_train.processes import barrier, broadcast_object, process_group


class RunError(InputError):
    """A run folder that cannot be used; the message says what to do."""


def train(
    recipe: Recipe,
    config: TrainConfig | Asked,
    *,
    data: str | Path | None,
    out: str | Path,
    init: str | Path | None = None,
    options: RunOptions = RunOptions(),  # noqa: B008 - frozen
) -> Any:
    """Train `recipe`'s method on `data` into the folder `out` and return it, in eval mode.

    If `out` already holds this run, it resumes from the last checkpoint and ends with the same
    bits; changed settings are refused. `init` is anything that `from_pretrained` reads. Raises
    RunError, ConfigError, DataError and what `fit` raises; Interrupted (exit code 75) after
    SIGTERM, saved.
    """
    with process_group():
        if isinstance(config, Asked):
            config = resumed(recipe, config, Path(out))
        return run(Opened.to_train(recipe, config, data=data, init=init, device=options.device), Path(out), options)


def resumed(recipe: Recipe, asked: Asked, out: Path) -> Asked:
    """What was asked, on the settings that the run in `out` was begun with if it chose any: a
    choice is made once."""
    record = out / "run.json"
    chooses = asked.preset is None or asked.minutes is not None or asked.max_steps is not None
    if not chooses or not record.exists():
        return asked
    stored = json.loads(record.read_text())
    if stored.get("method") != recipe.method:
        return asked
    return Asked(from_dict(load(recipe.config), stored["config"]), asked.typed)


def run(opened: Opened, out: Path, options: RunOptions) -> Any:
    """Train what was opened into the folder `out`, publish its weights there and return it in eval
    mode."""
    recipe, config, method, device = opened.recipe, opened.config, opened.method, opened.device
    transform, source = load(recipe.views)(config), opened.train
    if (check := getattr(transform, "check", None)) is not None:
        check(source)
    if not options.force:
        check_memory(recipe, method, device, parts=options.accumulate * distributed.world_size())
    with _locked(out):
        # The folder must be empty or hold this very run.
        run_id = open_run(out, identity_of(opened), facts_of(opened))

        # Get what the method needs besides its config, and see that there is room for checkpoints.
        if recipe.prepare is not None:
            load(recipe.prepare)(method, data=opened.data, init=opened.init, folder=out, options=options)
        method = method.to(device)
        check_space(out, bytes_needed(method))

        probe = Probe(source, load(recipe.eval_view)(config), device=device)
        where = {"run_id": run_id, "device": device, "options": options}
        bad = fit(method, source, transform, config, out, probe=probe, **where)
        if distributed.is_main():
            publish(method, out, bad)
        barrier()
    return method.eval()


def identity_of(opened: Opened) -> dict[str, Any]:
    """What makes a run this run: a run with another value of any of these is another one."""
    return {
        "method": opened.recipe.method,
        "config": to_dict(opened.config),
        "data": str(opened.data) if opened.data is not None else "built-in",
        "data_fingerprint": opened.raw("train").fingerprint(),
        "init": str(opened.init) if opened.init is not None else None,
    }


def facts_of(opened: Opened) -> dict[str, Any]:
    """What run.json says besides."""
    return {
        "device": str(opened.device),
        "parameters": sum(p.numel() for p in opened.method.parameters()),
        "can_collapse": getattr(opened.method, "can_collapse", False),
    }


def publish(method: Any, folder: Path, bad: dict[int, tuple[str, str]]) -> None:
    """Weights and the list of unreadable samples into the run folder. Raises CheckpointError when
    the disk fails."""
    file = folder / "bad_samples.json"
    listed = [{"name": name, "reason": reason} for name, reason in bad.values()]
    try:
        method.save_pretrained(folder)
        if file.exists():  # of this run, which was repeated or goes on
            listed = [*{row["name"]: row for row in (*json.loads(file.read_text()), *listed)}.values()]
        write_whole(file, lambda path: path.write_text(json.dumps(listed, indent=1)))
    except OSError as error:
        what = f"the weights could not be written to {folder} ({error}), the last checkpoint is there:"
        raise CheckpointError(f"{what} make room and repeat the command") from error


def open_run(folder: Path, identity: dict[str, Any], facts: dict[str, Any] | None = None) -> str:
    """The id of the run in `folder`: a new one for an empty folder, its own when the identity is
    the same.

    `facts` are noted in a new run's run.json and not compared. A run that ended before its first
    step, by an error in its settings, binds nobody to them.

    Raises RunError when the folder holds something else, or this run with other settings; the
    message shows which.
    """
    record = folder / "run.json"
    begun = (folder / "metrics.jsonl").exists() or any((folder / "checkpoints").glob("step-*"))
    own = (".lock", ".holder", ".run.json.tmp", "run.json", "checkpoints")
    foreign = sorted(p.name for p in folder.iterdir() if p.name not in own)
    if not record.exists() or not (begun or foreign):
        if foreign:
            raise RunError(f"{folder} is not empty and holds no run ({foreign[:5]} …): give another --out")
        run_id = broadcast_object(uuid.uuid4().hex[:12])
        barrier()
        if distributed.is_main():
            started = {
                **identity,
                **(facts or {}),
                "run_id": run_id,
                "created": datetime.now(UTC).isoformat(timespec="seconds"),
                "host": platform.node(),
                "versions": {name: version(name) for name in ("torch", "ssl-core")},
            }
            staged = folder / ".run.json.tmp"
            staged.write_text(json.dumps(started, indent=1))
            os.replace(staged, record)
        barrier()
        return run_id
    try:
        stored = json.loads(record.read_text())
        run_id, old = str(stored["run_id"]), {key: stored[key] for key in identity}
        old["config"] = dict(old["config"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise RunError(f"{record} is damaged ({error}): give another --out, or delete the folder") from error
    if same_file(old.get("data"), identity.get("data")):
        old["data"] = identity["data"]
    changed = differences(old.pop("config"), identity["config"]) + differences(
        old, {key: value for key, value in identity.items() if key != "config"}
    )
    if changed:
        shown = "\n  ".join(changed)
        raise RunError(
            f"{folder} holds a run with other settings:\n  {shown}\n"
            f"Repeat its command to go on with it, or give another --out (--init {folder} starts from its weights)"
        )
    return run_id


def same_file(old: Any, new: Any) -> bool:
    """Whether two names lead to one file or folder that is there."""
    if not isinstance(old, str) or not isinstance(new, str):
        return False
    return Path(old).exists() and Path(new).exists() and os.path.samefile(old, new)


def check_space(folder: Path, needed: int) -> None:
    """RunError when the disk has no room for two checkpoints of `needed` bytes, before anything is
    computed."""
    free = shutil.disk_usage(folder).free
    if free < 2 * needed:
        raise RunError(
            f"{folder} has {free:,} bytes free, two checkpoints need {2 * needed:,}: free some, or give another --out"
        )


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """The folder for this process alone (the main one of a process group)."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RunError(f"{folder} cannot be made: {error}") from error
    if not distributed.is_main():
        yield
        return
    path = folder / ".lock"
    lock = FileLock(path)
    try:
        lock.acquire(timeout=0)
    except Timeout as error:
        raise RunError(f"{folder} is in use by {_holder(folder)}: wait for it, or give another --out") from error
    try:
        (folder / ".holder").write_text(f"process {os.getpid()} on {platform.node()}")
        yield
    finally:
        (folder / ".holder").unlink(missing_ok=True)
        lock.release()


def _holder(folder: Path) -> str:
    try:
        return (folder / ".holder").read_text()
    except OSError:
        return "another process"
