"""The fused attention kernel beside the plain product, by dtype and shape.

`ssl_core.vit.attention` chooses between them by a rule. A row's ratios are times over the time of
the rule's choice, so none is below 1 where the rule is right.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import measure
import torch
import torch.nn.functional as F
from measure import Case, Result, Settings, Work
from torch import Tensor

from ssl_core.vit import attention, attention_weights

SHAPES = {
    "MAE-B encoder": (8, 12, 50, 64),
    "MAE-S encoder": (8, 6, 50, 64),
    "MAE decoder": (8, 16, 197, 32),
    "ViT-B": (8, 12, 197, 64),
    "demo": (64, 4, 17, 32),
}
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


def main() -> None:
    args = measure.parser(__doc__).parse_args()
    chosen = measure.settings(args)
    rows, results = [], []
    for dtype in DTYPES:
        for name, shape in SHAPES.items():
            raced = measure.race([Case(kind, build, (kind, shape, dtype)) for kind in KINDS], chosen, isolate=False)
            rows += [[dtype, name, " x ".join(map(str, shape)), *line] for line in lines(raced, chosen)]
            results += raced
    head = ["dtype", "where", "b h n d", "part", "the rule", "explicit", "fused"]
    measure.report("Attention", results, chosen, measure.markdown(head, rows))


def lines(raced: list[Result], chosen: Settings) -> list[list[str]]:
    """Forward alone, as in an evaluation, and forward with backward."""
    rule, *others = raced
    text = []
    for label, part in (("forward", "forward"), ("both", None)):
        seconds = sorted(rule.seconds(chosen.clock, part))
        ratios = [measure.ratios(other, rule, chosen.clock, part) for other in others]
        text.append([label, measure.duration(seconds[len(seconds) // 2]), *ratios])
    return text


def explicit(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return attention_weights(q, k) @ v


KINDS: dict[str, Callable[[Tensor, Tensor, Tensor], Tensor]] = {
    "the rule": attention,
    "explicit": explicit,
    "fused": F.scaled_dot_product_attention,
}


def build(kind: str, shape: tuple[int, int, int, int], dtype: str) -> Work:
    b, h, n, d = shape
    generator = torch.Generator().manual_seed(0)
    qkv = torch.randn(b, n, 3, h, d, generator=generator).to(DTYPES[dtype])
    gradient = torch.randn(b, n, h, d, generator=generator).to(DTYPES[dtype])

    def run() -> Iterator[str]:
        for _ in range(3):
            x = qkv.detach().requires_grad_()
            out = KINDS[kind](*x.permute(2, 0, 3, 1, 4).unbind(0))
            yield "forward"
            out.transpose(1, 2).backward(gradient)
            yield "backward"

    return Work(run)


if __name__ == "__main__":
    main()
