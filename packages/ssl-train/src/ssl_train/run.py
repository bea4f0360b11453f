"""A run folder, from an empty directory to published weights: what `ssl-* train` and a package's
`train` do."""

from __future__ import annotations

import json
import multiprocessing
import os
import platform
import shutil
import uuid
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout
from safetensors import SafetensorError

from ssl_core import distributed
from ssl_core.config import ConfigError, TrainConfig, differences, to_dict
from ssl_core.errors import DataError, InputError
from ssl_core.hub.format import own_config, written_by
from ssl_core.hub.weights_file import write_whole
from ssl_core.method import Recipe, load
from ssl_train.asked import GIVEN, Asked, is_given
from ssl_train.auto import table
from ssl_train.checkpoint import CheckpointError, bytes_needed, free_bytes, rescue
from ssl_train.cost import check_memory
from ssl_train.data.loader import ONE_COLOUR
from ssl_train.data.split import SEEN
from ssl_train.data_files import RECORD, check_files, files_of
from ssl_train.fit import fit
from ssl_train.log import note
from ssl_train.opened import Opened
from ssl_train.options import RunOptions
from ssl_train.probe import Probe
from ssl_train.processes import by_main, gather_objects, process_group

OWN = (".holder", ".run.json.tmp", "run.json", RECORD, SEEN, "checkpoints", ".lock")
"""What a run folder holds before the first step."""
PREPARED = ("data", ".data.part")
"""Folders in it where a recipe makes raw data ready, whole and while it is at work."""


class RunError(InputError):
    """A run folder that cannot be used; the message says what to do."""


def train(recipe: Recipe, config: TrainConfig | Asked, **where: Any) -> Any:
    """The method that `trained` makes of the same arguments, in eval mode."""
    return trained(recipe, config, **where).method


def trained(
    recipe: Recipe,
    config: TrainConfig | Asked,
    *,
    data: Any,
    out: str | Path,
    init: str | Path | None = None,
    held_out: float | None = None,
    group: str | None = None,
    options: RunOptions = RunOptions(),  # noqa: B008 - frozen
) -> Opened:
    """Train `recipe`'s method on `data` into the folder `out`; the method, in eval mode, and its
    data.

    If `out` already holds this run, it resumes from the last checkpoint and ends with the same
    bits; changed settings are refused. `init` is anything that `from_pretrained` reads. `held_out`
    is the share that is held out of data without a test part: by default that of the run in `out`,
    for a new one a fifth, or nothing of data without labels. `group` is a column of a table of
    pictures: those with the same cell are all trained on, or all held out.

    Raises RunError, ConfigError, DataError and what `fit` raises; Interrupted (exit code 75) after
    SIGTERM, saved.
    """
    # Processes that do not start as copies of this one would have to import the class of a Dataset,
    # which a notebook or a script has in __main__.
    if options.workers is None and is_given(data) and multiprocessing.get_start_method() != "fork":
        warnings.warn("data given in Python are read without loader processes: workers=2 tries them", stacklevel=3)
        options = replace(options, workers=0)
    with process_group():
        if isinstance(config, Asked):
            config = resumed(recipe, config, Path(out))
        where = {"data": data, "init": init, "device": options.device, "out": Path(out)}
        opened = Opened.to_train(recipe, config, **where, **split_of(Path(out), held_out, group))
        opened.raw("train")  # how the data are divided is known once they are open
        for line in filter(None, (table(opened.choices), opened.division)) if distributed.is_main() else ():
            note(line)
        run(opened, Path(out), options)
        return opened


def resumed(recipe: Recipe, asked: Asked, out: Path) -> Asked:
    """What was asked, on the settings that the run in `out` was begun with if it chose any: a
    choice is made once."""
    if asked.preset is not None and asked.minutes is None and asked.max_steps is None:
        return asked
    stored = begun(out)
    try:
        begun_with = own_config(stored, load(recipe.config))[0] if stored["method"] == recipe.method else None
    except (ValueError, KeyError, TypeError, ConfigError):  # `open_run` will tell
        return asked
    return asked if begun_with is None else Asked(begun_with, asked.typed)


def split_of(out: Path, held_out: float | None, group: str | None) -> dict[str, Any]:
    """The share to hold out and the column by which: as given, else those of the run in `out`; None
    for a new run."""
    stored = begun(out) if held_out is None or group is None else {}
    group = stored.get("split", {}).get("group") if group is None else group
    return {"held_out": stored.get("held_out") if held_out is None else held_out, "group": group}


def begun(out: Path) -> dict[str, Any]:
    """run.json of the run in `out`, at which the main process looks; empty where there is none to
    be read, of which `open_run` will tell."""

    def read() -> dict[str, Any]:
        try:
            return dict(json.loads((out / "run.json").read_text("utf-8")))
        except (OSError, ValueError, TypeError):
            return {}

    return by_main(read)


def run(opened: Opened, out: Path, options: RunOptions) -> Any:
    """Train what was opened into the folder `out`, publish its weights there and return the method
    in eval mode."""
    recipe, config, method, device = opened.recipe, opened.config, opened.method, opened.device
    transform, source = load(recipe.views)(config), opened.train
    if (check := getattr(transform, "check", None)) is not None:
        check(source)
    if not options.force:
        check_memory(opened.cost, method, device, parts=options.accumulate * distributed.world_size())
    identity = identity_of(opened)
    check_ranks(identity)
    with _locked(out):
        # The folder must be empty or hold this very run, with the data that it began with.
        run_id = by_main(lambda: _opened_folder(opened, out, identity, verify=options.verify))

        # Get what the method needs besides its config, and see that there is room for checkpoints.
        if recipe.prepare is not None:
            same = {"data": opened.data, "held_out": opened.held_out, "group": opened.group}
            load(recipe.prepare)(method, **same, init=opened.init, folder=out, options=options)
        method = method.to(device)
        by_main(lambda: check_space(out, bytes_needed(method)))

        probe = Probe(source, load(recipe.eval_view)(config), device=device)
        where = {"run_id": run_id, "device": device, "options": options}
        bad = fit(method, source, transform, config, out, probe=probe, **where)
        by_main(lambda: publish(method, out, bad))
        if blank := sum(reason == ONE_COLOUR for _, reason in bad.values()):
            what = f"{blank:,} of {len(source):,} pictures are {ONE_COLOUR}, and teach nothing"
            warnings.warn(f"{what}: {out / 'bad_samples.json'} names them", stacklevel=2)
    return method.eval()


def _opened_folder(opened: Opened, out: Path, identity: dict[str, Any], *, verify: bool) -> str:
    """The id of the run in `out`, which may be a new run, once its data files are known to be the
    same."""
    begun = has_begun(out)
    files = files_of(opened.raw("train"), opened.place)
    try:
        run_id = open_run(out, identity, facts_of(opened), config_class=type(opened.config))
    except RunError as error:
        if begun and (out / RECORD).exists():
            try:
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore")  # the run is refused anyway
                    check_files(out, files, begun=True, verify=verify)
            except DataError as which:
                raise RunError(f"{error}\n{which}") from error
        raise
    if opened.held_out is not None and not opened.division:
        what = f"held_out = {opened.held_out:g}: {opened.data_name} has a test part of its own,"
        raise DataError(f"{what} which is never trained on: leave --held-out out")
    keys = opened.trained.keys
    with _disk_errors(out):
        check_files(out, files, begun=begun, verify=verify)
        if keys is not None and not (begun and (out / SEEN).exists()):
            write_whole(out / SEEN, keys.tofile)
        # A kill may have left parts of files, which nothing reads.
        for left in (*out.glob(".saving-*"), *out.glob(".*.part")):
            shutil.rmtree(left) if left.is_dir() else left.unlink()
    return run_id


def check_ranks(identity: dict[str, Any]) -> None:
    """Raises RunError on all processes unless all of them have the same settings and data; the data
    may have another path on each machine."""
    found = gather_objects((platform.node(), {k: v for k, v in identity.items() if k not in ("data", "init")}))
    for rank, (host, other) in enumerate(found):
        if changed := differences(found[0][1], other):
            shown = "\n  ".join(changed)
            what = f"process {rank}, on {host}, has other settings or data than process 0, on {found[0][0]}:"
            raise RunError(f"{what}\n  {shown}\nStart all processes with the same command and the same data")


def identity_of(opened: Opened) -> dict[str, Any]:
    """What makes a run this run: if any of these values differs, it is another run."""
    return {
        "method": opened.recipe.method,
        "config": to_dict(opened.config),
        "data": opened.data_name,
        "data_fingerprint": opened.raw("train").fingerprint(),
        "held_out": opened.held_out,
        "init": str(opened.init) if opened.init is not None else None,
    }


def facts_of(opened: Opened) -> dict[str, Any]:
    """What run.json holds besides the identity."""
    return {
        "written_by": written_by(type(opened.config)),
        "device": str(opened.device),
        "parameters": sum(p.numel() for p in opened.method.parameters()),
        "can_collapse": getattr(opened.method, "can_collapse", False),
        "samples": len(opened.raw("train")),
        "split": {
            "rule": opened.division,
            "group": opened.group,
            "by": opened.trained.by,
            "start": opened.trained.start,
        },
    }


def publish(method: Any, folder: Path, bad: dict[int, tuple[str, str]]) -> None:
    """Write the weights and the list of bad samples, unreadable or of one colour, into the run
    folder.

    Raises CheckpointError if the disk fails. The weights are then written elsewhere if possible,
    and the message says where.
    """
    file = folder / "bad_samples.json"
    listed = [{"name": name, "reason": reason} for name, reason in bad.values()]
    try:
        if not (folder / "run.json").exists():  # else a new folder of this name would be made
            raise OSError(f"{folder} was moved or deleted")
        method.save_pretrained(folder)
        if file.exists():  # the run was repeated or resumed
            listed = [*{row["name"]: row for row in (*json.loads(file.read_text("utf-8")), *listed)}.values()]
        write_whole(file, lambda path: path.write_text(json.dumps(listed, indent=1), "utf-8"))
    except (OSError, SafetensorError) as error:
        place = rescue(folder, method.save_pretrained)
        saved = "" if place is None else f"The weights were saved in {place} instead. "
        what = f"the weights could not be written to {folder} ({error}), the last checkpoint is there. {saved}"
        raise CheckpointError(f"{what}Make room, or put the folder back, and repeat the command") from error


def has_begun(folder: Path) -> bool:
    """Whether the run in `folder` has taken a step, or at least begun to."""
    return (folder / "metrics.jsonl").exists() or any((folder / "checkpoints").glob("step-*"))


def open_run(
    folder: Path, identity: dict[str, Any], facts: dict[str, Any] | None = None, *, config_class: type | None = None
) -> str:
    """The id of the run in `folder`: a new id for an empty folder, the run's own if the identity is
    the same.

    `facts` are noted in a new run's run.json and not compared. If the run failed before its first
    step, you may change its settings and start again. A run of other versions of our packages is
    read as a `config_class`, and goes on with a warning. Call it on the main process alone.

    Raises RunError if the folder cannot be written, or holds something else, or a run that needs a
    later version, or this run with other settings; the message shows which.
    """
    writers = (facts or {}).get("written_by", {}).items()
    versions = {name: version(name) for name in ("torch", "ssl-train")} | {name: by["version"] for name, by in writers}
    record = folder / "run.json"
    with _disk_errors(folder):
        foreign = sorted(p.name for p in folder.iterdir() if p.name not in (*OWN, *PREPARED))
    if not record.exists() or not (has_begun(folder) or foreign):
        if foreign:
            raise RunError(f"{folder} is not empty and holds no run ({foreign[:5]} …): give another --out")
        run_id = uuid.uuid4().hex[:12]
        started = {
            **identity,
            **(facts or {}),
            "run_id": run_id,
            "created": datetime.now(UTC).isoformat(timespec="seconds"),
            "host": platform.node(),
            "versions": versions,
        }
        staged = folder / ".run.json.tmp"
        with _disk_errors(folder):
            staged.write_text(json.dumps(started, indent=1), "utf-8")
            os.replace(staged, record)
        return run_id
    try:
        stored = json.loads(record.read_text("utf-8"))
        run_id, old = str(stored["run_id"]), {key: stored[key] for key in identity}
        old["config"] = to_dict(own_config(stored, config_class)[0]) if config_class else dict(old["config"])
    except ConfigError as error:
        raise RunError(f"{record} cannot be read by the versions installed here: {error}") from error
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise RunError(f"{record} is damaged ({error}): give another --out, or delete the folder") from error
    if same_file(old.get("data"), identity.get("data")):
        old["data"] = identity["data"]
    changed = differences(old.pop("config"), identity["config"]) + differences(
        old, {key: value for key, value in identity.items() if key != "config"}
    )
    if changed:
        shown = "\n  ".join(changed)
        in_python = str(stored["data"]).endswith(GIVEN)
        again = "Call train in Python with the same data" if in_python else "Repeat its command"
        raise RunError(
            f"{folder} holds a run with other settings:\n  {shown}\n"
            f"{again} to go on with it, or give another --out (--init {folder} starts from its weights)"
        )
    if other := differences(stored.get("versions", {}), versions):
        bits = "it goes on, but will not end with the same bits. Install the old versions if that matters"
        warnings.warn(f"{folder} was begun with other versions ({'; '.join(other)}): {bits}", stacklevel=2)
    return run_id


def same_file(old: Any, new: Any) -> bool:
    """Whether two names lead to the same existing file or folder."""
    if not isinstance(old, str) or not isinstance(new, str):
        return False
    return Path(old).exists() and Path(new).exists() and os.path.samefile(old, new)


def check_space(folder: Path, needed: int) -> None:
    """Raises RunError unless the disk has room for two checkpoints of `needed` bytes, before
    anything is computed."""
    with _disk_errors(folder):
        free = shutil.disk_usage(folder).free
    if free < 2 * needed:
        raise RunError(
            f"{folder} has {free:,} bytes free, two checkpoints need {2 * needed:,}: free some, or give another --out"
        )


@contextmanager
def _disk_errors(folder: Path) -> Iterator[None]:
    """Context in which an error of the disk is a RunError that names the run folder."""
    try:
        yield
    except OSError as error:
        raise _unusable(folder, error) from error


def _unusable(folder: Path, error: OSError) -> RunError:
    what = f"the run folder {folder} cannot be used ({error}; {free_bytes(folder)})"
    return RunError(f"{what}: make room or mount it writable, or give another --out")


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Lock the folder for this process, or for the main one of a process group.

    The folder is made if need be. If the run fails before its first step, all that was made for it
    is removed again.
    """
    lock = FileLock(folder / ".lock")
    made = by_main(lambda: _lock(lock, folder))
    try:
        yield
    except BaseException:
        if distributed.is_main():
            _clear(folder, made)
        raise
    finally:
        if distributed.is_main():
            with suppress(OSError):  # the folder may be gone, or its disk
                (folder / ".holder").unlink(missing_ok=True)
            lock.release()


def _lock(lock: FileLock, folder: Path) -> list[Path]:
    """Take the lock; the folders that were made, the innermost first."""
    made = [place for place in (folder, *folder.parents) if not place.exists()]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock.acquire(timeout=0)
        (folder / ".holder").write_text(f"process {os.getpid()} on {platform.node()}", "utf-8")
    except Timeout as error:  # an OSError too
        raise RunError(f"{folder} is in use by {_holder(folder)}: wait for it, or give another --out") from error
    except OSError as error:
        if lock.is_locked:
            _clear(folder, made)
            lock.release()
        raise _unusable(folder, error) from error
    return made


def _clear(folder: Path, made: list[Path]) -> None:
    """Remove what was made for a run that has not begun, and the folders in `made`."""
    with suppress(OSError):  # the error that ended the run matters more, and the disk may be gone
        foreign = {path.name for path in folder.iterdir()} - {*OWN, *PREPARED}
        if has_begun(folder) or (foreign and (folder / "run.json").exists()):
            return
        for path in [folder / name for name in ((".holder", ".lock") if foreign else OWN)]:
            path.rmdir() if path.is_dir() else path.unlink(missing_ok=True)
        for place in made:
            place.rmdir()


def _holder(folder: Path) -> str:
    try:
        return (folder / ".holder").read_text("utf-8")
    except OSError:
        return "another process"
