"""T5 keeps the promises that every method makes."""

from __future__ import annotations

from tiny_text import TextConformance, t5_config

from ssl_lm.config import RECIPES


class TestT5(TextConformance):
    recipe = RECIPES["t5"]
    has_program = False
    config = t5_config(context=14, gated=True, tied=False, dropout=0.1, clip_grad=None)
