"""From text to tokens on disk: `ssl-lm prepare` and `datasets.map`, each in one process.

The tokenizer is the same, the text is the source of the standard library. `MB/s` is the speed of
one core; without limits `prepare` uses all cores.
"""

from __future__ import annotations

import statistics
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import measure
from measure import Case, Work

from ssl_lm.corpus import modules, stdlib
from ssl_lm.prepare import prepare_splits
from ssl_lm.texts import Piece


def main() -> None:
    flags = measure.parser(__doc__)
    flags.set_defaults(rounds=3)
    chosen = measure.settings(flags.parse_args())
    results = measure.race(
        [Case("ours", build, (ours,)), Case("datasets.map", build, (datasets_map,), ("datasets", "transformers"))],
        chosen,
    )
    size = sum(file.stat().st_size for _, file in modules())
    for result in results:
        if not result.missing:
            result.facts["MB/s"] = f"{size / 1e6 / statistics.median(result.seconds(chosen.clock)):.2f}"
    measure.report(f"Tokenising {size / 1e6:.1f} MB of source", results, chosen)


def build(make: Callable[[], Callable[[], None]]) -> Work:
    work = make()

    def run() -> Iterator[str]:
        work()
        yield "tokenising"

    return Work(run)


def ours() -> Callable[[], None]:
    tokenizer = str(stdlib())
    pieces = [Piece(str(file), 0, file.stat().st_size) for _, file in modules()]

    def work() -> None:
        with tempfile.TemporaryDirectory() as folder:
            splits, out = {"train": pieces, "test": []}, Path(folder, "out")
            options = {"tokenizer": tokenizer, "algorithm": "bpe", "source": "stdlib"}
            prepare_splits(splits, out, **options, workers=0, progress=False)

    return work


def datasets_map() -> Callable[[], None]:
    import datasets
    from transformers import PreTrainedTokenizerFast

    datasets.disable_progress_bars()
    datasets.disable_caching()
    tokenizer = PreTrainedTokenizerFast(tokenizer_file=str(stdlib() / "tokenizer.json"))
    files = [file for _, file in modules()]

    def work() -> None:
        rows = datasets.Dataset.from_dict({"text": [file.read_text(encoding="utf-8") for file in files]})
        tokens = rows.map(lambda batch: tokenizer(batch["text"]), batched=True, remove_columns=["text"])
        with tempfile.TemporaryDirectory() as folder:
            tokens.save_to_disk(folder)

    return work


if __name__ == "__main__":
    main()
