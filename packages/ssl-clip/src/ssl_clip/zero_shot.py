"""Classes without training: images against texts that name them (section 3.1 of the paper)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from ssl_clip.clip import CLIP
from ssl_core.errors import InputError
from ssl_train.evaluate.accuracy import mean_per_class, top1

TEMPLATES = ("a photo of a {}", "a picture of a {}", "a close-up of a {}", "a small {}", "a large {}", "{}")


class ZeroShotClassifier:
    """Labels as directions: the mean of a label's texts, one for each template, of length 1.

    `templates` are texts with a `{}` for the label; `weights` is (d, labels). Raises InputError for
    fewer than two labels, the same label twice, or a template without a place for it.
    """

    def __init__(self, clip: CLIP, labels: Sequence[str], templates: Sequence[str] | None = None) -> None:
        templates = TEMPLATES if templates is None else tuple(templates)
        if len(labels) < 2 or len(set(labels)) < len(labels):
            raise InputError(f"zero-shot classes need two or more different labels, got {list(labels)}")
        if wrong := [template for template in templates if template.count("{}") != 1] or (not templates and ["none"]):
            raise InputError(f"a template has one {{}} for the label: {wrong[0]!r}")
        self.clip, self.labels, self.templates = clip, list(labels), templates
        with torch.inference_mode():
            texts = [clip.encode_text([t.format(label) for t in templates]) for label in labels]  # templates d each
            directions = [F.normalize(each.mean(0), dim=0) for each in texts]
        self.weights = torch.stack(directions, 1)  # d labels

    @torch.inference_mode()
    def predict_proba(self, images: Tensor) -> Tensor:
        """(b, labels): softmax over the labels; under the sigmoid loss one sigmoid for each."""
        logits = self.clip.logits_of(self.clip.encode_image(images), self.weights.T)
        return logits.softmax(1) if self.clip.logit_bias is None else logits.sigmoid()


def top_accuracies(scores: Tensor, labels: Tensor) -> dict[str, float]:
    """{"top1", "top5", "mean_per_class"} of scores (n, classes); top5 with more than 5 classes."""
    order = scores.topk(min(5, scores.shape[1]), 1).indices
    top5 = {"top5": (order == labels[:, None]).any(1).float().mean().item()} if scores.shape[1] > 5 else {}
    return {"top1": top1(order[:, 0], labels), **top5, "mean_per_class": mean_per_class(order[:, 0], labels)}
