"""NT-Xent and InfoNCE, forward and backward: time and memory at large batches.

Ours works in blocks; the peers hold the whole matrix.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import measure
import torch
import torch.nn.functional as F
from measure import Case, Work
from torch import Tensor

from ssl_contrastive import info_nce_loss, nt_xent_loss

D, TEMPERATURE = 128, 0.5


def main() -> None:
    flags = measure.parser(__doc__)
    flags.add_argument("--batch", type=int, default=4096, help="images of NT-Xent; twice as many embeddings")
    flags.add_argument("--queue", type=int, default=65536, help="keys of InfoNCE, for a batch of 256")
    args = flags.parse_args()
    chosen = measure.settings(args)
    for title, loss, sizes, makers in (
        (f"NT-Xent, n = {args.batch}, d = {D}", "nt_xent", (args.batch, args.batch), NT_XENT),
        (f"InfoNCE, n = 256, queue {args.queue}, d = {D}", "info_nce", (256, 256, args.queue), INFO_NCE),
    ):
        cases = [Case(name, build, (loss, name, sizes), needs) for name, (_, needs) in makers.items()]
        results = measure.race(cases, chosen)
        measure.report(title, results, chosen)
        measure.same(results, within=1e-4)


def build(loss: str, name: str, sizes: tuple[int, ...]) -> Work:
    torch.manual_seed(0)
    inputs = [F.normalize(torch.randn(n, D), dim=1) for n in sizes]
    compute = (NT_XENT if loss == "nt_xent" else INFO_NCE)[name][0]()

    def run() -> Iterator[str]:
        first, *others = inputs
        trained = [first.clone().requires_grad_(), *(x.clone().requires_grad_(loss == "nt_xent") for x in others[:1])]
        value = compute(*trained, *others[1:])
        value.backward()
        yield "forward + backward"

    with torch.no_grad():
        value = round(float(compute(*inputs)), 5)
    return Work(run, {"loss": value})


def ours() -> Callable[..., Tensor]:
    return lambda z1, z2: nt_xent_loss(z1, z2, TEMPERATURE)


def ours_queue() -> Callable[..., Tensor]:
    return lambda query, key, queue: info_nce_loss(query, key, queue, TEMPERATURE)


def lightly() -> Callable[..., Tensor]:
    from lightly.loss import NTXentLoss

    return NTXentLoss(temperature=TEMPERATURE)


def lightly_queue() -> Callable[..., Tensor]:
    from lightly.loss import NTXentLoss

    loss = NTXentLoss(temperature=TEMPERATURE, memory_bank_size=(1, D))

    def compute(query: Tensor, key: Tensor, queue: Tensor) -> Tensor:
        loss.memory_bank.bank = queue
        return loss(query, key)

    loss.memory_bank._dequeue_and_enqueue = lambda batch: None  # the same negatives in each round
    return compute


def dense() -> Callable[..., Tensor]:
    def compute(z1: Tensor, z2: Tensor) -> Tensor:
        z = F.normalize(torch.cat([z1, z2]), dim=1)
        logits = (z @ z.T / TEMPERATURE).fill_diagonal_(-torch.inf)
        return F.cross_entropy(logits, torch.arange(len(z)).roll(len(z1)))

    return compute


def dense_queue() -> Callable[..., Tensor]:
    def compute(query: Tensor, key: Tensor, queue: Tensor) -> Tensor:
        query, key = F.normalize(query, dim=1), F.normalize(key, dim=1)
        logits = torch.cat([(query * key).sum(1, keepdim=True), query @ queue.T], 1) / TEMPERATURE
        return F.cross_entropy(logits, torch.zeros(len(query), dtype=torch.long))

    return compute


NT_XENT = {"ours": (ours, ()), "lightly": (lightly, ("lightly",)), "dense": (dense, ())}
INFO_NCE = {"ours": (ours_queue, ()), "lightly": (lightly_queue, ("lightly",)), "dense": (dense_queue, ())}


if __name__ == "__main__":
    main()
