"""Images and texts in one picture, and the gap between them.

Embeddings of images and of texts lie in two separate cones (Liang et al. 2022, arXiv 2203.02053):
the distance between their means is the modality gap. A joint projection shows this gap and little
else. With the mean of each kind taken away, an image lies beside the texts that fit it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ssl_clip.clip import CLIP
from ssl_clip.figures import map_figure, need_viz, save_figure
from ssl_core.errors import BadSample, DataError, InputError
from ssl_train.data.pictures import sample_images
from ssl_train.data.readable import readable
from ssl_train.data.views import eval_view
from ssl_train.opened import Opened

if TYPE_CHECKING:
    from ssl_clip.verbs import Map

Projection = Literal["tsne", "pca"]


def modality_gap(image: Tensor, text: Tensor) -> float:
    """Distance between the means of images (n, d) and texts (m, d) of length 1; 0 … 2."""
    return (image.mean(0) - text.mean(0)).norm().item()


def centred(features: Tensor) -> Tensor:
    """Features (n, d) without their mean, scaled to length 1 again."""
    return F.normalize(features - features.mean(0), dim=1)


def project(features: Tensor, method: Projection = "tsne") -> np.ndarray:
    """(n, d) -> (n, 2) by principal components, or by t-SNE on cosines that starts from them.

    Raises InputError for fewer than four rows.
    """
    n = len(features)
    if n < 4:
        raise InputError(f"a map needs four images and texts or more, got {n}")
    if method == "pca":
        # n d -> n 2: the first two principal components
        left, values, _ = torch.linalg.svd(features - features.mean(0), full_matrices=False)
        return (left[:, :2] * values[:2]).numpy()
    from sklearn.manifold import TSNE

    # With few points the perplexity has to be smaller.
    perplexity = min(30, (n - 1) / 3)
    return TSNE(metric="cosine", init="pca", perplexity=perplexity, random_state=0).fit_transform(features.numpy())


@torch.inference_mode()
def embedding_map(
    clip: CLIP, images: Tensor, texts: Sequence[str], method: Projection = "tsne", *, centre: bool = False
) -> Any:
    """A matplotlib Figure with uint8 images (n, c, h, w) and `texts` where their embeddings lie.

    `centre` takes the mean of each kind away. The title states the gap. Raises InputError for fewer
    than four.
    """
    if images.dtype != torch.uint8:
        raise ValueError(f"the map draws images as they are: give uint8, not {images.dtype}")
    image = clip.encode_image(images.to(clip.logit_scale.device)).float().cpu()  # n d
    text = clip.encode_text(texts).float().cpu()  # m d
    title = f"modality gap {modality_gap(image, text):.3f}" + (", taken away here" if centre else "")
    if centre:
        image, text = centred(image), centred(text)
    return map_figure(images, texts, project(torch.cat([image, text]), method), title)


def sample_pairs(source: Any, config: Any, count: int) -> tuple[Tensor, list[str]]:
    """(uint8 images (b, c, h, w), their captions, each once) of the first readable pairs."""
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


def run(recipe: Any, arguments: Map) -> dict[str, Any]:
    """The command `map`."""
    need_viz("matplotlib", *(["sklearn"] if arguments.method == "tsne" else []))
    data, how = arguments.data, {"device": arguments.device, "max_pixels": arguments.max_pixels}
    opened = Opened.from_weights(recipe, arguments.weights, data=data, **how)
    clip, (source, _) = opened.method, opened.shown()
    # Texts that were given with any images, or the images' own captions.
    texts = list(arguments.texts)
    if texts:
        images = sample_images(source, clip.config, arguments.number)
    elif hasattr(source, "captions"):
        images, texts = sample_pairs(source, clip.config, arguments.number)
    else:
        raise InputError(f"{arguments.data} has no captions: name the texts to draw, --texts dog cat")
    figure = embedding_map(clip, images, texts, arguments.method, centre=arguments.centre)
    save_figure(figure, arguments.out)
    print(f"{figure.axes[0].get_title()}; {len(images)} images and {len(texts)} texts in {arguments.out}")
    return {"map": arguments.out, "images": len(images), "texts": texts, "title": figure.axes[0].get_title()}
