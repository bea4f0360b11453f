"""k-nearest neighbours: ours, faiss's and lightly's.

10,000 queries (--queries) search a bank of 50,000 features of width 384 with k = 20. faiss's time
is that of the search without the vote; lightly gets batches of 256. Features are random around the
means of a hundred classes. The run fails if more than 1 in 1,000 predictions of ours and lightly's
differ.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial

import measure
import torch
import torch.nn.functional as F
from measure import Case, Work
from torch import Tensor

from ssl_train.evaluate import knn as module
from ssl_train.evaluate.knn import TEMPERATURE, knn

BANK, WIDTH, CLASSES, K = 50_000, 384, 100, 20


def main() -> None:
    flags = measure.parser(__doc__)
    flags.add_argument("--queries", type=int, default=10_000)
    flags.set_defaults(rounds=5)
    args = flags.parse_args()
    chosen, queries = measure.settings(args), args.queries
    check()
    results = measure.race(
        [
            Case("ours", ours, (queries, True)),
            Case("ours, fp32 alone", ours, (queries, False)),
            Case("faiss IndexFlatIP", faiss, (queries,), ("faiss",)),
            Case("lightly knn_predict", lightly, (queries,), ("lightly",)),
        ],
        chosen,
    )
    measure.report(f"k-NN, {BANK:,} x {queries:,} x {WIDTH}, k = {K}", results, chosen)


def features(queries: int) -> tuple[Tensor, Tensor, Tensor]:
    """Bank (n, d), its labels (n,), queries (q, d)."""
    g = torch.Generator().manual_seed(0)
    means = 0.3 * torch.randn(CLASSES, WIDTH, generator=g)
    labels = torch.randint(CLASSES, (BANK + queries,), generator=g)
    x = F.normalize(means[labels] + torch.randn(BANK + queries, WIDTH, generator=g), dim=1)
    return x[:BANK], labels[:BANK], x[BANK:]


def check() -> None:
    bank, labels, some = features(512)
    try:
        theirs = _lightly_labels(bank.T.contiguous(), labels, some)
    except ModuleNotFoundError:
        return
    differing = int((knn(bank, labels, some, ks=(K,))[K] != theirs).sum())
    if differing > 0.001 * len(some):
        raise SystemExit(f"{differing} of {len(some)} predictions differ from lightly's")


def ours(queries: int, rounded: bool) -> Work:
    if not rounded:
        module.cpu_has_bf16 = lambda: False
    return _work(partial(knn, *features(queries), ks=(K,)))


def faiss(queries: int) -> Work:
    import faiss as library

    library.omp_set_num_threads(torch.get_num_threads())
    bank, _, asked = features(queries)

    def search() -> None:
        index = library.IndexFlatIP(WIDTH)
        index.add(bank.numpy())
        index.search(asked.numpy(), K)

    return _work(search)


def lightly(queries: int) -> Work:
    bank, labels, asked = features(queries)
    return _work(partial(_lightly_labels, bank.T.contiguous(), labels, asked))


def _lightly_labels(bank: Tensor, labels: Tensor, queries: Tensor) -> Tensor:
    from lightly.utils.benchmarking import knn_predict

    batches = queries.split(256)
    return torch.cat([knn_predict(some, bank, labels, CLASSES, K, TEMPERATURE)[:, 0] for some in batches])


def _work(once: Callable[[], object]) -> Work:
    def run() -> Iterator[str]:
        once()
        yield "search"

    return Work(run)


if __name__ == "__main__":
    main()
