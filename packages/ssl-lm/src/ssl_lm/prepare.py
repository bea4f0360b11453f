"""`ssl-lm prepare`: from texts to shards of tokens, in parallel, resumable, verified by sums.

It imports no torch itself, so that its processes start fast.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from multiprocessing import get_context
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ssl_core.errors import InputError
from ssl_lm.bytebpe import WordTable, applies
from ssl_lm.shards import META, VERSION, ShardError, is_whole, read_meta, token_type, write_shard
from ssl_lm.splits import LARGEST, digest_of, find_splits, group, sample
from ssl_lm.texts import BadText, Piece, read_piece
from ssl_train import log
from ssl_train.data.files import open_file, printable
from ssl_train.lock import LOCK, locked
from ssl_train.log import Progress, next_steps, note, typed

if TYPE_CHECKING:
    from tokenizers import Tokenizer

    from ssl_core.method import Recipe
    from ssl_lm.verbs import Prepare

PLAN, DONE = "plan.json", "done.jsonl"
STRETCH, SHORT_STRETCH = 2**20, 2**14
"""Characters that are tokenised at once; the second with the table of words (byte-level BPE)."""
NO_TEST = "give folders train/ and test/, or `ssl-lm prepare` it with a larger --held-out, or with 0 for none"


def run(recipe: Recipe, arguments: Prepare) -> dict[str, Any]:
    """The verb."""
    name = arguments.data.removeprefix("hf:").partition("?")[0]  # without the columns that are named behind it
    out = Path(arguments.out or f"{Path(name).stem}-tokens")
    meta = prepare_text(**{**vars(arguments), "out": out}, progress=not log.quiet)
    print(*facts_of(meta), sep="\n")
    splits = {split: counted(records) for split, records in meta["splits"].items()}
    train = next_steps(typed("ssl-lm", "train", "--data", out, "--out", "runs/mine"))
    return {"folder": str(out), "splits": splits, "left_out": meta["left_out"], "next": train}


def counted(records: list[dict[str, int]]) -> dict[str, int]:
    """Tokens and bytes of a split's shards."""
    return {key: sum(record[key] for record in records) for key in ("tokens", "bytes")}


def facts_of(meta: dict[str, Any]) -> list[str]:
    """What a meta.json says, in lines for the terminal: tokens, and what was left out and why."""
    lines = []
    for split, records in meta["splits"].items():
        count, size = counted(records).values()
        lines.append(f"{split}: {count:,} tokens of {size:,} bytes, {size / max(1, count):.2f} bytes a token")
    return lines + [printable(f"left out: {name}: {reason}") for name, reason in meta["left_out"]]


def prepare_text(data: str | Path, out: str | Path, *, held_out: float = 0.05, **options: Any) -> dict[str, Any]:
    """Tokenise `data`, as the command names it, into the folder `out` and return its meta.json.

    `options` are `tokenizer`, `algorithm`, `workers` and `progress` of `prepare_splits`. Raises
    InputError if the data holds no text, `out` holds something else, or the tokenizer does not
    exist.
    """
    if not 0 <= held_out < 1:
        raise InputError(f"held_out = {held_out}: it must lie in [0, 1)")
    splits = find_splits(data, held_out)
    return prepare_splits(splits, Path(out), source=str(data), tested=held_out > 0, **options)


def prepare_splits(
    splits: dict[str, list[Piece]],
    out: Path,
    *,
    source: str,
    tested: bool = True,
    tokenizer: str = "train:8000",
    algorithm: str = "bpe",
    workers: int | None = None,
    progress: bool = False,
) -> dict[str, Any]:
    """The same for pieces that are found already; `source` names the data.

    Raises InputError for a test part without text if it is to be `tested`.

    `workers` is the number of processes, by default one for each core; 0 uses this process alone.
    Shards that an earlier call has written are kept if their sums agree. Raises ShardError if
    another process is writing to `out`.
    """
    with _claimed(out, plan_of(splits, source, tokenizer, algorithm)):
        return _prepare(splits, out, source, tested, tokenizer, algorithm, workers, progress)


def plan_of(splits: dict[str, list[Piece]], source: str, tokenizer: str, algorithm: str = "bpe") -> dict[str, Any]:
    """What a prepared folder is for; if any of these values differs, it is for something else."""
    named = f"{tokenizer} {algorithm}"
    return {"format": VERSION, "source": source, "tokenizer": named, "pieces": digest_of(splits)}


def _prepare(
    splits: dict[str, list[Piece]],
    out: Path,
    source: str,
    tested: bool,
    tokenizer: str,
    algorithm: str,
    workers: int | None,
    progress: bool,
) -> dict[str, Any]:
    """Write what is missing in the folder, which is this process's own by now."""
    from ssl_lm.tokenizer import fingerprint, special_ids  # here: it loads the hub's client, which the processes lack

    if (out / META).exists():
        meta = read_meta(out)
        if all(is_whole(out, record) for records in meta["splits"].values() for record in records):
            return meta
        (out / META).unlink()

    # what every shard needs to know of the tokenizer
    words = _tokenizer(out, tokenizer, algorithm, splits["train"], progress)
    eos, vocabulary = special_ids(words)["eos_token_id"], words.get_vocab_size()
    if eos is None:
        raise InputError(f"the tokenizer {tokenizer} has no token that ends a text, such as <|endoftext|> or [SEP]")
    dtype, digest = np.dtype(token_type(vocabulary)).name, fingerprint(words)

    # done.jsonl gets a line for every shard that is written: a call that is stopped goes on behind
    # the last one
    names = {f"{split}-{i:05d}": part for split in splits for i, part in enumerate(group(splits[split]))}
    sizes = {name: sum(piece.size for piece in pieces) for name, pieces in names.items()}
    done = {name: record for name, record in _done(out).items() if name in names}
    todo = [(name, pieces, str(out), eos, dtype, digest) for name, pieces in names.items() if name not in done]
    total, there = sum(sizes.values()), sum(sizes[name] for name in done)
    bar = Progress(total=total, initial=there, unit="B", unit_scale=True, desc="tokenising", disable=not progress)
    with bar, (out / DONE).open("a", encoding="utf-8") as journal:
        for record in _shards(todo, workers, out):
            journal.write(json.dumps(record) + "\n")
            journal.flush()
            done[record["name"]] = record
            bar.update(sizes[record["name"]])

    # meta.json, the last file, says that all is there
    records = {split: [done[name] for name in names if name.startswith(f"{split}-")] for split in splits}
    facts = {"vocab_size": vocabulary, "eos_token_id": eos, "dtype": dtype, "tokenizer": digest}
    left_out = _left_out(source, records, tested)
    meta = {"format": VERSION, **facts, "source": Path(source).name, "left_out": left_out, "splits": records}
    _write(out / META, meta)
    return meta


@contextmanager
def _claimed(out: Path, plan: dict[str, Any]) -> Iterator[None]:
    """The folder for this process alone, with a note of what it is for.

    Raises ShardError if it holds something else or another process has it.
    """
    out.mkdir(parents=True, exist_ok=True)
    file = out / PLAN
    # before the lock, which leaves a file: these two a process that begins, or was killed, has
    if not file.exists() and any(entry.name not in (LOCK, f"{PLAN}.tmp") for entry in out.iterdir()):
        raise ShardError(f"{out} is not empty and holds no prepared data: give another --out")
    busy = f"{out} is being prepared by another process: wait for it, or give another --out"
    with locked(out, ShardError(busy)):
        if not file.exists():
            _write(file, plan)
        elif read_plan(file) != plan:
            raise ShardError(f"{out} was prepared from other text or for another tokenizer: give another --out")
        try:
            yield
        except InputError:  # nothing was prepared, and the next call may have other settings
            for pattern in (PLAN, DONE, "tokenizer*.json", "*.bin", "*.idx"):
                for left in out.glob(pattern):
                    left.unlink()
            raise


def read_plan(file: Path) -> Any:
    """The plan in a prepared folder's file. Raises ShardError if it is damaged."""
    try:
        return json.loads(file.read_text("utf-8"))
    except ValueError as error:
        raise ShardError(f"{file} is damaged ({error}): delete the folder, or give another --out") from error


def _tokenizer(out: Path, name: str, algorithm: str, pieces: list[Piece], progress: bool) -> Tokenizer:
    """The folder's tokenizer: trained or fetched the first time, read later."""
    from ssl_lm.tokenizer import FILE, load_tokenizer, save_tokenizer, train_tokenizer

    if (out / FILE).exists():
        return load_tokenizer(out)
    if name.startswith("train:"):
        if not name[6:].isdigit():
            raise InputError(f"--tokenizer {name}: write train: and a number, as in train:8000")
        if progress:  # in a log, where the library's bars are hidden, too
            size = sum(piece.size for piece in sample(pieces))
            note(f"training a tokenizer of {int(name[6:]):,} tokens on {size:,} bytes of text")
        texts = (text for piece in sample(pieces) for text in _readable(piece))
        bars = progress and sys.stderr.isatty()  # in a log they are blank lines
        tokenizer = train_tokenizer(texts, int(name[6:]), algorithm, bars)  # type: ignore[arg-type]
    else:
        tokenizer = load_tokenizer(name)
    save_tokenizer(tokenizer, out)
    return tokenizer


def _readable(piece: Piece) -> Iterator[str]:
    """The texts of a piece. What cannot be read is reported when it is tokenised."""
    try:
        yield from (text for text, _ in read_piece(piece, []))
    except BadText:
        return


def _done(out: Path) -> dict[str, dict[str, Any]]:
    """Records of the shards that an earlier call finished and that are whole."""
    records = {}
    for line in (out / DONE).read_text("utf-8").splitlines() if (out / DONE).exists() else ():
        try:
            record = json.loads(line)
        except ValueError:  # torn by a kill
            continue
        if is_whole(out, record):
            records[record["name"]] = record
    return records


def _shards(todo: list[tuple], workers: int | None, out: Path) -> Iterator[dict[str, Any]]:
    """Records of shards as they are finished."""
    from ssl_train.processes import cores  # brings torch, which the workers do without

    workers = cores() if workers is None else workers
    if workers < 2 or len(todo) < 2:  # starting processes would cost more than it saves
        _begin(str(out))
        yield from map(_shard, todo)
        return
    with ProcessPoolExecutor(workers, get_context("spawn"), _begin, (str(out),)) as pool:
        yield from pool.map(_shard, todo)


_words: Any = None
_table: WordTable | None = None


def _begin(folder: str) -> None:
    """Give this process the folder's tokenizer, with one thread: the processes are parallel."""
    global _words, _table
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    from tokenizers import Tokenizer

    _words = Tokenizer.from_file(str(Path(folder, "tokenizer.json")))
    _words.no_padding()
    _words.no_truncation()
    _words.encode_special_tokens = True  # "[SEP]" in a text is text, not its end
    _table = WordTable(_words) if applies(_words) else None


def _shard(job: tuple[str, list[Piece], str, int, str, str]) -> dict[str, Any]:
    """Tokenise and write one shard; return its record.

    The record also has the number of `lines` and, in `left_out`, (path, split, lines, place of the
    first, reason) for what could not be read; no lines mean the whole file.
    """
    name, pieces, folder, eos, dtype, fingerprint = job
    arrays, ends, left_out, lines, count, size = [], [], [], 0, 0, 0
    for piece in pieces:
        try:
            bad: list[tuple[int, str]] = []
            texts = list(read_piece(piece, bad))
        except BadText as error:
            left_out.append((piece.path, piece.split, 0, 0, str(error)))
            continue
        if bad:
            left_out.append((piece.path, piece.split, len(bad), *bad[0]))
        lines += len(bad) + sum(text.count("\n") + 1 for text, _ in texts)
        for (text, ended), tokens in zip(texts, tokenise(_words, [text for text, _ in texts], _table), strict=True):
            # `ends` has the tokens and bytes up to the end of each document
            size += len(text.encode())
            tokens = np.append(tokens, eos) if ended else tokens
            arrays.append(tokens.astype(dtype))
            count += len(tokens)
            if ended:
                ends.append((count, size))
    # a shard whose texts are all unreadable is written too: its record says why it is empty
    tokens = np.concatenate(arrays) if arrays else np.zeros(0, dtype)
    record = write_shard(Path(folder, name), tokens, np.array(ends, np.int64).reshape(-1, 2), size, eos, fingerprint)
    return {**record, "left_out": left_out, "lines": lines}


def tokenise(tokenizer: Any, texts: list[str], table: WordTable | None = None) -> list[np.ndarray]:
    """Tokens int64 (n,) of each text.

    A long text is cut into stretches at line breaks behind a word, where byte-level BPE cuts
    anyway. `table` looks up the words of a stretch that is ASCII; the library tokenises the others
    together.
    """
    stretches = [list(_stretches(text, SHORT_STRETCH if table is not None else STRETCH)) for text in texts]
    slow = [s for parts in stretches for s in parts if table is None or not s.isascii()]
    encoded = iter(tokenizer.encode_batch_fast(slow, add_special_tokens=False))

    def tokens(stretch: str) -> np.ndarray:
        if table is not None and stretch.isascii():
            return table.tokens(stretch)
        return np.array(next(encoded).ids, np.int64)

    return [np.concatenate([tokens(stretch) for stretch in parts]) for parts in stretches]


def _stretches(text: str, length: int) -> Iterator[str]:
    """Stretches of about `length` characters that make up the text."""
    start = 0
    while len(text) - start > length:
        end = text.find("\n", start + length // 2)
        # a cut behind white space could change its tokens
        while end > 0 and text[end - 1].isspace():
            end = text.find("\n", end + 1)
        if end <= start:
            break
        yield text[start:end]
        start = end
    yield text[start:]


def _left_out(source: str, splits: dict[str, list[dict[str, Any]]], tested: bool) -> list[tuple[str, str]]:
    """Take what could not be read out of the records: (file, number of lines and first reason).

    Raises InputError if there is no text to train on, none to test on although it is to be
    `tested`, or if too much could not be read.
    """
    records = [record for parts in splits.values() for record in parts]
    lines = sum(record.pop("lines") for record in records)
    # the pieces of a file together, with the first line of all
    files: dict[tuple[str, str | None, bool], tuple[int, int, str]] = {}
    for path, split, count, at, reason in (entry for record in records for entry in record.pop("left_out")):
        before, at, reason = files.get((path, split, count > 0), (0, at, reason))
        files[path, split, count > 0] = (before + count, at, reason)
    found = [
        (
            Path(path).name,
            f"{count:,} {'line' if count == 1 else 'lines'}, the first {_place(path, split, at)}: {reason}",
        )
        if count
        else (Path(path).name, reason)
        for (path, split, _), (count, at, reason) in files.items()
    ]
    first = f": {found[0][0]}: {found[0][1]}" if found else ""
    if not sum(record["tokens"] for record in splits["train"]):
        raise InputError(f"{source} holds no text{first}")
    if tested and not sum(record["tokens"] for record in splits["test"]):
        raise InputError(f"the test part of {source} holds no text{first}: {NO_TEST}")
    total = sum(count or 1 for count, _, _ in files.values())
    if total > max(10, lines // 100):
        raise InputError(f"{total:,} lines or files of {source} are no text{first}. Mend them or take them out")
    return found


def _place(path: str, split: str | None, at: int) -> str:
    """Row or line, counted from 1, where something begins: `at` is a row or a byte of the file."""
    if split is not None:
        return f"row {at + 1:,} of {split}"
    with open_file(path) as stream:
        number, left = 1, at
        while left and (block := stream.read(min(left, LARGEST))):
            number, left = number + block.count(b"\n"), left - len(block)
    return f"line {number:,}"


def _write(file: Path, value: dict[str, Any]) -> None:
    """Replace a JSON file whole or not at all."""
    staged = file.with_name(f"{file.name}.tmp")
    staged.write_text(json.dumps(value, indent=1), "utf-8")
    os.replace(staged, file)
