"""What GPT, BERT and T5 share: a tokenizer beside the weights, masks, means, first weights."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from ssl_core.errors import InputError
from ssl_core.hub.pretrained import Pretrained
from ssl_lm.config import LMConfig
from ssl_lm.tokenizer import FILE, fingerprint, load_tokenizer, save_tokenizer, settle

if TYPE_CHECKING:
    from tokenizers import Tokenizer


class TextModel(nn.Module, Pretrained):
    """A model with a tokenizer, whose files lie beside the weights.

    `tokenizer` is a `tokenizers.Tokenizer`, or None for a model that was built from a config alone.
    """

    config: LMConfig
    tokenizer: Tokenizer | None = None
    settles = False
    """whether the tokenizer in the folder fills in special tokens that the config leaves open"""

    def attach(self, source: Any) -> Any:
        """Take over the tokenizer of prepared data, or tokenise raw text with this model's own.

        Raises InputError if the data were prepared with another tokenizer than the model's, or if
        the text is raw and the model has no tokenizer.
        """
        if source.tokenizer is None:
            return source.tokenised(self.needed_tokenizer(), self.config)
        if self.tokenizer is None:
            self.tokenizer = source.tokenizer
        elif fingerprint(self.tokenizer) != fingerprint(source.tokenizer):
            raise InputError(
                "the data were prepared with another tokenizer than the model's: prepare them again, with --tokenizer "
                "and the model's folder"
            )
        return source

    def needed_tokenizer(self) -> Tokenizer:
        """The tokenizer. Raises InputError if there is none."""
        if self.tokenizer is None:
            raise InputError(f"the weights came without {FILE}: text cannot be turned into tokens")
        return self.tokenizer

    def text_mask(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        """Boolean (b, t), true at text. By default, padding is `pad_token_id` or negative."""
        if attention_mask is not None:
            return attention_mask.bool()
        pad = self.config.pad_token_id
        return input_ids >= 0 if pad is None else (input_ids >= 0) & (input_ids != pad)

    @contextmanager
    def evaluating(self) -> Iterator[None]:
        """Eval mode inside the block; afterwards the mode from before, also after an error."""
        training = self.training
        self.eval()
        try:
            yield
        finally:
            self.train(training)

    def save_preprocessor(self, folder: Path) -> None:
        if self.tokenizer is not None:
            save_tokenizer(self.tokenizer, folder, context=self.config.context)

    def load_preprocessor(self, folder: Path) -> None:
        if (folder / FILE).is_file():
            self.tokenizer = load_tokenizer(folder)
            if self.settles:
                self.config = settle(self.config, self.tokenizer)


def text_mean(states: Tensor, text: Tensor) -> Tensor:
    """(b, d): the mean of states (b, t, d) where text (b, t) is true; 0 if a row is all padding."""
    weight = text[..., None].to(states.dtype)  # b t 1
    return (states * weight).sum(1) / weight.sum(1).clamp(min=1)


def init_weights(module: nn.Module, std: float = 0.02) -> None:
    """N(0, std²) for every Linear and Embedding, zero biases. GPT-2 and BERT have 0.02."""
    if isinstance(module, nn.Linear | nn.Embedding):
        nn.init.normal_(module.weight, std=std)
    if isinstance(module, nn.Linear):
        nn.init.zeros_(module.bias)
