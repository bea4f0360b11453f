"""What a model of images and texts is measured by: retrieval both ways, zero-shot classes, and the order of words."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ssl_clip.classify import ZeroShotClassifier, top_accuracies
from ssl_train.data.views import eval_view
from ssl_train.evaluate.features import extract

if TYPE_CHECKING:
    from ssl_clip.clip import CLIP

TOPS = (1, 5, 10)
ROWS = 512
"""Rows of the score matrix that are held at a time."""
ORDERED = re.compile(r"a (?P<size>\w+) (?P<first>.+) (?P<relation>left of|right of|above|below) a (?P<second>.+)")
OPPOSITE = {"left of": "right of", "right of": "left of", "above": "below", "below": "above"}


def retrieval(image: Tensor, text: Tensor, pairs: Tensor) -> dict[str, dict[str, float]]:
    """Ranks of what belongs together, both ways: {"image_to_text": {"R@1", …, "median_rank", "chance_R@1", …}, …}.

    `image` (n, d) and `text` (m, d) have length 1, `pairs` (p, 2) says which image has which text; an image may have
    several texts and a text several images. A query's rank is 1 + the number of wrong answers that score at least as
    high as its best right one, so that ties count against the model; R@k is the share of ranks up to k.
    """
    there, back = (image, text, pairs), (text, image, pairs.flip(1))
    return {"image_to_text": _one_way(*there), "text_to_image": _one_way(*back)}


def _one_way(queries: Tensor, answers: Tensor, pairs: Tensor) -> dict[str, float]:
    ranks, chances = [], []
    order = pairs[pairs[:, 0].argsort()]
    for start in range(0, len(queries), ROWS):
        stop = min(start + ROWS, len(queries))
        here = order[(order[:, 0] >= start) & (order[:, 0] < stop)]
        right = torch.zeros(stop - start, len(answers), dtype=torch.bool, device=queries.device)
        right[here[:, 0] - start, here[:, 1]] = True
        scores = queries[start:stop] @ answers.T
        best = scores.masked_fill(~right, -torch.inf).amax(1, keepdim=True)
        rank = 1 + ((scores >= best) & ~right).sum(1)
        asked = right.any(1)
        ranks.append(rank[asked])
        chances.append(right.sum(1)[asked])
    rank = torch.cat(ranks).float()
    counts, m = torch.cat(chances).tolist(), len(answers)
    found = {f"R@{k}": (rank <= k).float().mean().item() for k in TOPS}
    chance = {f"chance_R@{k}": sum(_luck(m, count, k) for count in counts) / len(counts) for k in TOPS}
    return {**found, "median_rank": rank.median().item(), "mean_rank": rank.mean().item(), **chance}


def _luck(answers: int, right: int, k: int) -> float:
    """Chance that k of `answers` drawn blindly hold one of the `right` ones."""
    return 1 - math.comb(answers - right, k) / math.comb(answers, k) if k < answers else 1.0


@torch.inference_mode()
def measure(method: CLIP, source: Any) -> dict[str, Any]:
    """Figures of `source`: retrieval where it has captions, zero-shot accuracy where it has classes, order of words where
    the captions say it; "summary" holds lines for the terminal."""
    method.eval()
    device = method.logit_scale.device
    features = extract(method.encode_image, source, eval_view(method.config), device=device)
    image = features.features.to(device)
    result: dict[str, Any] = {"images": len(image), "summary": [f"{len(image)} images"]}
    if hasattr(source, "captions"):
        kept = {name: i for i, name in enumerate(features.names)}
        owned = [(kept[source.name(i)], source.texts(i)) for i in range(len(source)) if source.name(i) in kept]
        distinct = list(dict.fromkeys(text for _, texts in owned for text in texts))
        number = {text: i for i, text in enumerate(distinct)}
        text = encode_texts(method, distinct)
        pairs = torch.tensor([(i, number[caption]) for i, texts in owned for caption in texts], device=device)
        result |= {"texts": len(distinct), "retrieval": retrieval(image, text, pairs)}
        result["summary"] += _retrieval_lines(len(distinct), result["retrieval"])
        if orders := order_of_words(method, image, [(i, texts[0]) for i, texts in owned]):
            result["order"] = orders
            result["summary"].append("order of words (chance 50 %): " + ", ".join(
                f"{name} {100 * share:.1f} %" for name, share in orders.items()))  # fmt: skip
    if features.labels is not None and features.classes and (features.labels >= 0).any():
        classifier = ZeroShotClassifier(method, features.classes, getattr(source, "templates", None))
        scores, labels = image @ classifier.weights, features.labels.to(device)
        known = labels >= 0
        result["zero_shot"] = top_accuracies(scores[known], labels[known])
        shown = ", ".join(f"{name} {100 * value:.1f} %" for name, value in result["zero_shot"].items())
        result["summary"].append(f"zero-shot over {len(features.classes)} classes: {shown}")
    return result


def encode_texts(method: CLIP, texts: Sequence[str], batch: int = 256) -> Tensor:
    """(m, d) of texts, a batch at a time."""
    return torch.cat([method.encode_text(texts[i : i + batch]) for i in range(0, len(texts), batch)])


def order_of_words(method: CLIP, image: Tensor, captions: Sequence[tuple[int, str]]) -> dict[str, float]:
    """Share of images (row, caption) that fit their caption better than one with its two objects swapped, and than one
    with the opposite relation; {} where captions do not read "a large X left of a Y"."""
    found: dict[str, list[tuple[int, str, str]]] = {"objects_swapped": [], "relation_reversed": []}
    for row, caption in captions:
        if match := ORDERED.fullmatch(caption):
            size, first, relation, second = match.groups()
            if first != second:
                found["objects_swapped"].append((row, caption, f"a {size} {second} {relation} a {first}"))
            found["relation_reversed"].append((row, caption, f"a {size} {first} {OPPOSITE[relation]} a {second}"))
    shares = {}
    for name, trials in found.items():
        if trials:
            rows = torch.tensor([row for row, _, _ in trials], device=image.device)
            true = encode_texts(method, [caption for _, caption, _ in trials])
            false = encode_texts(method, [changed for _, _, changed in trials])
            shares[name] = ((image[rows] * true).sum(1) > (image[rows] * false).sum(1)).float().mean().item()
    return shares


def _retrieval_lines(texts: int, figures: dict[str, dict[str, float]]) -> list[str]:
    lines = []
    for way, values in figures.items():
        found = ", ".join(f"R@{k} {100 * values[f'R@{k}']:.1f} ({100 * values[f'chance_R@{k}']:.1f})" for k in TOPS)
        lines.append(f"{way.replace('_', ' ')}: {found}, median rank {values['median_rank']:g}")
    return [f"{texts} texts; R@k in %, of a blind draw in brackets", *lines]
