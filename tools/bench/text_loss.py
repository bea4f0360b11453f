"""The cross-entropy of a large vocabulary, forward and backward.

Computes a few rows of logits at a time, or all of them at once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import measure
import torch
import torch.nn.functional as F
from measure import Case, Work
from torch import Tensor

from ssl_core.device import autocast
from ssl_lm.loss import linear_cross_entropy


def main() -> None:
    flags = measure.parser(__doc__)
    flags.add_argument("--tokens", type=int, default=1024)
    flags.add_argument("--width", type=int, default=768)
    flags.add_argument("--vocabulary", type=int, default=50257)
    flags.add_argument("--precision", choices=("fp32", "bf16"), default="fp32")
    args = flags.parse_args()
    chosen, shape, precision = measure.settings(args), (args.tokens, args.width, args.vocabulary), args.precision
    cases = {"ours": linear_cross_entropy, "whole logits": whole}
    results = measure.race([Case(name, build, (loss, *shape, precision)) for name, loss in cases.items()], chosen)
    measure.report(
        f"Loss of {shape[0]} tokens, width {shape[1]}, vocabulary {shape[2]:,}, {precision}", results, chosen
    )
    measure.same(results, within=1e-5)


def whole(hidden: Tensor, head: Tensor, labels: Tensor) -> Tensor:
    return F.cross_entropy(F.linear(hidden, head), labels)


def build(
    loss: Callable[[Tensor, Tensor, Tensor], Tensor], tokens: int, width: int, vocabulary: int, precision: str
) -> Work:
    torch.manual_seed(0)
    hidden = torch.randn(tokens, width, requires_grad=True)
    head = (torch.randn(vocabulary, width) * 0.02).requires_grad_()
    labels = torch.randint(vocabulary, (tokens,))

    def run() -> Iterator[str]:
        with autocast(precision, torch.device("cpu")):
            value = loss(hidden, head, labels)
        yield "forward"
        value.backward()
        hidden.grad = head.grad = None
        yield "backward"

    with torch.no_grad():
        return Work(run, {"loss": round(loss(hidden, head, labels).item(), 5)})


if __name__ == "__main__":
    main()
