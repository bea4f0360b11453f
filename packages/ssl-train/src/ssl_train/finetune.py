"""Fine-tuning: the whole encoder trained on labels, and the same network from scratch beside it.

MAE's protocol (arXiv 2111.06377, appendix A.2, table 9): mean of the patch tokens, LayerNorm, a
linear head that starts at 2e-5; layer-wise learning-rate decay, drop path, RandAugment, random
erasing, mixup, cutmix, label smoothing. The encoder's own last LayerNorm is not used. Last epoch,
no choice on the test data.
"""

from __future__ import annotations

import copy
import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ssl_core.config import TrainConfig, to_dict
from ssl_core.device import pick_device, pick_precision, seed_step
from ssl_core.errors import DataError, InputError
from ssl_core.pixels import normalize
from ssl_core.vit import DropPath, ViT
from ssl_train.data.names import digest
from ssl_train.data.views import eval_view, random_flip, random_resized_crop
from ssl_train.evaluate.accuracy import mean_per_class, top1
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


class FineTune(nn.Module):
    """A ViT encoder with a classification head, as a method that `fit` trains."""

    accumulates = True

    def __init__(self, encoder: ViT, classes: int, config: FinetuneConfig, image: Any) -> None:
        super().__init__()
        self.config, self.image, self.classes = config, image, classes
        self.encoder = copy.deepcopy(encoder)
        if not any(p.requires_grad for p in self.encoder.parameters()):  # an averaged network, a frozen one
            self.encoder.requires_grad_(True)
        self.encoder.norm = nn.Identity()  # type: ignore[assignment]
        for i, block in enumerate(self.encoder.blocks):
            block.drop_path = DropPath(config.drop_path * i / max(1, len(self.encoder.blocks) - 1))
        self.fc_norm = nn.LayerNorm(encoder.dim, eps=encoder.norm.eps)
        self.head = nn.Linear(encoder.dim, classes)
        nn.init.trunc_normal_(self.head.weight, std=2e-5)
        nn.init.zeros_(self.head.bias)

    def encode(self, images: Tensor) -> Tensor:
        """Logits (b, classes)."""
        tokens = self.encoder.tokens(normalize(images, self.image.mean, self.image.std))
        return self.head(self.fc_norm(tokens[:, 1:].mean(1)))

    def forward(self, batch: dict[str, Any], progress: float) -> dict[str, Tensor]:
        """Soft cross-entropy; mixup or cutmix is drawn once per batch."""
        images, target = self._mix(normalize(batch["views"][0], self.image.mean, self.image.std), batch["label"])
        return {"loss": torch.sum(-target * F.log_softmax(self.encode(images).float(), -1), -1).mean()}

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
        i; no decay of 1-D tensors, CLS and positions."""
        depth = len(self.encoder.blocks)
        groups: dict[tuple[int, bool], dict[str, Any]] = {}
        for name, parameter in self.named_parameters():
            if not parameter.requires_grad:
                continue
            layer = layer_of(name, depth)
            decayed = parameter.ndim > 1 and not name.endswith(("cls_token", "pos_embed"))
            rates = {
                "weight_decay": config.weight_decay if decayed else 0.0,
                "lr_scale": config.layer_decay ** (depth + 1 - layer),
            }
            groups.setdefault((layer, decayed), {"params": [], **rates})["params"].append((name, parameter))
        return list(groups.values())


def layer_of(name: str, depth: int) -> int:
    """0 for CLS, positions and patch projection, i + 1 for block i, depth + 1 for the rest."""
    if name.startswith("encoder.blocks."):
        return int(name.split(".")[2]) + 1
    return 0 if name.startswith("encoder.") else depth + 1


@dataclass(frozen=True)
class FinetuneView:
    """Random crop, flip, RandAugment (2 operations of magnitude 9) and erasing, all from the
    sample's own stream."""

    size: tuple[int, int]
    erase: float

    def __call__(self, sample: dict[str, Any], rng: np.random.Generator) -> dict[str, Any]:
        from torchvision.transforms.v2 import InterpolationMode, RandAugment

        image = random_flip(random_resized_crop(sample["image"], rng, self.size, (0.08, 1.0)), rng)
        if image.shape[0] in (1, 3):
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(int(rng.integers(2**62)))
                image = RandAugment(2, 9, interpolation=InterpolationMode.BILINEAR)(image)
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
    encoder: ViT, image: Any, train: Any, test: Any, config: FinetuneConfig, folder: Path, *, options: RunOptions
) -> dict[str, float]:
    """Top-1 and mean per class on `test` of `encoder` fine-tuned on `train`.

    `image` is the method's config, for size, mean and std. The checkpoints lie in a folder of their
    own below `folder` for each encoder, data and settings: a run goes on where it was stopped, and
    no other is taken for it. Raises DataError when a sample has no label.
    """
    if train.labels is None or (train.labels < 0).any():
        raise DataError("fine-tuning needs a label for every training sample")
    device = pick_device(options.device)
    config = dataclasses.replace(config, precision=pick_precision(config.precision, device))  # type: ignore[arg-type]
    weights = digest(*(tensor.detach().cpu().float().numpy() for tensor in encoder.state_dict().values()))
    identity = {
        "method": "finetune", "config": to_dict(config), "data_fingerprint": train.fingerprint(),
        "images": to_dict(image), "weights": weights,
    }  # fmt: skip
    folder = folder / digest(json.dumps(identity, sort_keys=True).encode())
    folder.mkdir(parents=True, exist_ok=True)
    run_id = open_run(folder, identity)
    seed_step(config.seed)
    model = FineTune(encoder, int(train.labels.max()) + 1, config, image).to(device)
    view = FinetuneView(image.size, config.erase)
    fit(model, train, view, config, folder, run_id=run_id, device=device, options=options)
    logits = extract(model.encode, test, eval_view(image), device=device)
    rows, labels = logits.labelled()
    predicted = rows.argmax(1)
    return {"top1": top1(predicted, labels), "mean_per_class": mean_per_class(predicted, labels)}


def check_encoder(method: Any) -> None:
    """Raises InputError for an encoder that is no ViT, which this protocol needs for its rates by
    layer."""
    if not isinstance(getattr(method, "encoder", None), ViT):
        raise InputError("the protocol finetune is that of a ViT, and this encoder is none: leave it out")


def compare(
    result: dict[str, Any],
    encoders: dict[str, ViT],
    image: Any,
    data: tuple[Any, Any],
    folder: Path,
    *,
    epochs: float,
    options: RunOptions,
) -> dict[str, Any]:
    """`result` of `evaluate` with a figure `finetune` for each of `encoders`; only "pretrained" has
    lower rates below.

    `image` is the method's config, `data` the training and the test source.
    """
    train, test = data
    batch = min(1024, 2 ** int(np.log2(max(2, len(train) // 8))))
    config = FinetuneConfig(epochs=epochs, warmup_epochs=epochs / 20, batch_size=batch)
    scratch = dataclasses.replace(config, layer_decay=1.0)
    rows = {row["features"]: dict(row) for row in result["rows"]}
    for name, encoder in encoders.items():
        settings = config if name == "pretrained" else scratch
        own = folder / name.replace(" ", "-")
        scores = finetune(encoder, image, train, test, settings, own, options=options)
        row = rows.setdefault(name, {"features": name})
        row["finetune"] = scores["top1"]
        row.setdefault("details", {})["finetune"] = scores
    settings = {"config": to_dict(config), "scratch": {"layer_decay": scratch.layer_decay}}
    return {**result, "protocol": {**result["protocol"], "finetune": settings}, "rows": list(rows.values())}
