"""BERT keeps the promises that every method makes."""

from __future__ import annotations

from tiny_text import IDS, VOCABULARY, TextConformance

from ssl_lm.config import BERT_RECIPE, BERTConfig


class TestBERT(TextConformance):
    recipe = BERT_RECIPE
    config = BERTConfig(
        vocab_size=VOCABULARY, context=14, dim=16, depth=1, heads=2, hidden=24, dropout=0.1, clip_grad=None,
        unk_token_id=1, cls_token_id=2, sep_token_id=3, mask_token_id=4, first_sentinel=399, **IDS,
    )  # fmt: skip
