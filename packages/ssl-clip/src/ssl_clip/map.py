"""Images and texts in one picture, and the gap between them.

Embeddings of images and of texts lie in two separate cones (Liang et al. 2022, arXiv 2203.02053): the distance between
their means is the modality gap. A joint projection shows this gap and hardly anything else; with each kind's mean taken
away, what belongs together lies together.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ssl_core.device import pick_device
from ssl_core.errors import BadSample, DataError, InputError
from ssl_train.data.pictures import rgb, sample_images
from ssl_train.data.readable import readable
from ssl_train.data.views import eval_view

if TYPE_CHECKING:
    from ssl_clip.clip import CLIP
    from ssl_clip.verbs import Map


def need_viz(*modules: str) -> None:
    """InputError where one of `modules`, of the extra `viz`, is missing, before anything is computed."""
    from importlib.util import find_spec

    if missing := [name for name in modules if find_spec(name) is None]:
        raise InputError(f'pictures need {missing[0]}: pip install "ssl-clip[viz]"')


def modality_gap(image: Tensor, text: Tensor) -> float:
    """Distance between the means of images (n, d) and texts (m, d) of length 1; 0 … 2."""
    return (image.mean(0) - text.mean(0)).norm().item()


def centred(features: Tensor) -> Tensor:
    """Features (n, d) without their mean, of length 1 again."""
    return F.normalize(features - features.mean(0), dim=1)


def project(features: Tensor, method: Literal["tsne", "pca"] = "tsne") -> np.ndarray:
    """(n, d) -> (n, 2). t-SNE by cosine, begun at the principal components. Raises InputError for fewer than four rows."""
    n = len(features)
    if n < 4:
        raise InputError(f"a map needs four images and texts or more, got {n}")
    if method == "pca":
        left, values, _ = torch.linalg.svd(features - features.mean(0), full_matrices=False)
        return (left[:, :2] * values[:2]).numpy()
    from sklearn.manifold import TSNE

    perplexity = min(30, (n - 1) / 3)
    return TSNE(metric="cosine", init="pca", perplexity=perplexity, random_state=0).fit_transform(features.numpy())


@torch.inference_mode()
def embedding_map(
    clip: CLIP, images: Tensor, texts: Sequence[str], method: Literal["tsne", "pca"] = "tsne", *, centre: bool = False
) -> Any:
    """A matplotlib Figure with thumbnails of uint8 images (n, c, h, w) and `texts` where their embeddings lie.

    `centre` takes the mean of each kind away. The gap stands in the title. Raises InputError for fewer than four.
    """
    if images.dtype != torch.uint8:
        raise ValueError(f"the map draws images as they are: give uint8, not {images.dtype}")
    image = clip.encode_image(images.to(clip.logit_scale.device)).float().cpu()
    text = clip.encode_text(texts).float().cpu()
    gap = modality_gap(image, text)
    if centre:
        image, text = centred(image), centred(text)
    places = project(torch.cat([image, text]), method)
    title = f"modality gap {gap:.3f}" + (", taken away here" if centre else "")
    return _figure(images, texts, places, title)


def _figure(images: Tensor, texts: Sequence[str], places: np.ndarray, title: str) -> Any:
    from matplotlib.figure import Figure
    from matplotlib.offsetbox import AnnotationBbox, OffsetImage

    figure = Figure(figsize=(12, 9), layout="constrained")
    axes = figure.subplots()
    axes.scatter(*places.T, s=0)
    for picture, place in zip(rgb(images).permute(0, 2, 3, 1).numpy(), places, strict=False):
        shown = OffsetImage(picture, zoom=36 / max(picture.shape[:2]))
        axes.add_artist(AnnotationBbox(shown, place, frameon=False))
    for text, (x, y) in zip(texts, places[len(images) :], strict=True):
        axes.text(x, y, text, fontsize=7, ha="center", bbox={"facecolor": "#ffe9a8", "edgecolor": "none", "pad": 1})
    axes.set_title(title)
    axes.set_axis_off()
    return figure


def sample_pairs(source: Any, config: Any, count: int) -> tuple[Tensor, list[str]]:
    """(uint8 images (b, c, h, w), their captions, each once) of the first pairs of which both can be read."""
    view, images, texts = eval_view(config), [], []
    for index, sample in readable(source, len(source)):
        try:
            texts.append(source.texts(index)[0])
        except BadSample:
            continue
        images.append(view(sample)["views"][0])
        if len(images) == count:
            break
    if not images:
        raise DataError("no readable image has a caption")
    return torch.stack(images), list(dict.fromkeys(texts))


def run(recipe: Any, args: Map) -> None:
    """The command `map`."""
    from pathlib import Path

    from ssl_clip.clip import CLIP
    from ssl_train.data.split import Opened

    need_viz("matplotlib", *(["sklearn"] if args.method == "tsne" else []))
    clip = CLIP.from_pretrained(args.weights, device=pick_device(args.device))
    source, _ = Opened(recipe, clip.config, args.data, method=clip).shown()
    texts = list(args.texts)
    if texts:
        images = sample_images(source, clip.config, args.number)
    elif hasattr(source, "captions"):
        images, texts = sample_pairs(source, clip.config, args.number)
    else:
        raise InputError(f"{args.data} has no captions: name the texts to draw, --texts dog cat")
    figure = embedding_map(clip, images, texts, args.method, centre=args.centre)
    out = Path(args.out)
    out.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(out, dpi=120)
    print(f"{figure.axes[0].get_title()}; {len(images)} images and {len(texts)} texts in {out}")
