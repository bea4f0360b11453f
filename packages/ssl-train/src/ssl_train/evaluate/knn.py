"""Weighted k-nearest neighbours: what features know without any training.

InstDisc (Wu et al., arXiv 1805.01978, section 3.4) as run by DINO (Caron et al., arXiv 2104.14294,
appendix F.1): cosine similarity s, a neighbour votes for its class with exp(s / T), T = 0.07.

On a CPU that multiplies bf16 in hardware, `Index` finds candidates in bf16 and settles them in
fp32. A bound on the rounding says whether a neighbour may have been missed; where it may, the query
is asked again in fp32 alone.

No order decides. Where more samples are equally near than there are places left among the k, as
copies of one picture are, all of them share these places.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from ssl_core.device import cpu_has_bf16
from ssl_train.evaluate.accuracy import check_finite, check_labelled, top1

KS = (10, 20, 100, 200)
HEADLINE = 20
TEMPERATURE = 0.07
TIE = 1e-6  # cosines of copies differ by less, from rounding
EQUAL = 1e-5  # share of a vote; votes that differ by less differ from rounding

# 64 MiB of similarities: the product runs at full speed, and no bank needs more than that.
QUERIES, BANK = 256, 65_536
ROUNDED = 4096  # samples of a bank from which on rounding it pays


def knn(
    bank: Tensor, bank_labels: Tensor, queries: Tensor, *, ks: Sequence[int] = KS, temperature: float = TEMPERATURE
) -> dict[int, Tensor]:
    """Labels (q,) of `queries` (q, d) by the k nearest of `bank` (n, d), for each k of `ks`.

    A k larger than the bank is the bank: the keys are min(k, n). Samples that are equally near
    (cosines within 1e-6) share the places that are left for them. Classes that tie are decided for
    the smallest label. ValueError on bad shapes or NaN.
    """
    check_labelled(bank, bank_labels, "bank")
    if queries.ndim != 2 or queries.shape[1] != bank.shape[1] or not ks or min(ks) < 1:
        what = f"queries must be (q, {bank.shape[1]}) and ks positive, got {tuple(queries.shape)} and {list(ks)}"
        raise ValueError(what)
    check_finite(queries, "queries")
    classes, targets = torch.unique(bank_labels, return_inverse=True)
    bank = F.normalize(bank.float(), dim=1)
    queries = F.normalize(queries.float(), dim=1)
    votes: dict[int, list[Tensor]] = {min(k, len(bank)): [] for k in sorted(ks)}
    known = Index(bank)
    for some in queries.split(QUERIES):
        for k, best in _winners(known, targets, some, None, list(votes), temperature):
            votes[k].append(classes[best])
    return {k: torch.cat(parts) for k, parts in votes.items()}


def leave_one_out(x: Tensor, labels: Tensor, *, k: int = HEADLINE, temperature: float = TEMPERATURE) -> float:
    """Top-1 of k-NN within one set, x (n, d) and labels (n,): each sample asks all others."""
    check_labelled(x, labels, "features")
    if len(x) < 2:
        raise ValueError("leave-one-out needs two samples or more")
    classes, targets = torch.unique(labels, return_inverse=True)
    x = F.normalize(x.float(), dim=1)
    predicted, known = [], Index(x)
    for rows in torch.arange(len(x), device=x.device).split(QUERIES):
        [(_, best)] = _winners(known, targets, x[rows], rows, [min(k, len(x) - 1)], temperature)
        predicted.append(classes[best])
    return top1(torch.cat(predicted), labels)


class Index:
    """A bank of unit vectors (n, d), float32, to be asked for the nearest of queries (q, d) like
    them."""

    def __init__(self, bank: Tensor) -> None:
        self.bank, self.rounded = bank, None
        if bank.device.type == "cpu" and len(bank) >= ROUNDED and cpu_has_bf16():
            self.mean = bank.mean(dim=0)  # taken out, since what all samples share costs digits and orders nothing
            centred = bank - self.mean
            self.rounded = centred.bfloat16()
            self.longest = centred.norm(dim=1).max()
            self.error = (centred - self.rounded).norm(dim=1).max()

    def nearest(self, queries: Tensor, k: int) -> tuple[Tensor, Tensor]:
        """As `nearest`, and with its result; of equally near samples both take any."""
        if self.rounded is None:
            return nearest(queries, self.bank, k)
        short = queries.bfloat16()
        rough, candidates = nearest(short, self.rounded, min(k + k // 4 + 40, len(self.bank)))
        best, order = self._products(queries, candidates).topk(k, dim=1)
        where = candidates.gather(1, order)
        # A sample left out is no nearer than the last candidate by its rounded product, which is
        # off by the rounding of both factors (Cauchy-Schwarz), of its sum and of itself.
        last = rough[:, -1].float()
        limit = last + last.abs() * 2**-8 + queries.shape[1] * 2**-23
        limit += (queries - short).norm(dim=1) * self.longest + short.float().norm(dim=1) * self.error
        (doubtful,) = torch.nonzero(best[:, -1] - queries @ self.mean <= limit, as_tuple=True)
        if len(doubtful) and candidates.shape[1] < len(self.bank):
            best[doubtful], where[doubtful] = nearest(queries[doubtful], self.bank, k)
        return best, where

    def _products(self, queries: Tensor, candidates: Tensor) -> Tensor:
        """Inner products of each query (q, d) with its own candidates (q, m): (q, m)."""
        # one by one: m rows stay in the cache, and a batched product of matrix and vector is ten
        # times slower
        pairs = zip(queries, candidates, strict=True)
        return torch.stack([self.bank.index_select(0, index) @ query for query, index in pairs])


def nearest(queries: Tensor, bank: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The k largest inner products of `queries` (q, d) with `bank` (n, d), and whose: (q, k).

    Falling along the row; k <= n.
    """
    best = queries.new_empty(len(queries), 0)
    where = torch.empty(len(queries), 0, dtype=torch.int64, device=queries.device)
    for start in range(0, len(bank), BANK):
        part = queries @ bank[start : start + BANK].T  # q n
        near, index = part.topk(min(k, part.shape[1]), dim=1)
        best, where = torch.cat([best, near], 1), torch.cat([where, index + start], 1)
        best, order = best.topk(min(k, best.shape[1]), dim=1)
        where = where.gather(1, order)
    return best, where


def _winners(
    known: Index, targets: Tensor, queries: Tensor, itself: Tensor | None, ks: Sequence[int], temperature: float
) -> list[tuple[int, Tensor]]:
    """(k, winning class (q,)) of `queries` (q, d) for rising `ks`; `itself` (q,) is the sample of
    the bank that a query is, which it does not ask."""
    # One more than has a place, to see whether the last place is disputed.
    similarity, index = known.nearest(queries, min(max(ks) + (1 if itself is None else 2), len(targets)))
    if itself is not None:
        # Itself goes last and is cut off; where many copies crowd it out, the farthest is.
        order = (index == itself[:, None]).byte().argsort(dim=1, stable=True)[:, :-1]
        similarity, index = similarity.gather(1, order), index.gather(1, order)
    labels = targets[index]  # q m
    weight = torch.exp((similarity - similarity[:, :1]) / temperature)  # at most 1: no overflow
    scores = weight.new_zeros(len(weight), int(targets.max()) + 1)  # q c
    winners, counted = [], 0
    for k in ks:
        scores.scatter_add_(1, labels[:, counted:k], weight[:, counted:k])
        counted, votes = k, scores
        disputed = similarity[:, k - 1] - similarity[:, k:].amax(1) <= TIE if k < similarity.shape[1] else None
        if disputed is not None and disputed.any():
            last, edge = similarity[disputed, k - 1 : k], weight[disputed, k - 1 : k]
            whose = None if itself is None else itself[disputed]
            share = _as_near(known.bank, targets, queries[disputed], whose, last, torch.zeros_like(scores[disputed]))
            sure = similarity[disputed, :k] > last + TIE
            share *= edge * (k - sure.sum(1, keepdim=True)) / share.sum(1, keepdim=True)
            votes = scores.clone()
            votes[disputed] = share.scatter_add(1, labels[disputed, :k], weight[disputed, :k] * sure)
        most = votes.amax(1, keepdim=True)
        winners.append((k, (votes >= most * (1 - EQUAL)).byte().argmax(dim=1)))  # the first of equals
    return winners


def _as_near(
    bank: Tensor, targets: Tensor, queries: Tensor, itself: Tensor | None, near: Tensor, counts: Tensor
) -> Tensor:
    """`counts` (q, c) and how many samples of each class have the cosine `near` (q, 1) with each
    query."""
    for start in range(0, len(bank), BANK):
        same = (queries @ bank[start : start + BANK].T - near).abs() <= TIE  # q n
        if itself is not None:
            same &= torch.arange(start, start + same.shape[1], device=same.device) != itself[:, None]
        counts.index_add_(1, targets[start : start + BANK], same.to(counts.dtype))
    return counts
