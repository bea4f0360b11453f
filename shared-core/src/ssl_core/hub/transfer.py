"""What surrounds every exchange with the Hub: errors in words, retries, names that are safe."""

from __future__ import annotations

import difflib
import json
import os
import re
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from ssl_core.errors import InputError

T = TypeVar("T")

PAUSES = (1.0, 4.0)  # seconds before the second and the third try
TIMEOUT = 10.0  # seconds for an answer about a repository
PASSING = (408, 412, 429, 500, 502, 503, 504)  # HTTP statuses after which a retry may help
LEAVING = {
    r"[\x00-\x1f\x7f]": "it has a control character",
    r"\\": "it has a backslash, which separates folders under Windows",
    r"\A(/|[A-Za-z]:)": "it is an absolute path",
    r"(\A|/)\.{0,2}(/|\Z)": "it points out of its folder",
}
"""Patterns of file names that could point out of the folder they are written to, and why."""
DEVICES = re.compile(r"(con|prn|aux|nul|conin\$|conout\$|(com|lpt)[0-9¹²³]) *(\..*)?", re.I)


class HubError(InputError, RuntimeError):
    """The Hub, or the cache of what came from it, cannot give or take a model.

    `passing` when the cause may be gone after a while.
    """

    def __init__(self, message: str, *, passing: bool = False) -> None:
        super().__init__(message)
        self.passing = passing


@dataclass(frozen=True)
class Address:
    """A repository at a revision (None: main), who asks, and where the cache is."""

    repo_id: str
    revision: str | None = None
    token: str | bool | None = None
    cache_dir: str | Path | None = None


def retried(call: Callable[[], T], at: Address, *, pauses: Sequence[float] = PAUSES) -> T:
    """`call()`, again after a pause when it failed for a reason that may pass.

    Raises HubError for what is the Hub's or the network's fault, other errors as they are.
    """
    for pause in (*pauses, None):
        try:
            return call()
        except Exception as error:
            explained = explain(error, at)
            if explained is None:
                raise
            if pause is None or not explained.passing:
                raise explained from error
            time.sleep(pause)
    raise AssertionError("the last try returns or raises")


def explain(error: Exception, at: Address) -> HubError | None:
    """A HubError that says what to do; None for what is no matter of the Hub, as a full disk."""
    from huggingface_hub import errors, get_token

    if isinstance(error, HubError):
        return error
    repo_id, log_in = at.repo_id, ""
    if at.token is False or not (at.token or get_token()):
        log_in = "; you are not signed in: run `hf auth login`, set HF_TOKEN or pass token="
    # httpx2 or httpx, by the version of huggingface_hub
    transport: type[Exception] = errors.HfHubHTTPError.__bases__[0]
    cause = next((e for e in _causes(error) if isinstance(e, transport)), error)
    status = cause.response.status_code if isinstance(cause, errors.HfHubHTTPError) else None
    reason = getattr(cause, "server_message", None) or str(cause).strip() or type(cause).__name__
    if re.search("xet-(read|write)-token", str(error)):
        return HubError(f"{repo_id}: no access to Xet storage, set HF_HUB_DISABLE_XET=1 ({error})")
    if isinstance(error, errors.OfflineModeIsEnabled):
        return HubError(f"HF_HUB_OFFLINE is set, so the Hub is not asked for {repo_id}: unset it and try again")
    if isinstance(error, errors.HFValidationError):
        return HubError(f"{no_path(repo_id)}, and {repo_id!r} is no valid Hub id: {error}")
    if isinstance(cause, errors.GatedRepoError):
        return HubError(f"{repo_id} is gated: accept its conditions on its page{log_in}")
    if isinstance(cause, errors.RepositoryNotFoundError):
        return HubError(f"{no_path(repo_id)}, and the Hub shows no repository {repo_id}: misspelt, or private{log_in}")
    if isinstance(cause, errors.RevisionNotFoundError):
        return HubError(f"{repo_id} has no revision {at.revision!r}: give a branch, a tag or a full commit hash")
    if status in (401, 403):
        return HubError(f"the Hub refuses access to {repo_id}: {reason}{log_in}")
    if status == 412:
        return HubError(f"somebody else committed to {repo_id} meanwhile: push again", passing=True)
    if status in PASSING or (isinstance(cause, transport) and status is None):
        what = status or type(cause).__name__
        return HubError(f"the Hub cannot be reached for {repo_id} ({what}): {reason}", passing=True)
    if isinstance(cause, transport | errors.EntryNotFoundError):
        return HubError(f"the Hub cannot serve {repo_id}: {reason}")
    if isinstance(error, json.JSONDecodeError):
        return HubError(f"the answer for {repo_id} is no JSON: a proxy or login page in between?")
    return None


def no_path(name: str | Path) -> str:
    """Says that there is no file or folder `name`, and which names there are like it."""
    missing = Path(name).expanduser()
    while not missing.parent.is_dir():
        missing = missing.parent
    beside = os.listdir(missing.parent) if os.access(missing.parent, os.R_OK) else []
    near = ", ".join(difflib.get_close_matches(missing.name, beside, cutoff=0.5))
    hint = f", but {near}" if near else ""
    return f"{name} does not exist: {missing.parent.absolute()} has no {missing.name!r}{hint}"


def why_unsafe(name: str) -> str | None:
    """Why a file name from a server must not be written below a folder, under POSIX or Windows.

    None when it may. `leaves_folder` is the part of it that could do harm outside the folder.
    """
    reason = leaves_folder(name)
    for part in name.split("/") if reason is None else ():
        if DEVICES.fullmatch(part):
            return "it is the name of a device under Windows"
        if part.endswith((" ", ".")) or set(part) & set('<>:"|?*'):
            return "Windows would write another name"
    return reason


def leaves_folder(name: str) -> str | None:
    """Why a file name could point out of the folder it is written to, None when it cannot."""
    return next((why for pattern, why in LEAVING.items() if re.search(pattern, name)), None)


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__
