"""The command `classify`: which label fits an image; how often that is right for a folder."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ssl_clip.clip import CLIP
from ssl_clip.figures import confusion_figure, need_viz, save_figure
from ssl_clip.zero_shot import ZeroShotClassifier, top_accuracies
from ssl_core.device import pick_device
from ssl_core.errors import DataError, InputError
from ssl_train.data.files import printable
from ssl_train.data.images import read_image
from ssl_train.data.views import eval_view
from ssl_train.evaluate.features import extract
from ssl_train.opened import Opened

if TYPE_CHECKING:
    from ssl_clip.verbs import Classify


def run(recipe: Any, arguments: Classify) -> dict[str, Any]:
    """The command `classify`."""
    if bool(arguments.images) == (arguments.data is not None):
        raise InputError("give images to classify, or --data with a folder of classes")
    if arguments.data is None:
        method = CLIP.from_pretrained(arguments.weights, device=pick_device(arguments.device))
        return _classify_images(method, arguments)
    # as images alone: a folder of classes may have captions too
    recipe = replace(recipe, source="ssl_train.data.sources:open_images")
    data, how = arguments.data, {"device": arguments.device, "max_pixels": arguments.max_pixels}
    return _classify_folder(Opened.from_weights(recipe, arguments.weights, data=data, **how), arguments)


def read_templates(given: Sequence[str]) -> tuple[str, ...] | None:
    """Templates as typed, or the lines of a file of them; None where none is given."""
    if len(given) == 1 and Path(given[0]).is_file():
        return tuple(line for line in Path(given[0]).read_text(encoding="utf-8").splitlines() if line.strip())
    return tuple(given) or None


def _classify_images(clip: CLIP, arguments: Classify) -> dict[str, Any]:
    """A table of probabilities: a row for each image, a column for each label."""
    classifier = ZeroShotClassifier(clip, arguments.labels, read_templates(arguments.templates))
    view, device = eval_view(clip.config), clip.logit_scale.device
    limit, rows = arguments.max_pixels or clip.config.max_pixels, {}
    width = max(len(printable(path)) for path in arguments.images)
    print(" ".join([" " * width, *(f"{label[:12]:>12}" for label in classifier.labels)]))
    for path in arguments.images:
        try:
            image = view({"image": read_image(path, clip.config.in_channels, limit)})["views"][0]  # c h w
        except Exception as error:  # BadSample carries the reason alone
            raise DataError(f"{printable(path)} cannot be read: {error}") from error
        row = classifier.predict_proba(image[None].to(device))[0].tolist()
        print(" ".join([printable(path).ljust(width), *(f"{100 * p:11.1f}%" for p in row)]))
        rows[path] = dict(zip(classifier.labels, row, strict=True))
    return {"images": rows}


def _classify_folder(opened: Opened, arguments: Classify) -> dict[str, Any]:
    """Accuracies on labelled images, of the test split if there is one, and the confusion matrix as
    a picture."""
    clip, config, data = opened.method, opened.config, arguments.data
    source, which = opened.shown()
    if source.labels is None or not source.classes:
        raise DataError(f"{data} has no classes: one sub-folder for each, or a CSV with a column 'label'")
    # The sub-folders name the classes, unless the labels are given, in their order.
    labels = arguments.labels or tuple(name.replace("_", " ") for name in source.classes)
    if len(labels) != len(source.classes):
        raise InputError(f"{len(labels)} labels for {len(source.classes)} classes: {', '.join(source.classes)}")
    classifier = ZeroShotClassifier(clip, labels, read_templates(arguments.templates))
    features = extract(clip.encode_image, source, eval_view(config), device=clip.logit_scale.device, progress=True)
    image, truth = features.labelled()  # n d, n
    scores = image @ classifier.weights.cpu()  # n labels
    found = {**top_accuracies(scores, truth), "of": which, "images": len(truth), "labels": labels}
    for name, value in top_accuracies(scores, truth).items():
        print(f"{name.replace('_', ' '):15} {100 * value:6.2f} %")
    print(f"measured on {which}")
    print(f"{len(truth)} images, {len(classifier.templates)} templates")
    try:
        need_viz("matplotlib")
    except InputError as error:  # the numbers are printed, and only the picture is missing
        warnings.warn(f"there is no picture of the confusion matrix: {error}", stacklevel=2)
        return found
    save_figure(confusion_figure(scores.argmax(1), truth, labels), arguments.out)
    print(f"confusion matrix in {Path(arguments.out)}")
    return {**found, "confusion": arguments.out}
