"""Figures of a CLIP: retrieval both ways, zero-shot classes, and the order of words."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ssl_clip.clip import CLIP
from ssl_clip.tokenizer import TextError
from ssl_clip.zero_shot import ZeroShotClassifier, top_accuracies
from ssl_train.data.views import eval_view
from ssl_train.evaluate.features import extract

TOPS = (1, 5, 10)
ROWS = 512
"""Rows of the score matrix that are held at a time."""
ORDERED = re.compile(r"a (?P<size>\w+) (?P<first>.+) (?P<relation>left of|right of|above|below) a (?P<second>.+)")
OPPOSITE = {"left of": "right of", "right of": "left of", "above": "below", "below": "above"}


def retrieval(image: Tensor, text: Tensor, pairs: Tensor, *, rows: int = ROWS) -> dict[str, dict[str, float]]:
    """Ranks of what belongs together, {"image_to_text": {…}, "text_to_image": {…}}.

    Each way has "R@1", "R@5", "R@10", "median_rank", "mean_rank", and "chance_R@1" … of a blind
    draw. `image` (n, d) and `text` (m, d) have length 1, `pairs` (p, 2) says which image has which
    text; an image may have several texts and a text several images. A query's rank is 1 + the
    number of wrong answers that score at least as high as its best right one, so ties count against
    the model. R@k is the share of ranks up to k. Scores of `rows` queries are held at a time.
    """
    there, back = (image, text, pairs), (text, image, pairs.flip(1))
    return {"image_to_text": _one_way(*there, rows), "text_to_image": _one_way(*back, rows)}


def _one_way(queries: Tensor, answers: Tensor, pairs: Tensor, rows: int) -> dict[str, float]:
    ranks, counts = [], []  # of each query: the rank, and how many answers are right
    for start in range(0, len(queries), rows):
        part = queries[start : start + rows]
        here = pairs[(pairs[:, 0] >= start) & (pairs[:, 0] < start + len(part))]
        right = torch.zeros(len(part), len(answers), dtype=torch.bool, device=queries.device)
        right[here[:, 0] - start, here[:, 1]] = True
        scores = part @ answers.T  # rows m
        best = scores.masked_fill(~right, -torch.inf).amax(1, keepdim=True)
        asked = right.any(1)  # a query without a right answer does not count
        ranks.append((1 + ((scores >= best) & ~right).sum(1))[asked])
        counts.append(right.sum(1)[asked])
    rank, several = torch.cat(ranks).float(), torch.cat(counts).tolist()
    found = {f"R@{k}": (rank <= k).float().mean().item() for k in TOPS}
    chance = {f"chance_R@{k}": sum(_luck(len(answers), right, k) for right in several) / len(several) for k in TOPS}
    return {**found, "median_rank": rank.median().item(), "mean_rank": rank.mean().item(), **chance}


def _luck(answers: int, right: int, k: int) -> float:
    """Chance that k of `answers` drawn blindly hold one of the `right` ones."""
    return 1 - math.comb(answers - right, k) / math.comb(answers, k) if k < answers else 1.0


@torch.inference_mode()
def measure(method: CLIP, source: Any) -> dict[str, Any]:
    """Figures of `source`; "summary" holds lines for the terminal.

    Retrieval where it has captions, the order of words where the captions say it, and zero-shot
    accuracy where it has classes; a line says so if the context is too short for their texts.
    """
    method.eval()
    device = method.logit_scale.device
    features = extract(method.encode_image, source, eval_view(method.config), device=device)
    image = features.features.to(device)  # n d
    result: dict[str, Any] = {"images": len(image), "summary": [f"{len(image)} images"]}
    if hasattr(source, "captions"):
        row = {name: i for i, name in enumerate(features.names)}
        captions = [(row[source.name(i)], source.texts(i)) for i in range(len(source)) if source.name(i) in row]
        result |= _of_captions(method, image, captions, result["summary"])
    if features.labels is not None and features.labels.ndim == 1 and features.classes and (features.labels >= 0).any():
        try:
            classifier = ZeroShotClassifier(method, features.classes, getattr(source, "templates", None))
        except TextError as error:  # a short context may not hold a template and a label
            result["summary"].append(f"zero-shot accuracy is not measured: {error}")
            return result
        scores, labels = image @ classifier.weights, features.labels.to(device)  # n classes, n
        known = labels >= 0
        result["zero_shot"] = top_accuracies(scores[known], labels[known])
        line = _percent(f"zero-shot over {len(features.classes)} classes", result["zero_shot"])
        result["summary"].append(line)
    return result


def _of_captions(
    method: CLIP, image: Tensor, captions: list[tuple[int, list[str]]], summary: list[str]
) -> dict[str, Any]:
    """Retrieval and order of words of captions (row of `image`, texts); adds to `summary`."""
    texts = list(dict.fromkeys(text for _, own in captions for text in own))  # each once
    number = {text: i for i, text in enumerate(texts)}
    pairs = torch.tensor([(row, number[text]) for row, own in captions for text in own], device=image.device)  # p 2
    ranks = retrieval(image, encode_texts(method, texts), pairs)
    summary.append(f"{len(texts)} texts; R@k in %, of a blind draw in brackets")
    for way, values in ranks.items():
        found = ", ".join(f"R@{k} {100 * values[f'R@{k}']:.1f} ({100 * values[f'chance_R@{k}']:.1f})" for k in TOPS)
        summary.append(f"{way.replace('_', ' ')}: {found}, median rank {values['median_rank']:g}")
    orders = order_of_words(method, image, [(row, own[0]) for row, own in captions])
    if orders:
        summary.append(_percent("order of words (chance 50 %)", orders))
    return {"texts": len(texts), "retrieval": ranks, **({"order": orders} if orders else {})}


def _percent(title: str, shares: dict[str, float]) -> str:
    return f"{title}: " + ", ".join(f"{name} {100 * share:.1f} %" for name, share in shares.items())


def encode_texts(method: CLIP, texts: Sequence[str], batch: int = 256) -> Tensor:
    """(m, d) of texts, a batch at a time."""
    return torch.cat([method.encode_text(texts[i : i + batch]) for i in range(0, len(texts), batch)])


def order_of_words(method: CLIP, image: Tensor, captions: Sequence[tuple[int, str]]) -> dict[str, float]:
    """Share of images that fit their own caption better than a changed one.

    `captions` are (row of `image` (n, d), text). The change swaps the two objects, or puts the
    opposite relation. {} where no caption reads "a large X left of a Y".
    """
    # (row, caption, changed caption) of each kind of change
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
            rows, *texts = zip(*trials, strict=True)
            true, false = (encode_texts(method, text) for text in texts)  # trials d each
            own = image[torch.tensor(rows, device=image.device)]
            shares[name] = ((own * true).sum(1) > (own * false).sum(1)).float().mean().item()
    return shares
