"""Errors of a run and of an evaluation; `ssl_core.errors` has those of what was given."""

from __future__ import annotations

from ssl_core.errors import InputError


class EvaluationError(InputError, ValueError):
    """Data cannot be evaluated as asked: too few samples or classes, or no separate test data."""


class TrainingError(RuntimeError):
    """A run had to end: a loss that is not finite, collapsed features, a full disk. Exit code 3."""
