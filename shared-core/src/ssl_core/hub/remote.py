"""Names to folders and folders to the Hub: `resolve` fetches a model, `push` publishes one.

`huggingface_hub` does the transport. Added here: one commit for all files, content checked against
the Hub's hashes (the client compares sizes only), file names refused that could leave the folder,
retries where the client has none, no silent use of an old copy, and errors that say what to do.
"""

from __future__ import annotations

import glob
import hashlib
import re
import warnings
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from fnmatch import fnmatchcase
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from ssl_core.hub.card import merge_card
from ssl_core.hub.transfer import PAUSES, TIMEOUT, Address, HubError, leaves_folder, no_path, retried, why_unsafe
from ssl_core.hub.weights_file import SUMS, sha256, verify_sums

PUBLISHED = (
    "config.json *.safetensors *.safetensors.index.json preprocessor_config.json open_clip_config.json "
    "generation_config.json tokenizer.json tokenizer_config.json tokenizer.model special_tokens_map.json "
    f"added_tokens.json vocab.json vocab.txt merges.txt spiece.model README.md {SUMS} evaluation.json"
).split()
"""What a published model consists of: patterns for the files at the top of its folder."""
PICKLE = "pytorch_model.bin"
VERIFIED = ".ssl-core-verified"
"""folder in a repository's cache: hash of a file -> size and time of the file that had it"""
WEIGHTS = (".safetensors", ".bin", ".pt", ".pth", ".tar")


def resolve(
    name: str | Path,
    *,
    revision: str | None = None,
    cache_dir: str | Path | None = None,
    token: str | bool | None = None,
    local_files_only: bool = False,
    allow_patterns: Sequence[str] = (*PUBLISHED, PICKLE),
) -> Path:
    """Path of a model: `name` itself if it is a folder or file, else a Hub repository's snapshot.

    What looks like a path (absolute, ./, ../, ~, two separators, the suffix of a weights file) is
    never asked of the Hub. All files come from one commit, whose hash is the name of the snapshot
    folder; `allow_patterns` select files at the top of the repository, and pytorch_model.bin comes
    only when there is no safetensors file. A branch or tag is looked up at each call; a commit hash
    that is in the cache needs no network.

    Raises FileNotFoundError for a path that does not exist, and HubError for a repository or
    revision that does not exist or may not be read, for what is not in the cache while offline, for
    a download that stays damaged or cut after three tries, and for a repository with hostile file
    names. When the Hub cannot be reached but the cache has a copy, that is returned with a warning.
    """
    if (local := _local_path(name)) is not None:
        return local
    from huggingface_hub import constants

    at = Address(str(name), revision, token, cache_dir)
    if local_files_only or constants.HF_HUB_OFFLINE:
        return _cached(at, allow_patterns)
    if revision and re.fullmatch("[0-9a-f]{40}", revision):
        with suppress(HubError):
            return _cached(at, allow_patterns)
    try:
        return retried(lambda: _fetch(at, allow_patterns), at)
    except HubError as error:
        if error.passing:
            with suppress(HubError):
                folder = _cached(at, allow_patterns)
                warnings.warn(f"{error}. Using commit {folder.name} from the cache", stacklevel=2)
                return folder
        raise


def push(
    folder: str | Path,
    repo_id: str,
    *,
    revision: str | None = None,
    private: bool | None = None,
    token: str | bool | None = None,
    create_pr: bool = False,
    dry_run: bool = False,
) -> str:
    """Publish a run folder in one commit and return its URL; with `dry_run`, list what would go.

    Only the files of `PUBLISHED` are uploaded, so checkpoints and pictures stay here. The
    repository and the branch `revision` are made when they do not exist. A model card that is
    already there keeps what people wrote into it (`merge_card`). When nothing has changed there is
    no commit, and the URL of the last one is returned.

    Raises HubError for a folder without config.json or weights and when the Hub refuses or cannot
    be reached, and WeightsError when a file has changed since its SHA256SUMS were written.
    """
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id

    folder, at = Path(folder), Address(repo_id, revision, token)
    files = _published(folder)
    verify_sums(folder)
    try:
        validate_repo_id(repo_id)
    except HFValidationError as error:
        raise HubError(f"{repo_id!r} is no name on the Hub, like me/my-model: {error}") from error
    if dry_run:
        sizes = [f"{(folder / file).stat().st_size:>15,}  {file}" for file in files]
        return "\n".join([f"to {repo_id}, {revision or 'main'}:", *sizes])

    # If the answer to a commit is lost, a retry finds nothing changed; a PR would come twice.
    pauses = () if create_pr else PAUSES
    return retried(lambda: _commit(at, folder, files, private, create_pr), at, pauses=pauses)


def _local_path(name: str | Path) -> Path | None:
    """`name` as a path that exists, None for a Hub id; FileNotFoundError for any other path."""
    text, path = str(name), Path(name).expanduser()
    if not text:
        raise ValueError("the name of a model is empty")
    if path.exists():
        return path
    separators = text.count("/") + 2 * text.count("\\")
    must_be_path = isinstance(name, Path) or path.is_absolute() or text.startswith((".", "~"))
    if not must_be_path and separators < 2 and path.suffix not in WEIGHTS:
        return None
    raise FileNotFoundError(no_path(name))


def _fetch(at: Address, patterns: Sequence[str]) -> Path:
    from huggingface_hub import HfApi, snapshot_download

    api = HfApi(token=at.token)
    info = api.model_info(at.repo_id, revision=at.revision, files_metadata=True, timeout=TIMEOUT)
    commit = str(info.sha)
    if not re.fullmatch("[0-9a-f]{40}", commit):
        raise HubError(f"{at.repo_id}: {commit!r} is no commit hash. Nothing was written")
    listed: dict[str, Any] = {sibling.rfilename: sibling for sibling in info.siblings or ()}
    chosen = _choose(at.repo_id, listed, patterns)
    exactly: dict[str, Any] = {"allow_patterns": [glob.escape(file) for file in chosen], "token": at.token}
    folder = Path(snapshot_download(at.repo_id, revision=at.revision, cache_dir=at.cache_dir, **exactly))
    if folder.name != commit:
        raise HubError(f"{at.repo_id} was changed during the download: try again", passing=True)
    hashes = {file: listed[file].lfs.sha256 if listed[file].lfs else listed[file].blob_id for file in chosen}
    _check_content(folder, hashes)
    return folder


def _choose(repo_id: str, listed: Iterable[str], patterns: Sequence[str]) -> list[str]:
    """The files to fetch; HubError when there are none or when a name could do harm."""
    listed = list(listed)
    chosen = [file for file in listed if "/" not in file and _matches(file, patterns)]
    if any(file.endswith(".safetensors") for file in chosen):
        chosen = [file for file in chosen if file != PICKLE]
    for file in listed:
        reason = why_unsafe(file) if file in chosen else leaves_folder(file)
        if reason:
            raise HubError(f"{repo_id} has a file named {file!r}: {reason}. Nothing was written")
    if not chosen:
        has = ", ".join(sorted(listed)[:20]) or "nothing"
        raise HubError(f"{repo_id} has no file of a model ({', '.join(patterns)}), but {has}")
    return chosen


def _check_content(folder: Path, hashes: Mapping[str, str | None]) -> None:
    """Compare the files of a snapshot with the hashes that the Hub lists, or None where it lists
    none.

    Every file is read once and then remembered, so a process that is killed between download and
    check leaves nothing that is trusted. All damaged files leave the cache before HubError names
    them.
    """
    marks, damaged = folder.parents[1] / VERIFIED, {}
    for file, listed in hashes.items():
        blob = (folder / file).resolve()
        # Some mirrors list no hashes, and offline nobody does. But the cache names what it holds by
        # the Hub's hash, where it can make links.
        expected = listed or blob.name
        if not re.fullmatch("[0-9a-f]{40}|[0-9a-f]{64}", expected):
            continue
        stat, mark = blob.stat(), marks / expected
        stamp = f"{stat.st_size} {stat.st_mtime_ns}"
        if mark.is_file() and mark.read_text("utf-8") == stamp:
            continue
        if expected in _hashes(blob, len(expected)):
            with suppress(OSError):  # a cache that we may not write is checked at each call
                marks.mkdir(exist_ok=True)
                mark.write_text(stamp, "utf-8")
        else:
            damaged[file] = blob
    for file, blob in damaged.items():
        for path in (folder / file, blob):
            path.unlink(missing_ok=True)
    if damaged:
        how = "the content has another hash than the Hub says. The cache no longer holds it, get it again"
        raise HubError(f"{', '.join(damaged)} arrived damaged: {how}", passing=True)


def _hashes(path: Path, digits: int) -> set[str]:
    """What a Hub may call this content, in so many digits: LFS its sha256, git and mirrors a
    sha1."""
    if digits == 64:
        return {sha256(path)}
    content = path.read_bytes()
    return {hashlib.sha1(start + content).hexdigest() for start in (b"blob %d\0" % len(content), b"")}


def _cached(at: Address, patterns: Sequence[str]) -> Path:
    """The snapshot in the cache; HubError when it is not there or not whole."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError

    what = f"{at.repo_id} at revision {at.revision or 'main'}"
    advice = "Get it with a network first (no HF_HUB_OFFLINE, no local_files_only)"
    try:
        wanted = [pattern for pattern in patterns if pattern != PICKLE]
        # The client's * crosses folders, ours does not.
        files = {"local_files_only": True, "allow_patterns": wanted, "ignore_patterns": ["*/*"]}
        folder = Path(snapshot_download(at.repo_id, revision=at.revision, cache_dir=at.cache_dir, **files))
    except LocalEntryNotFoundError as error:
        cold = f"the Hub's {what} is not, or not completely, in the cache"
        raise HubError(f"{no_path(at.repo_id)}, and {cold}. {advice}") from error
    except HFValidationError as error:
        raise HubError(f"{no_path(at.repo_id)}, and {at.repo_id!r} is no valid Hub id: {error}") from error
    _check_content(folder, dict.fromkeys(path.name for path in folder.iterdir() if _matches(path.name, patterns)))
    has_weights = (folder / PICKLE).is_file() or any(folder.glob("*.safetensors"))
    if _matches("model.safetensors", patterns) and not has_weights:
        raise HubError(f"{what} is in the cache without its weights. {advice}")
    return folder


def _published(folder: Path) -> list[str]:
    if not folder.is_dir():
        raise HubError(f"{folder} is no folder")
    names = sorted(path.name for path in folder.iterdir() if path.is_file())
    files = [name for name in names if _matches(name, PUBLISHED)]
    if "config.json" not in files or not any(file.endswith(".safetensors") for file in files):
        has = ", ".join(names) or "nothing"
        raise HubError(f"{folder} lacks config.json or *.safetensors, so nobody could load it; it has {has}")
    return files


def _commit(at: Address, folder: Path, files: Iterable[str], private: bool | None, create_pr: bool) -> str:
    from huggingface_hub import CommitOperationAdd, HfApi
    from huggingface_hub.errors import RevisionNotFoundError

    api = HfApi(token=at.token)
    repo_id = api.create_repo(at.repo_id, private=private, exist_ok=True).repo_id
    try:
        info = api.model_info(repo_id, revision=at.revision, timeout=TIMEOUT)
    except RevisionNotFoundError:
        api.create_branch(repo_id, branch=str(at.revision), exist_ok=True)
        info = api.model_info(repo_id, revision=at.revision, timeout=TIMEOUT)
    content: dict[str, Path | bytes] = {file: folder / file for file in files}
    theirs = {sibling.rfilename for sibling in info.siblings or ()}
    if "README.md" in theirs & content.keys():
        with TemporaryDirectory() as temporary:
            old = api.hf_hub_download(repo_id, "README.md", revision=info.sha, local_dir=temporary)
            card = merge_card(_text(Path(old)), _text(folder / "README.md"))
        content["README.md"] = card.encode()
    added = [CommitOperationAdd(file, source) for file, source in content.items()]
    # `parent_commit`: a card that was merged from an older commit would undo somebody's words.
    how = {"revision": at.revision, "create_pr": create_pr, "parent_commit": info.sha}
    return api.create_commit(repo_id, added, commit_message="Publish model", **how).commit_url


def _matches(name: str, patterns: Sequence[str]) -> bool:
    return any(fnmatchcase(name, pattern) for pattern in patterns)


def _text(path: Path) -> str:
    return path.read_bytes().decode("utf-8-sig")  # read_text would turn \r\n into \n
