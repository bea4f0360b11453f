"""The rows of a matrix that are nearest to some queries: exactly, or by faiss's lists."""

from __future__ import annotations

from importlib.util import find_spec
from typing import Any

import numpy as np
import torch

CHUNK = 8192
"""Rows that are held in fp32 at a time."""
CHANGED = 0.25
"""Share of new rows above which lists are built anew: their centres no longer fit."""


def exact_search(
    matrix: np.ndarray, queries: np.ndarray, top_k: int, rows: np.ndarray, *, chunk: int = CHUNK
) -> tuple[np.ndarray, np.ndarray]:
    """(rows, scores), both (q, up to top_k): the best `rows` of `matrix` (n, d), best first.

    Scores are products with the queries (q, d). Works on `chunk` rows at a time and keeps only the
    best so far.
    """
    asked = torch.from_numpy(np.ascontiguousarray(queries, dtype=np.float32))  # q d
    best, found = torch.empty(len(asked), 0), torch.empty(len(asked), 0, dtype=torch.int64)
    for start in range(0, len(rows), chunk):
        part = rows[start : start + chunk]
        scores = asked @ torch.from_numpy(matrix[part].astype(np.float32)).T  # q chunk
        best = torch.cat([best, scores], 1)
        found = torch.cat([found, torch.from_numpy(part).expand(len(asked), -1)], 1)
        best, order = best.topk(min(top_k, best.shape[1]), 1)
        found = found.gather(1, order)
    return found.numpy(), best.numpy()


def has_faiss() -> bool:
    return find_spec("faiss") is not None


def build_lists(matrix: np.ndarray, rows: np.ndarray, probes: int = 32) -> Any:
    """faiss's inverted lists over `rows` of `matrix` (n, d), vectors in fp16.

    There are 4 √n lists; a query reads `probes` of them.
    """
    import faiss

    count, d = len(rows), matrix.shape[1]
    lists = max(1, int(4 * count**0.5))
    kind, metric = faiss.ScalarQuantizer.QT_fp16, faiss.METRIC_INNER_PRODUCT
    index = faiss.IndexIVFScalarQuantizer(faiss.IndexFlatIP(d), d, lists, kind, metric)
    # The centres are learned from a sample of 40 rows a list.
    sample = np.random.default_rng(0).permutation(count)[: 40 * lists]
    index.cp.niter = 8
    index.train(matrix[rows[np.sort(sample)]].astype(np.float32))  # type: ignore[call-arg]
    _add(index, matrix, rows)
    index.nprobe = min(probes, lists)
    return index


def updated_lists(lists: Any, matrix: np.ndarray, rows: np.ndarray, added: np.ndarray, removed: np.ndarray) -> Any:
    """`lists` with the rows that were added and removed, so that they hold `rows`.

    They are built anew when the numbers do not add up, or when much is new.
    """
    if lists is None or lists.ntotal + len(added) - len(removed) != len(rows) or len(added) > CHANGED * len(rows):
        return build_lists(matrix, rows)
    lists.remove_ids(removed)
    _add(lists, matrix, added)
    return lists


def _add(lists: Any, matrix: np.ndarray, rows: np.ndarray) -> None:
    for start in range(0, len(rows), CHUNK):
        part = rows[start : start + CHUNK]
        lists.add_with_ids(matrix[part].astype(np.float32), part)
