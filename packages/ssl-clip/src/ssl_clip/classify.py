"""Classes without labels: images against texts that name them (section 3.1 of the paper, arXiv 2103.00020)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ssl_clip.map import need_viz
from ssl_core.device import pick_device
from ssl_core.errors import DataError, InputError
from ssl_train.data.views import eval_view
from ssl_train.evaluate.accuracy import mean_per_class, top1

if TYPE_CHECKING:
    from ssl_clip.clip import CLIP
    from ssl_clip.verbs import Classify

TEMPLATES = ("a photo of a {}", "a picture of a {}", "a close-up of a {}", "a small {}", "a large {}", "{}")


class ZeroShotClassifier:
    """Labels as directions: each is the mean over templates of its texts' embeddings, of length 1 again.

    `templates` are texts with a `{}` for the label; `weights` is (d, labels). Raises InputError for fewer than two
    labels, the same label twice, or a template without a place for it.
    """

    def __init__(self, clip: CLIP, labels: Sequence[str], templates: Sequence[str] | None = None) -> None:
        templates = TEMPLATES if templates is None else tuple(templates)
        if len(labels) < 2 or len(set(labels)) < len(labels):
            raise InputError(f"zero-shot classes need two or more different labels, got {list(labels)}")
        if wrong := [template for template in templates if template.count("{}") != 1] or (not templates and ["none"]):
            raise InputError(f"a template has one {{}} for the label: {wrong[0]!r}")
        self.clip, self.labels, self.templates = clip, list(labels), templates
        with torch.inference_mode():
            directions = [
                F.normalize(clip.encode_text([t.format(label) for t in templates]).mean(0), dim=0) for label in labels
            ]
        self.weights = torch.stack(directions, 1)

    @torch.inference_mode()
    def predict_proba(self, images: Tensor) -> Tensor:
        """(b, labels): softmax over the labels, or one sigmoid for each under the sigmoid loss, where a row need not sum
        to 1."""
        return self.probabilities(self.clip.encode_image(images))

    def probabilities(self, image: Tensor) -> Tensor:
        """`predict_proba` of encoded images (b, d)."""
        logits = self.clip.logits_of(image, self.weights.T)
        return logits.softmax(1) if self.clip.logit_bias is None else logits.sigmoid()


def top_accuracies(scores: Tensor, labels: Tensor) -> dict[str, float]:
    """{"top1", "top5", "mean_per_class"} of scores (n, classes) for labels (n,); top5 where there are more classes."""
    order = scores.topk(min(5, scores.shape[1]), 1).indices
    top5 = {"top5": (order == labels[:, None]).any(1).float().mean().item()} if scores.shape[1] > 5 else {}
    return {"top1": top1(order[:, 0], labels), **top5, "mean_per_class": mean_per_class(order[:, 0], labels)}


def read_templates(given: Sequence[str]) -> tuple[str, ...] | None:
    """Templates as typed, or the lines of a file of them; None where none is given."""
    if len(given) == 1 and Path(given[0]).is_file():
        return tuple(line for line in Path(given[0]).read_text(encoding="utf-8").splitlines() if line.strip())
    return tuple(given) or None


def run(recipe: Any, args: Classify) -> None:
    """The command `classify`."""
    from ssl_clip.clip import CLIP

    if bool(args.images) == (args.data is not None):
        raise InputError("give images to classify, or --data with a folder of classes")
    clip = CLIP.from_pretrained(args.weights, device=pick_device(args.device))
    if args.data is not None:
        _classify_folder(clip, args)
    else:
        _classify_images(clip, args)


def _classify_images(clip: CLIP, args: Classify) -> None:
    from ssl_train.data.images import read_image

    classifier = ZeroShotClassifier(clip, args.labels, read_templates(args.templates))
    view, device = eval_view(clip.config), clip.logit_scale.device
    width = max(map(len, args.images))
    print(" ".join([" " * width, *(f"{label[:12]:>12}" for label in classifier.labels)]))
    for path in args.images:
        try:
            image = view({"image": read_image(path, clip.config.in_channels)})["views"][0]
        except Exception as error:  # BadSample carries the reason alone
            raise DataError(f"{path} cannot be read: {error}") from error
        row = classifier.predict_proba(image[None].to(device))[0].tolist()
        print(" ".join([path.ljust(width), *(f"{100 * p:11.1f}%" for p in row)]))


def _classify_folder(clip: CLIP, args: Classify) -> None:
    need_viz("matplotlib")
    from ssl_train.data.sources import open_source
    from ssl_train.evaluate.features import extract

    config = clip.config
    source = open_source(args.data, channels=config.in_channels, split="train", size=max(config.size))
    if source.labels is None or not source.classes:
        raise DataError(f"{args.data} has no classes: one sub-folder for each, or a CSV with a column 'label'")
    labels = args.labels or tuple(name.replace("_", " ") for name in source.classes)
    if len(labels) != len(source.classes):
        raise InputError(f"{len(labels)} labels for {len(source.classes)} classes: {', '.join(source.classes)}")
    classifier = ZeroShotClassifier(clip, labels, read_templates(args.templates))
    features = extract(clip.encode_image, source, eval_view(config), device=clip.logit_scale.device, progress=True)
    image, truth = features.labelled()
    scores = image @ classifier.weights.cpu()
    for name, value in top_accuracies(scores, truth).items():
        print(f"{name.replace('_', ' '):15} {100 * value:6.2f} %")
    out = Path(args.out)
    out.parent.mkdir(parents=True, exist_ok=True)
    confusion_figure(scores.argmax(1), truth, list(labels)).savefig(out, dpi=120)
    print(f"{len(truth)} images, {len(classifier.templates)} templates; confusion matrix in {out}")


def confusion_figure(predicted: Tensor, truth: Tensor, labels: list[str]) -> Any:
    """A matplotlib Figure of the confusion matrix (n,) against (n,), each row a class and its shares."""
    from matplotlib.figure import Figure

    n = len(labels)
    counts = torch.bincount(truth * n + predicted, minlength=n * n).view(n, n).float()
    shares = counts / counts.sum(1, keepdim=True).clamp(min=1)
    side = 2.5 + 0.35 * n
    figure = Figure(figsize=(side, side), layout="constrained")
    axes = figure.subplots()
    axes.imshow(shares.numpy(), cmap="Blues", vmin=0, vmax=1)
    axes.set_xticks(range(n), labels, rotation=90)
    axes.set_yticks(range(n), labels)
    axes.set_xlabel("predicted")
    axes.set_ylabel("class")
    if n <= 20:
        for row, column in torch.cartesian_prod(torch.arange(n), torch.arange(n)).tolist():
            share = shares[row, column].item()
            if share >= 0.005:
                colour = "white" if share > 0.5 else "black"
                axes.text(column, row, f"{100 * share:.0f}", ha="center", va="center", color=colour, fontsize=7)
    return figure
