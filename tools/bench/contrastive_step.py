"""SimCLR's training step on a ResNet: ours, and lightly's parts put together as in its examples.

lightly's example passes the two views one after the other, so batch norm sees n images at a time.
Ours passes 2n, as the paper does. Both use the same SGD.
"""

from __future__ import annotations

from collections.abc import Callable

import measure
import torch
from measure import Case, Settings, Work
from step import Contender, as_fit, follow, work
from torch import Tensor, nn

from ssl_contrastive import SimCLR, SimCLRConfig

NETWORKS = {"resnet18": (32, 256), "resnet50": (224, 16)}
"""Pixels per side, and images per batch."""
CPU = torch.device("cpu")


def main() -> None:
    flags = measure.parser(__doc__)
    flags.add_argument("--networks", nargs="+", choices=[*NETWORKS], default=[*NETWORKS])
    flags.add_argument("--precisions", nargs="+", choices=["fp32", "bf16"], default=["fp32", "bf16"])
    flags.add_argument("--batch", type=int, help="images; 256 at 32 pixels, 16 at 224 by default")
    args = flags.parse_args()
    chosen = measure.settings(args)
    for network in args.networks:
        for precision in args.precisions:
            compare(network, precision, args.batch or NETWORKS[network][1], chosen)


def compare(network: str, precision: str, batch: int, chosen: Settings) -> None:
    side = NETWORKS[network][0]
    cases = [
        Case("ours", build, (ours, network, precision, batch)),
        Case("lightly", build, (lightly, network, precision, batch), ("lightly", "torchvision")),
    ]
    title = f"SimCLR step, {network} at {side} pixels, {precision}, batch {batch}"
    measure.report(title, measure.race(cases, chosen), chosen)


def config(network: str, batch: int) -> SimCLRConfig:
    side = NETWORKS[network][0]
    return SimCLRConfig(
        backbone=network, small_stem=side == 32, image_size=side, batch_size=batch, optimizer="sgd", base_lr=0.01
    )  # type: ignore[arg-type]


def build(make: Callable[..., Contender], network: str, precision: str, batch: int) -> Work:
    torch.manual_seed(0)
    side = NETWORKS[network][0]
    views = [torch.randint(0, 256, (batch, 3, side, side), dtype=torch.uint8) for _ in range(2)]
    return work(make(config(network, batch), views), precision)


def ours(chosen: SimCLRConfig, views: list[Tensor]) -> Contender:
    method = SimCLR(chosen).train()
    return Contender(lambda: method({"views": views}, 0.0)["loss"], as_fit(method))


def lightly(chosen: SimCLRConfig, views: list[Tensor]) -> Contender:
    """lightly's SimCLR example (examples/pytorch/simclr.py) on the same network."""
    import torchvision
    from lightly.loss import NTXentLoss
    from lightly.models.modules import SimCLRProjectionHead

    resnet = getattr(torchvision.models, chosen.backbone)()
    d = resnet.fc.in_features
    resnet.fc = nn.Identity()
    if chosen.small_stem:
        resnet.conv1, resnet.maxpool = nn.Conv2d(3, 64, 3, 1, 1, bias=False), nn.Identity()
    model = nn.Sequential(resnet, SimCLRProjectionHead(d, d, chosen.projection)).train()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9, weight_decay=1e-6)
    criterion = NTXentLoss(temperature=chosen.temperature)
    first, second = (view / 255 for view in views)  # the loader's work
    return Contender(lambda: criterion(model(first), model(second)), lambda: follow(optimizer))


if __name__ == "__main__":
    main()
