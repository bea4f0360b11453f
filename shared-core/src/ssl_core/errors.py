"""The two kinds of errors that a command ends with, and of one bad sample; all else is a bug and keeps its traceback."""

from __future__ import annotations


class InputError(Exception):
    """Something that was given cannot be used: a setting, a file, weights, a folder. Commands exit with 2."""


class ConfigError(InputError, ValueError):
    """A configuration that cannot be used; the message names the field and says what to do."""


class OutOfRange(ConfigError):
    """A value of the right type that breaks a bound of its field."""


class DataError(InputError, ValueError):
    """The data as a whole cannot be used. The message says what to do."""


class NoTestSplit(DataError):
    """The data is all there is: no part of it is set apart for tests."""


class EvaluationError(InputError, ValueError):
    """Data that cannot be evaluated as asked: too few samples or classes, the same data to train and to test on."""


class TrainingError(RuntimeError):
    """A run that began well had to end: a loss that is not finite, collapsed features, a full disk. Exit code 3."""


class BadSample(Exception):
    """One sample cannot be used. The message is the reason, without the sample's name."""
