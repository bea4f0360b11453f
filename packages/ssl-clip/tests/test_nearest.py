"""Nearest rows: exactly, and by faiss's lists."""

from __future__ import annotations

import numpy as np
import pytest

from ssl_clip.nearest import build_lists, exact_search


def test_exact_search_in_chunks_is_a_sort():
    rng = np.random.default_rng(0)
    matrix, queries = rng.normal(size=(50, 6)).astype(np.float16), rng.normal(size=(3, 6)).astype(np.float32)
    live = np.arange(1, 50, 2)
    rows, scores = exact_search(matrix, queries, 4, live, chunk=7)
    expected = queries @ matrix[live].astype(np.float32).T
    assert np.array_equal(rows, live[np.argsort(-expected, 1)[:, :4]])
    assert np.allclose(scores, -np.sort(-expected, 1)[:, :4], atol=1e-5)


def test_lists_recall_most_of_clustered_vectors():
    pytest.importorskip("faiss")
    rng = np.random.default_rng(0)
    centres = rng.normal(size=(50, 16))
    matrix = centres[rng.integers(50, size=4000)] + 0.3 * rng.normal(size=(4000, 16))
    matrix = (matrix / np.linalg.norm(matrix, axis=1, keepdims=True)).astype(np.float16)
    queries = matrix[:100].astype(np.float32)
    _, found = build_lists(matrix, np.arange(4000), probes=16).search(queries, 10)
    exact, _ = exact_search(matrix, queries, 10, np.arange(4000))
    assert np.mean([len(set(a) & set(b)) / 10 for a, b in zip(found, exact, strict=True)]) > 0.8
