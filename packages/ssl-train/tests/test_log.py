"""What is said while a command works."""

from __future__ import annotations

import io
import sys

import pytest

from ssl_train.log import Meter, Progress, note, quietly, typed


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_a_log_gets_a_line_now_and_then_and_no_carriage_returns(monkeypatch):
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    for _ in Progress(range(500), desc="features", unit="batches"):
        pass
    said = sys.stderr.getvalue()
    assert "\r" not in said and "\033" not in said
    first, last = said.splitlines()
    assert first.startswith("features 0 of 500 batches, ") and last.startswith("features 500 of 500 batches, ")


def test_a_terminal_gets_one_line_that_is_drawn_again(monkeypatch):
    monkeypatch.setattr(sys, "stderr", Terminal())
    for _ in Progress(range(500), desc="features"):
        pass
    assert sys.stderr.getvalue().startswith("\r") and sys.stderr.getvalue().count("\n") == 1


def test_quietly_nothing_is_said(monkeypatch, capsys):
    monkeypatch.setattr(sys, "stderr", Terminal())
    with quietly():
        note("on the way")
        list(Progress(range(5)))
    note("and here")
    assert capsys.readouterr().out == "and here\n" and not sys.stderr.getvalue()


@pytest.mark.parametrize("unit", ["img", "rows"])
def test_the_bar_counts_what_the_samples_are(unit):
    meter = Meter(unit)
    meter.count(8, 1.0)
    meter.rates()
    assert meter.shown().keys() == {f"{unit}/s", "wait"}


def test_a_command_is_quoted_for_the_shell_of_the_system(monkeypatch):
    assert typed("ssl-mae", "embed", "it's (1)") == """ssl-mae embed 'it'"'"'s (1)'"""
    monkeypatch.setattr("os.name", "nt")
    assert typed("ssl-mae", "embed", "my pictures (1)") == 'ssl-mae embed "my pictures (1)"'
