"""Your own texts as the data of a run: `train --data texts/` prepares them in the run folder."""

from __future__ import annotations

import math
import os
import shutil
import warnings
from pathlib import Path
from typing import Any

from ssl_core.config import TrainConfig
from ssl_core.errors import DataError, InputError
from ssl_core.hub.checkpoint import checkpoint_of
from ssl_lm.config import SPECIAL_IDS
from ssl_lm.corpus import open_text
from ssl_lm.prepare import PLAN, facts_of, plan_of, prepare_splits, read_plan
from ssl_lm.shards import META, ShardError
from ssl_lm.splits import digest_of, find_splits
from ssl_train import log
from ssl_train.asked import Asked
from ssl_train.auto import Choice
from ssl_train.lock import locked
from ssl_train.log import note
from ssl_train.run import PREPARED, has_begun

HELD_OUT = 0.05
"""Share of the bytes that is not trained on, as `prepare` has it."""
FEWEST = 2**12
"""Bytes of text below which a run is refused: some ten samples of GPT's smallest preset."""
SMALLEST, LARGEST = 2**9, 2**15
"""Tokens of a vocabulary that is chosen. Between them it grows with the root of the text, as the
number of different words does (Heaps' law)."""
TRAINED_IDS = (0, 1, 2, 3, 4, 3)
"""What SPECIAL_IDS are in every tokenizer that is trained here."""


def ready(
    data: Any, folder: Path, asked: TrainConfig | Asked | None = None, init: str | Path | None = None
) -> tuple[Any, list[Choice]]:
    """(a folder of tokens, what was chosen for it) for raw texts that are to be trained on.

    They are prepared into `folder`/data, whole or not at all, with the tokenizer of `init`, or one
    that is trained on them. A run that has begun keeps the tokens that it began with. Prepared and
    built-in data come back as they are. Without `asked` nothing is made: the tokens of the run in
    `folder` stand for no data at all, and for the texts that they were made of. Raises InputError.
    """
    place, staged = (folder / name for name in PREPARED)
    if asked is None:
        return (place if _stands_for(data, place) else data), []
    if not isinstance(data, str | os.PathLike) or str(data) == "stdlib" or (Path(data) / META).is_file():
        return data, []
    source = _absolute(data)
    if (place / META).is_file() and has_begun(folder):
        _compare(source, place)
        return place, []

    # the vocabulary is that of the weights to start from, or the user's, or fits the text
    splits = find_splits(source, HELD_OUT)
    size = sum(piece.size for piece in splits["train"])
    if size < FEWEST:
        raise InputError(f"{data} holds {size:,} bytes of text to train on: give {FEWEST:,} or more")
    preset, typed = (asked.preset, asked.typed) if isinstance(asked, Asked) else (asked, {})
    values = {**(vars(preset) if preset is not None else {}), **typed}
    tokens = values.get("vocab_size")
    ids = zip(SPECIAL_IDS, TRAINED_IDS, strict=True)
    if init is None and any(values.get(name) not in (None, trained) for name, trained in ids):
        what = f"this preset has the {tokens:,} tokens of a published tokenizer"
        raise InputError(f"{what}: run `ssl-lm prepare {data} --tokenizer NAME`, then train on the folder it makes")
    tokenizer = f"train:{tokens or vocabulary(size)}" if init is None else str(checkpoint_of(init) or init)

    made = [parent for parent in (folder, *folder.parents) if not parent.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    try:
        with locked(folder, ShardError(f"{folder} is in use by another process: wait for it, or give another --out")):
            meta = _prepared(splits, source, tokenizer, place, staged)
    except InputError:
        if made:  # what was made for nothing goes again
            shutil.rmtree(made[0])
            for parent in made[1:]:
                parent.rmdir()
        raise
    note("\n".join(facts_of(meta)))
    why = f"twice the root of {size:,} bytes of text" if init is None else f"the tokenizer of {init}"
    return place, [] if tokens else [Choice("vocab_size", meta["vocab_size"], why)]


def _prepared(splits: Any, source: str, tokenizer: str, place: Path, staged: Path) -> dict[str, Any]:
    """meta.json of the pieces in `place`, where they are prepared, by way of `staged`, if they are
    not there."""
    # what an earlier call made of other texts or for another vocabulary has trained nothing
    plan = plan_of(splits, source, tokenizer)
    if place.exists() and not (place / PLAN).exists():
        raise InputError(f"{place} holds something else than prepared text: give another --out")
    for earlier in (place, staged):
        if earlier.exists() and not ((earlier / PLAN).exists() and read_plan(earlier / PLAN) == plan):
            shutil.rmtree(earlier)
    out = place if place.exists() else staged
    try:
        meta = prepare_splits(splits, out, source=source, tokenizer=tokenizer, workers=0, progress=not log.quiet)
    except InputError:
        shutil.rmtree(staged, ignore_errors=True)
        raise
    if out == staged:
        staged.rename(place)
    return meta


def vocabulary(size: int) -> int:
    """Tokens that suit `size` bytes of text: a power of two near twice their root."""
    return min(max(2 ** round(math.log2(2 * size**0.5)), SMALLEST), LARGEST)


def _absolute(data: str | os.PathLike[str]) -> str:
    """The name of the texts wherever a command is given."""
    name = os.fspath(data)
    return name if name.startswith("hf:") else os.path.abspath(os.path.expanduser(name))


def _stands_for(data: Any, place: Path) -> bool:
    """Whether a run's tokens in `place` are what is to be measured for `data`: it names nothing, or
    the texts that they were made of, unless these have labels."""
    if not (place / META).is_file():
        return False
    if data is None:
        return True
    if not isinstance(data, str | os.PathLike) or _absolute(data) != read_plan(place / PLAN)["source"]:
        return False
    try:
        return open_text(data, config=None).labels is None
    except DataError:  # what cannot be read was left out of the tokens, and so were its labels
        return True


def _compare(source: str, place: Path) -> None:
    """Warn if the texts are no longer those that the tokens in `place` were made of."""
    plan = read_plan(place / PLAN)
    if plan["source"] != source:  # other data make another run, which will be refused
        return
    try:
        if digest_of(find_splits(source, HELD_OUT)) == plan["pieces"]:
            return
        what = f"the texts in {source} have changed since this run began"
    except InputError as error:
        what = f"the texts of this run cannot be compared with what it was made of ({error})"
    hint = f"it goes on with the tokens that it began with, in {place}. For other texts give another --out"
    warnings.warn(f"{what}: {hint}", stacklevel=2)
