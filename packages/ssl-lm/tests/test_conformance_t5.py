"""T5 keeps the promises that every method makes."""

from __future__ import annotations

from tiny_text import IDS, VOCABULARY, TextConformance

from ssl_lm.config import RECIPES, T5Config


class TestT5(TextConformance):
    recipe = RECIPES["t5"]
    config = T5Config(
        vocab_size=VOCABULARY, context=14, dim=16, depth=1, decoder_depth=1, heads=2, head_dim=8, hidden=24,
        gated=True, tied=False, dropout=0.1, first_sentinel=399, clip_grad=None, **IDS,
    )  # fmt: skip
