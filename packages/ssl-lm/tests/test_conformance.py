"""GPT keeps the promises that every method makes."""

from __future__ import annotations

from tiny_text import TextConformance, gpt_config

from ssl_lm.config import RECIPES


class TestGPT(TextConformance):
    recipe = RECIPES["gpt"]
    config = gpt_config(context=12, dim=16, depth=1, dropout=0.1)
