"""Pictures of what a text finds."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch

from ssl_clip.clip import CLIP
from ssl_clip.measure import encode_texts
from ssl_core.pixels import as_float
from ssl_train.data.pictures import save_grid
from ssl_train.data.split import Subset
from ssl_train.data.views import eval_view
from ssl_train.evaluate.features import extract

QUERIES, ANSWERS, POOL = 6, 5, 500


def show(method: CLIP, source: Any, folder: Path) -> dict[str, str]:
    """Write search.png and return {file name: caption}.

    Each row shows the images that fit a caption best; of images without captions, those most like
    an image.
    """
    view, device = eval_view(method.config), method.logit_scale.device
    part = Subset(source, np.arange(min(POOL, len(source))))
    features = extract(method.encode_image, part, view, device=device)
    image, readable = features.features, set(features.names)  # n d
    # Unreadable images have no row in `features`: kept[row] is the index of the others.
    kept = [i for i in range(len(part)) if source.name(i) in readable]
    if hasattr(source, "captions"):
        texts = list(dict.fromkeys(source.texts(i)[0] for i in kept))[:QUERIES]
        query = encode_texts(method, texts).cpu()
        caption = f"each row: the images that fit a text best, with their cosines; the texts: {'; '.join(texts)}"
    else:
        query, texts = image[:QUERIES], [f"like the first image, {name}" for name in features.names[:QUERIES]]
        caption = "each row: an image, and those most like it, with their cosines"
    # Cosines of queries and images; a row of pictures for each query.
    scores, found = (query @ image.T).topk(min(ANSWERS, len(image)), 1)  # q k each
    rows = [torch.stack([view(source.load(kept[i]))["views"][0] for i in row]) for row in found.tolist()]
    said = [
        f"{text}: {' '.join(f'{score:.2f}' for score in row)}" for text, row in zip(texts, scores.tolist(), strict=True)
    ]
    save_grid(as_float(torch.stack(rows)), folder / "search.png", columns=1, labels=said)
    return {"search.png": caption}
