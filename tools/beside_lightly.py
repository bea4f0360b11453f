"""lightly's SimCLR, MoCo, BYOL, SimSiam or DINO instead of ours, on the built-in scenes.

    python tools/beside_lightly.py byol

Data, views, the encoder's first weights, optimiser, schedule and number of steps come from our
`demo` preset. Heads, loss, queue, centre and moving average are lightly's, put together as in its
examples. Compare the printed figures with the table of `tools/learns.py`. Both runs log the k-NN
accuracy of their checkpoints in metrics.jsonl.
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable
from typing import Any

import torch
from learns import RECIPES, changed, flags
from lightly.loss import DINOLoss, NegativeCosineSimilarity, NTXentLoss
from lightly.models.modules import heads
from lightly.models.utils import update_momentum
from torch import Tensor, nn

from ssl_core.device import pick_device, seed_step
from ssl_core.method import load
from ssl_core.pixels import normalize
from ssl_core.schedule import cosine
from ssl_train.evaluate.evaluate import evaluate
from ssl_train.fit import fit
from ssl_train.opened import Opened
from ssl_train.probe import Probe

LR = {"byol": 4.0}
"""lightly averages 1 - cos over both directions; the paper sums 2 - 2 cos, four times as much."""


class Peer(nn.Module):
    """What `fit` trains: our encoder under lightly's heads and loss."""

    def __init__(self, config: Any, encoder: nn.Module, features: int) -> None:
        super().__init__()
        self.config, self.encoder, self.features = config, encoder, features

    def encode(self, images: Tensor) -> Tensor:
        return self.encoder(normalize(images, self.config.mean, self.config.std))

    def follow(self, pairs: list[tuple[nn.Module, nn.Module]], momentum: float) -> None:
        for online, target in pairs:
            update_momentum(online, target, m=momentum)


class SimCLR(Peer):
    def __init__(self, config: Any, encoder: nn.Module, features: int) -> None:
        super().__init__(config, encoder, features)
        self.head = heads.SimCLRProjectionHead(features, features, config.projection)
        self.criterion = NTXentLoss(temperature=config.temperature)

    def forward(self, batch: dict[str, Any], progress: float) -> dict[str, Tensor]:
        first, second = (self.head(self.encode(view)) for view in batch["views"])
        return {"loss": self.criterion(first, second)}


class MoCo(Peer):
    def __init__(self, config: Any, encoder: nn.Module, features: int) -> None:
        super().__init__(config, encoder, features)
        self.head = heads.MoCoProjectionHead(features, features, config.projection)
        self.keys = copy.deepcopy(nn.ModuleList([self.encoder, self.head])).requires_grad_(False)
        self.criterion = NTXentLoss(config.temperature, memory_bank_size=(config.queue, config.projection))

    def forward(self, batch: dict[str, Any], progress: float) -> dict[str, Tensor]:
        query, key = batch["views"]
        with torch.no_grad():
            encoder, head = self.keys
            k = head(encoder(normalize(key, self.config.mean, self.config.std)))
        return {"loss": self.criterion(self.head(self.encode(query)), k)}

    def after_step(self, progress: float) -> None:
        encoder, head = self.keys
        self.follow([(self.encoder, encoder), (self.head, head)], self.config.ema)


class BYOL(Peer):
    def __init__(self, config: Any, encoder: nn.Module, features: int) -> None:
        super().__init__(config, encoder, features)
        self.projector = heads.BYOLProjectionHead(features, config.hidden, config.projection)
        self.predictor = heads.BYOLPredictionHead(config.projection, config.hidden, config.projection)
        self.target = copy.deepcopy(nn.ModuleList([self.encoder, self.projector])).requires_grad_(False)
        self.criterion = NegativeCosineSimilarity()

    def forward(self, batch: dict[str, Any], progress: float) -> dict[str, Tensor]:
        views = [normalize(view, self.config.mean, self.config.std) for view in batch["views"]]
        first, second = (self.predictor(self.projector(self.encoder(view))) for view in views)
        encoder, projector = self.target
        with torch.no_grad():
            z1, z2 = (projector(encoder(view)) for view in views)
        return {"loss": 0.5 * (self.criterion(first, z2) + self.criterion(second, z1))}

    def after_step(self, progress: float) -> None:
        encoder, projector = self.target
        pairs = [(self.encoder, encoder), (self.projector, projector)]
        self.follow(pairs, cosine(progress, self.config.ema, 1.0))


class SimSiam(Peer):
    def __init__(self, config: Any, encoder: nn.Module, features: int) -> None:
        super().__init__(config, encoder, features)
        self.projector = heads.SimSiamProjectionHead(features, config.projection, config.projection)
        self.predictor = heads.SimSiamPredictionHead(config.projection, config.predictor_hidden, config.projection)
        self.criterion = NegativeCosineSimilarity()

    def forward(self, batch: dict[str, Any], progress: float) -> dict[str, Tensor]:
        z1, z2 = (self.projector(self.encode(view)) for view in batch["views"])
        p1, p2 = self.predictor(z1), self.predictor(z2)
        return {"loss": 0.5 * (self.criterion(p1, z2.detach()) + self.criterion(p2, z1.detach()))}


class LightlyDINO(Peer):
    def __init__(self, config: Any, encoder: nn.Module, features: int) -> None:
        super().__init__(config, encoder, features)
        widths = (features, config.head_hidden, config.bottleneck, config.prototypes)
        self.head, head = (
            heads.DINOProjectionHead(*widths, batch_norm=config.head_bn, norm_last_layer=config.norm_last_layer)
            for _ in range(2)
        )
        head.load_state_dict(self.head.state_dict())
        self.teacher = nn.ModuleList([copy.deepcopy(self.encoder), head]).requires_grad_(False)
        self.criterion = DINOLoss(output_dim=config.prototypes, student_temp=config.student_temp)

    def forward(self, batch: dict[str, Any], progress: float) -> dict[str, Tensor]:
        views = [normalize(view, self.config.mean, self.config.std) for view in batch["views"]]
        encoder, head = self.teacher
        with torch.no_grad():
            targets = [head(encoder(view)) for view in views[: self.config.global_crops]]
        student = [self.head(self.encoder(view)) for view in views]
        return {"loss": self.criterion(targets, student, teacher_temp=self.config.teacher_temp)}

    def after_step(self, progress: float) -> None:
        encoder, head = self.teacher
        momentum = cosine(progress, self.config.teacher_momentum, 1.0)
        self.follow([(self.encoder, encoder), (self.head, head)], momentum)

    def encode(self, images: Tensor) -> Tensor:
        """The teacher's features, as in our DINO."""
        return self.teacher[0](normalize(images, self.config.mean, self.config.std))


PEERS: dict[str, Callable[..., Peer]] = {
    "simclr": SimCLR,
    "moco": MoCo,
    "byol": BYOL,
    "simsiam": SimSiam,
    "dino": LightlyDINO,
}


def main() -> None:
    parser = flags(__doc__, "runs/beside-lightly")
    parser.add_argument("method", choices=[*PEERS])
    args = parser.parse_args()
    recipe = RECIPES[args.method]
    for seed in args.seeds:
        config = dataclasses.replace(changed(recipe.preset("demo"), args.set), seed=seed)
        config = dataclasses.replace(config, base_lr=config.base_lr * LR.get(args.method, 1.0))
        source, test, _ = Opened(recipe, config, None).labelled()
        view, device = load(recipe.eval_view)(config), pick_device()
        seed_step(seed)
        ours = load(recipe.method)(config)
        backbone = ours.student.backbone if args.method == "dino" else ours.encoder
        peer = PEERS[args.method](config, backbone, backbone.features).to(device)
        folder = args.out / args.method / str(seed)
        folder.mkdir(parents=True, exist_ok=True)
        views, probe = load(recipe.views)(config), Probe(source, view, device=device)
        fit(peer, source, views, config, folder, run_id="lightly", device=device, probe=probe)
        for row in evaluate({"lightly": peer.eval().encode}, source, test, view, data="scenes", device=device)["rows"]:
            print(
                f"seed {seed}: linear {row['linear']:.3f}, k-NN {row['knn']:.3f}, 5-shot {row['fewshot']['mean']:.3f}"
            )


if __name__ == "__main__":
    main()
