"""GPT keeps the promises that every method makes."""

from __future__ import annotations

from tiny_text import IDS, VOCABULARY, TextConformance

from ssl_lm.config import RECIPES, GPTConfig


class TestGPT(TextConformance):
    recipe = RECIPES["gpt"]
    config = GPTConfig(vocab_size=VOCABULARY, context=12, dim=16, depth=1, heads=2, dropout=0.1, **IDS)
