"""Captions as token ids: the tokenizer of a model's weights, and a source of pairs in ids."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self

from torch import Tensor, nn

from ssl_clip.config import CLIPConfig
from ssl_clip.convert_open_clip import CONFIG as OPEN_CLIP_CONFIG
from ssl_clip.lit import load_image_tower
from ssl_clip.tokenizer import TextError, Tokenizer
from ssl_core.config import ConfigError
from ssl_core.errors import BadSample
from ssl_core.hub.layout import INDEX, WEIGHTS
from ssl_core.hub.pretrained import Pretrained


class WithTokenizer(Pretrained):
    """Mixin of CLIP: `Pretrained` weights, with the tokenizer that they were trained with."""

    config: CLIPConfig
    vision_model: nn.Module
    logit_scale: nn.Parameter
    tokenizer: Tokenizer | None = None
    loaded = False
    """whether these are trained weights, to which no new tokenizer can be fitted"""

    @classmethod
    def from_pretrained(cls, name: str | Path, **options: Any) -> Self:
        """`Pretrained.from_pretrained`, which reads open_clip's folders and checkpoints too.

        A bare checkpoint file does not say its activation: it needs `config`. Raises as there.
        """
        if options.get("config") is None:
            _refuse_bare(Path(name))
        method = super().from_pretrained(name, **options)
        method.loaded = True
        return method

    @classmethod
    def sketched(cls, name: str | Path) -> Self:
        _refuse_bare(Path(name))
        return super().sketched(name)

    def save_preprocessor(self, folder: Path) -> None:
        super().save_preprocessor(folder)
        if self.tokenizer is not None:
            self.tokenizer.save(folder)

    def load_preprocessor(self, folder: Path) -> None:
        self.tokenizer = Tokenizer.find(folder)

    def tokenize(self, texts: str | Sequence[str], *, truncate: bool | None = None) -> Tensor:
        """Token ids (b, context_length) on the model's device.

        `truncate` cuts texts that are too long, as the config says by default. Raises TextError for
        an empty text and one that is too long, ConfigError without a tokenizer.
        """
        if self.tokenizer is None:
            raise ConfigError("this model has no tokenizer: give token ids, or load a folder that holds its files")
        # One text or several, as b rows.
        cut = self.config.truncate if truncate is None else truncate
        texts = [texts] if isinstance(texts, str) else list(texts)
        return self.tokenizer(texts, self.config.context_length, truncate=cut).to(self.logit_scale.device)

    def attach(self, source: Any) -> Any:
        """A source of pairs with its captions as token ids; a source without captions as it is.

        The tokenizer is the weights' own, else the config's, else one that is trained on these
        captions. At the start of a run the image tower also takes the weights of
        `config.init_image`. Raises ConfigError when the tokenizer does not fit the config.
        """
        if not hasattr(source, "captions"):
            return source
        if self.tokenizer is None:
            # Token ids mean nothing to trained weights without the tokenizer that made them.
            if self.loaded and self.config.tokenizer is None:
                raise ConfigError("these weights came without a tokenizer: give theirs with --tokenizer")
            self.tokenizer = Tokenizer.for_training(self.config, source)
            if self.config.init_image is not None and not self.loaded:
                load_image_tower(self.vision_model, self.config)
        self.tokenizer.check(self.config)
        return TokenizedPairs(source, self.tokenizer, self.config)


def _refuse_bare(path: Path) -> None:
    """ConfigError for a checkpoint file without a config, which does not say its activation."""
    if path.is_file() and path.name not in (WEIGHTS, INDEX):
        what = f"{path} says nothing of its activation: give config=, or put it beside {OPEN_CLIP_CONFIG}"
        raise ConfigError(what)


class TokenizedPairs:
    """A source of pairs whose captions are token ids.

    `load` gives {"image", "input_ids": (k, t)} for the k captions of an image. It raises BadSample
    for a caption longer than the context, unless the config cuts it.
    """

    def __init__(self, source: Any, tokenizer: Tokenizer, config: CLIPConfig) -> None:
        self.source, self.tokenizer, self.config = source, tokenizer, config
        self.classes, self.labels = source.classes, source.labels
        self.captions, self.texts, self.name = source.captions, source.texts, source.name
        self.templates = getattr(source, "templates", None)

    def __len__(self) -> int:
        return len(self.source)

    def load(self, index: int) -> dict[str, Any]:
        return {"image": self.source.load(index)["image"], "input_ids": self._ids(index)}

    def encoded(self, index: int) -> dict[str, Any]:
        """As `load`, with an image that may not be decoded yet."""
        image = getattr(self.source, "encoded", self.source.load)(index)["image"]
        return {"image": image, "input_ids": self._ids(index)}

    def _ids(self, index: int) -> Tensor:
        # A caption that is too long counts as an unreadable sample, which the loader replaces.
        try:
            return self.tokenizer(self.texts(index), self.config.context_length, truncate=self.config.truncate)
        except TextError as error:
            raise BadSample(str(error)) from error

    def fingerprint(self) -> str:
        """Sixteen hex digits of the fingerprints of source and tokenizer, each after its length."""
        total = hashlib.sha256()
        for part in (self.source.fingerprint().encode(), self.tokenizer.fingerprint().encode()):
            # As `ssl_train`'s sources do it; this file does without the engine.
            total.update(len(part).to_bytes(8, "little") + part)
        return total.hexdigest()[:16]
