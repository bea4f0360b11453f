"""Errors of what was given, and of one bad sample.

`ssl_train.errors` has those of a run. Any other exception is a bug and keeps its traceback.
"""

from __future__ import annotations


class InputError(Exception):
    """A setting, a file, weights or a folder cannot be used. Commands exit with 2."""


class ConfigError(InputError, ValueError):
    """A configuration that cannot be used; the message names the field and says what to do."""


class OutOfRange(ConfigError):
    """A value of the right type that breaks a bound of its field."""


class DataError(InputError, ValueError):
    """The data as a whole cannot be used. The message says what to do."""


class NoTestSplit(DataError):
    """The data is all there is: no part of it is set apart for tests."""


class BadSample(Exception):
    """One sample cannot be used. The message is the reason, without the sample's name."""
