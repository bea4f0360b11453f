"""DINO's loss with its gradient: ours, one in the authors' style, and lightly's.

There are 10 crops, 2 of them the teacher's, and 65,536 prototypes, in fp32. The authors take a
log-softmax per pair of crops, lightly one einsum.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import measure
import torch
from measure import Case, Work
from torch import Tensor

from ssl_dino.loss import dino_loss

V, G = 10, 2


def main() -> None:
    flags = measure.parser(__doc__)
    flags.add_argument("--batch", type=int, default=64)
    flags.add_argument("--prototypes", type=int, default=65536)
    args = flags.parse_args()
    chosen, shared = measure.settings(args), (args.batch, args.prototypes)
    cases = [
        Case("ours", build, (ours, *shared)),
        Case("authors' style", build, (plain, *shared), ("timm",)),
        Case("lightly", build, (lightly, *shared), ("lightly",)),
    ]
    results = measure.race(cases, chosen)
    measure.report(f"DINO loss, {V} crops, batch {args.batch}, {args.prototypes:,} prototypes, fp32", results, chosen)
    measure.same(results, within=1e-3)


def build(make: Callable[[int], Callable[..., Tensor]], batch: int, prototypes: int) -> Work:
    torch.manual_seed(0)
    student = torch.randn(V, batch, prototypes, requires_grad=True)
    teacher, center = torch.randn(G, batch, prototypes), torch.zeros(1, prototypes)
    loss = make(prototypes)

    def run() -> Iterator[str]:
        student.grad = None
        loss(student, teacher, center).backward()
        yield "forward + backward"

    with torch.no_grad():
        value = round(float(loss(student, teacher, center)), 4)
    return Work(run, {"loss": value})


def ours(prototypes: int) -> Callable[..., Tensor]:
    return lambda student, teacher, center: dino_loss(student, teacher, center, 0.1, 0.04)


def plain(prototypes: int) -> Callable[..., Tensor]:
    from plain_dino import plain_loss

    return lambda student, teacher, center: plain_loss(student.flatten(0, 1), teacher.flatten(0, 1), center, G, V)


def lightly(prototypes: int) -> Callable[..., Tensor]:
    from lightly.loss import DINOLoss

    criterion = DINOLoss(output_dim=prototypes, student_temp=0.1)

    def loss(student: Tensor, teacher: Tensor, center: Tensor) -> Tensor:
        criterion.center.zero_()  # it moves with every call
        return criterion(list(teacher), list(student), teacher_temp=0.04)

    return loss


if __name__ == "__main__":
    main()
