"""Fine-tuning: the whole encoder trained on labels, and the same network from scratch beside it.

A ViT follows MAE (arXiv 2111.06377, appendix A.2, table 9): mean of the patch tokens, LayerNorm, a
linear head that starts at 2e-5; layer-wise learning-rate decay, drop path, RandAugment, random
erasing, mixup, cutmix, label smoothing. The encoder's own last LayerNorm is not used.

A ResNet follows SimCLR (arXiv 2002.05709, appendix B.5): SGD with Nesterov momentum at 0.05 for a
batch of 256, no warm-up, no weight decay, random crops and flips alone. Batch norm stays in
training mode: it normalises by the statistics of the whole batch, and its running statistics
become those of the labelled data.

The weights of the last epoch count. Nothing is chosen on the test data.
"""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ssl_core.bounds import Whole
from ssl_core.config import TrainConfig, to_dict
from ssl_core.device import pick_device, pick_precision, seed_step
from ssl_core.pixels import normalize
from ssl_core.vit import DropPath
from ssl_train.classifier import Classifier
from ssl_train.data.names import digest
from ssl_train.data.sources import Source
from ssl_train.data.split import Subset
from ssl_train.data.views import eval_view, random_flip, random_resized_crop
from ssl_train.errors import EvaluationError
from ssl_train.evaluate.accuracy import mean_per_class, top1
from ssl_train.evaluate.evaluate import check_apart, check_classes
from ssl_train.evaluate.features import extract
from ssl_train.fit import fit
from ssl_train.options import RunOptions
from ssl_train.run import open_run


@dataclass(frozen=True, kw_only=True)
class FinetuneConfig(TrainConfig):
    """ViT-B's row of the protocol; L and H use base_lr 1e-3, layer_decay 0.75, drop_path 0.2 and
    0.3, 50 epochs."""

    epochs: float = 100
    batch_size: int = 1024
    base_lr: float = 5e-4
    min_lr: float = 1e-6
    warmup_epochs: float = 5
    layer_decay: float = 0.65
    """learning rate of a layer over that of the one above it"""
    drop_path: float = 0.1
    """largest rate of the blocks' drop path"""
    smoothing: float = 0.1
    """share of the target spread over all classes"""
    mixup: float = 0.8
    """mixup's beta parameter; 0 is off"""
    cutmix: float = 1.0
    """cutmix's beta parameter; 0 is off"""
    erase: float = 0.25
    """probability that a rectangle is erased"""
    rand_augment: Whole = 9
    """magnitude of RandAugment's two operations; 0 is off"""


RESNET: dict[str, Any] = {
    "optimizer": "sgd", "base_lr": 0.05, "min_lr": 0.0, "warmup_epochs": 0.0, "weight_decay": 0.0, "layer_decay": 1.0,
    "drop_path": 0.0, "smoothing": 0.0, "mixup": 0.0, "cutmix": 0.0, "erase": 0.0, "rand_augment": 0,
}  # fmt: skip
"""What a ResNet has instead."""
EPOCHS = {"vit": 100.0, "resnet": 60.0}
"""MAE's for a ViT-B, and SimCLR's for 1 % of ImageNet; for 10 % they are 30."""


class FineTune(nn.Module):
    """A classifier as a method that `fit` trains. Its head is initialised here."""

    def __init__(self, network: Classifier, config: FinetuneConfig) -> None:
        super().__init__()
        self.network, self.config, self.classes = network, config, len(network.config.classes)
        resnet = network.is_resnet
        self.accumulates = not resnet  # batch norm spans the batch
        self.blocks = [] if resnet else list(network.encoder.blocks)
        for i, block in enumerate(self.blocks):
            block.drop_path = DropPath(config.drop_path * i / max(1, len(self.blocks) - 1))
        head = network.fc if resnet else network.head
        nn.init.trunc_normal_(head.weight, std=0.01 if resnet else 2e-5)
        nn.init.zeros_(head.bias)

    def forward(self, batch: dict[str, Any], progress: float) -> dict[str, Tensor]:
        """Soft cross-entropy; mixup or cutmix is drawn once per batch."""
        images: Any = self.network.config.network
        images, target = self._mix(normalize(batch["views"][0], images.mean, images.std), batch["label"])
        return {"loss": torch.sum(-target * F.log_softmax(self.network(images).float(), -1), -1).mean()}

    def _mix(self, images: Tensor, label: Tensor) -> tuple[Tensor, Tensor]:
        from torchvision.transforms.v2 import CutMix, MixUp

        kinds = [
            kind(alpha=alpha, num_classes=self.classes)
            for kind, alpha in ((MixUp, self.config.mixup), (CutMix, self.config.cutmix))
            if alpha > 0
        ]
        if kinds:
            images, target = kinds[int(torch.randint(len(kinds), ()))](images, label)
        else:
            target = F.one_hot(label, self.classes).float()
        return images, target * (1 - self.config.smoothing) + self.config.smoothing / self.classes

    def param_groups(self, config: FinetuneConfig) -> list[dict[str, Any]]:
        """Groups by layer: lr_scale = decay^(depth + 1 - layer), 0 for embeddings, i + 1 for block
        i; no decay of 1-D tensors, CLS and positions. SGD has Nesterov's momentum."""
        depth, sgd = len(self.blocks), {"nesterov": True} if config.optimizer == "sgd" else {}
        groups: dict[tuple[int, bool], dict[str, Any]] = {}
        for name, parameter in self.network.named_parameters():
            if not parameter.requires_grad:
                continue
            layer = layer_of(name, depth)
            decayed = parameter.ndim > 1 and not name.endswith(("cls_token", "pos_embed"))
            rates = {
                "weight_decay": config.weight_decay if decayed else 0.0,
                "lr_scale": config.layer_decay ** (depth + 1 - layer),
            }
            groups.setdefault((layer, decayed), {"params": [], **rates, **sgd})["params"].append((name, parameter))
        return list(groups.values())


def layer_of(name: str, depth: int) -> int:
    """0 for CLS, positions and patch projection, i + 1 for block i, depth + 1 for the rest, BEiT's
    shared table of relative positions among it (as in its code)."""
    if name.startswith("encoder.blocks."):
        return int(name.split(".")[2]) + 1
    return 0 if name.startswith("encoder.") and not name.startswith("encoder.rel_pos_bias.") else depth + 1


@dataclass(frozen=True)
class FinetuneView:
    """Random crop, flip, RandAugment (2 operations of this magnitude) and erasing, all from the
    sample's own stream."""

    size: tuple[int, int]
    erase: float
    magnitude: int

    def __call__(self, sample: dict[str, Any], rng: np.random.Generator) -> dict[str, Any]:
        from torchvision.transforms.v2 import InterpolationMode, RandAugment

        image = random_flip(random_resized_crop(sample["image"], rng, self.size, (0.08, 1.0)), rng)
        if image.shape[0] in (1, 3) and self.magnitude:
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(int(rng.integers(2**62)))
                image = RandAugment(2, self.magnitude, interpolation=InterpolationMode.BILINEAR)(image)
        return {"views": [random_erase(image, rng, self.erase).contiguous()]}


def random_erase(image: Tensor, rng: np.random.Generator, p: float) -> Tensor:
    """uint8 (c, h, w) with, at probability `p`, a rectangle of 2 to 33 % of the area filled with
    noise (arXiv 1708.04896)."""
    if rng.random() >= p:
        return image
    height, width = image.shape[1:]
    area, aspect = height * width * rng.uniform(0.02, 1 / 3), np.exp(rng.uniform(np.log(0.3), np.log(1 / 0.3)))
    h, w = min(height, round(np.sqrt(area * aspect))), min(width, round(np.sqrt(area / aspect)))
    top, left = int(rng.integers(height - h + 1)), int(rng.integers(width - w + 1))
    image = image.clone()
    noise = rng.integers(0, 256, (image.shape[0], h, w), dtype=np.uint8)
    image[:, top : top + h, left : left + w] = torch.from_numpy(noise)
    return image


def finetune(
    network: Classifier, train: Source, test: Source, config: FinetuneConfig, folder: Path, *, options: RunOptions
) -> dict[str, float]:
    """Top-1 and mean per class on `test` of `network` fine-tuned on `train`, both with a label for
    every sample; `network` has the trained weights then.

    The checkpoints lie in a folder of their own below `folder` for each encoder, data and settings:
    a run goes on where it was stopped, and no other is taken for it.
    """
    device = pick_device(options.device)
    config = dataclasses.replace(config, precision=pick_precision(config.precision, device))  # type: ignore[arg-type]
    identity = {
        "method": "finetune", "config": to_dict(config), "data_fingerprint": train.fingerprint(),
        "network": to_dict(network.config),
        "weights": digest(*(tensor.detach().cpu().float().numpy() for tensor in network.encoder.state_dict().values())),
    }  # fmt: skip
    folder = folder / digest(json.dumps(identity, sort_keys=True).encode())
    folder.mkdir(parents=True, exist_ok=True)
    run_id = open_run(folder, identity)
    seed_step(config.seed)
    model, images = FineTune(network, config).to(device), network.config.network
    view = FinetuneView(images.size, config.erase, config.rand_augment)  # type: ignore[attr-defined]
    fit(model, train, view, config, folder, run_id=run_id, device=device, options=options)
    rows, labels = extract(network, test, eval_view(images), device=device).labelled()
    predicted = rows.argmax(1)  # of equal ones the first
    return {"top1": top1(predicted, labels), "mean_per_class": mean_per_class(predicted, labels), "n": len(labels)}


def compare(
    result: dict[str, Any],
    methods: dict[str, Any],
    data: tuple[Source, Source],
    folder: Path,
    *,
    epochs: float | None,
    options: RunOptions,
) -> dict[str, Any]:
    """`result` of `evaluate` with a figure `finetune` for each of `methods`; only "pretrained" has
    lower rates below, and is saved in `folder/finetuned`.

    `data` are the training and the test source, whose samples without a label are left out. Raises
    EvaluationError if they are the same samples or have different classes.
    """
    check_apart(*data)
    if any(source.labels is None or source.labels.ndim != 1 for source in data):
        raise EvaluationError("fine-tuning is for one label a sample, not for findings that occur together")
    train, test = (labelled(source) for source in data)
    check_classes(train.classes, test.classes, train.labels.tolist(), test.labels.tolist())
    classes = train.classes or [str(label) for label in range(int(train.labels.max()) + 1)]
    rows = {row["features"]: dict(row) for row in result["rows"]}
    protocol = {**result["protocol"], "finetune": {}}
    for name, method in methods.items():
        network = Classifier.of(method, classes)
        config = settings(network, len(train), epochs, pretrained=name == "pretrained")
        own = folder / "finetune" / name.replace(" ", "-")
        scores = finetune(network, train, test, config, own, options=options)
        row = rows.setdefault(name, {"features": name})
        row["finetune"] = scores["top1"]
        row.setdefault("details", {})["finetune"] = scores
        if name == "pretrained":
            network.save_pretrained(folder / "finetuned")
            protocol = {"train": {"n": len(train)}, "test": {"n": scores["n"]}} | protocol
            protocol["finetune"] = {"config": to_dict(config), "chosen": "the last epoch"}
        else:
            protocol["finetune"]["scratch"] = {"layer_decay": config.layer_decay}
    return {**result, "protocol": protocol, "rows": list(rows.values())}


def labelled(source: Source) -> Any:
    """The samples of `source` that have a label."""
    assert source.labels is not None  # `Opened.labelled` has seen to it
    return Subset(source, np.flatnonzero(source.labels >= 0))


def settings(network: Classifier, samples: int, epochs: float | None, *, pretrained: bool) -> FinetuneConfig:
    """The protocol of the encoder, for so many samples: at least 8 steps an epoch.

    From scratch all layers of a ViT have the same rate.
    """
    batch = min(1024, 2 ** int(np.log2(max(2, samples // 8))))
    if network.is_resnet:
        return FinetuneConfig(**RESNET, epochs=epochs or EPOCHS["resnet"], batch_size=batch)
    epochs = epochs or EPOCHS["vit"]
    decay = FinetuneConfig.layer_decay if pretrained else 1.0
    return FinetuneConfig(epochs=epochs, warmup_epochs=epochs / 20, batch_size=batch, layer_decay=decay)
