"""A fine-tuned network: an encoder with a head for classes, in a folder that opens again.

model.safetensors has timm's names. config.json has the config of the pretraining, the classes, and,
where timm has such a network, what `timm.create_model("local-dir:FOLDER", pretrained=True)` reads.
"""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any, Self

from torch import Tensor, nn

from ssl_core.batch_norm import sync_batch_norm
from ssl_core.bounds import Checked
from ssl_core.config import ConfigError
from ssl_core.errors import InputError
from ssl_core.hub.format import SECTION, own_config, written_by
from ssl_core.hub.keymap import KeyMap
from ssl_core.hub.layout import CONFIG, Layout, layout_of, read_json, sketch
from ssl_core.hub.pretrained import Pretrained
from ssl_core.resnet import ResNet
from ssl_train.data.views import eval_view
from ssl_train.embed import one_by_one
from ssl_train.evaluate.features import extract

HEADS = ("head.", "fc.", "fc_norm.")
"""Names behind the encoder: timm calls a ViT's classifier `head` and a ResNet's `fc`."""


@dataclass(frozen=True, kw_only=True)
class ClassifierConfig(Checked):
    """What a classifier is made of."""

    method: str
    """import string of the method whose encoder it has, such as "ssl_mae.mae:MAE\""""
    network: object
    """config of that method; a dict is read as one"""
    classes: tuple[str, ...]
    """names of the classes, in the order of the labels"""
    written_by: object = None
    """who wrote `network`, and in which format (`ssl_core.hub.format`)"""

    def __post_init__(self) -> None:
        super().__post_init__()
        wanted: Any = method_class(self.method).config_class
        if not isinstance(self.network, wanted):
            section = {"method": self.method, "config": self.network, "written_by": self.written_by}
            object.__setattr__(self, "network", own_config(section, wanted)[0])
        object.__setattr__(self, "written_by", written_by(wanted))


def method_class(name: str) -> Any:
    """The class of a method by its import string.

    The string may come from a stranger's config.json. So only modules of these packages are
    imported for it, and only a class that has weights is returned. Raises ConfigError.
    """
    module, _, attribute = name.partition(":")
    found = None
    if module in sys.modules or module.startswith("ssl_"):
        try:
            found = getattr(import_module(module), attribute, None)
        except ImportError as error:
            package = module.partition(".")[0].replace("_", "-")
            raise ConfigError(f"method = {name!r}: install {package} to open it ({error})") from error
    if not (isinstance(found, type) and issubclass(found, Pretrained)):
        raise ConfigError(f"method = {name!r}: is no method of these packages")
    return found


class Classifier(nn.Module, Pretrained):
    """An encoder and a linear head, built from a `ClassifierConfig`; `of` takes a method's encoder.

    The head of a ViT reads the mean of the patch tokens after a LayerNorm of its own, which takes
    the place of the encoder's last one (MAE, arXiv 2111.06377, appendix A.2). That of a ResNet
    reads the mean of the last map. Images are uint8 (b, c, h, w) as decoded, or float as the
    method's `encode` takes them.
    """

    config_class = ClassifierConfig
    layout = "ssl_train.classifier:LAYOUT"
    encoder: Any

    def __init__(self, config: ClassifierConfig) -> None:
        super().__init__()
        self.config, cls = config, method_class(config.method)
        check_encoder(method := cls(config.network))
        self.encoder = method.encoder
        # How the method sees pictures, without keeping its heads in memory.
        seen = sketch(cls, config.network)
        self.normalized, self.preprocessor = seen.normalized, seen.preprocessor

        classes, self.is_resnet = len(config.classes), isinstance(self.encoder, ResNet)
        if self.is_resnet:
            sync_batch_norm(self.encoder)
            self.fc = nn.Linear(self.encoder.features, classes)
        else:
            dim = self.encoder.cls_token.shape[-1]
            for name in ("norm", "fc_norm"):
                if hasattr(self.encoder, name):
                    setattr(self.encoder, name, nn.Identity())
            self.encoder.mask_token = None  # it hides patches in pretraining alone
            self.fc_norm = nn.LayerNorm(dim, eps=config.network.layer_norm_eps)  # type: ignore[attr-defined]
            self.head = nn.Linear(dim, classes)
        if not any(p.requires_grad for p in self.encoder.parameters()):  # an averaged network
            self.encoder.requires_grad_(True)

    @classmethod
    def of(cls, method: Any, classes: Sequence[str]) -> Self:
        """A classifier with a copy of `method`'s encoder and a new head."""
        name = f"{type(method).__module__}:{type(method).__qualname__}"
        made = cls(ClassifierConfig(method=name, network=method.config, classes=tuple(classes)))
        own = made.encoder.state_dict()
        made.encoder.load_state_dict({key: t for key, t in method.encoder.state_dict().items() if key in own})
        return made

    def encode(self, images: Tensor) -> Tensor:
        """What the head reads, (b, d)."""
        images = self.normalized(images)
        return self.encoder(images) if self.is_resnet else self.fc_norm(self.encoder.tokens(images)[:, 1:].mean(1))

    def forward(self, images: Tensor) -> Tensor:
        """Logits (b, classes)."""
        return (self.fc if self.is_resnet else self.head)(self.encode(images))

    def probabilities(self, images: Tensor) -> Tensor:
        """Probabilities (b, classes), float32."""
        return self(images).float().softmax(-1)

    def predict(
        self, images: Any, *, top: int | None = None, max_pixels: int | None = None, **options: Any
    ) -> dict[str, list[tuple[str, float]]]:
        """Name of each image -> its classes with their probabilities, the likeliest first; of
        equally likely ones the first class. With `top` only as many.

        `images` is a path, a PIL image or an array, or a list of these; a folder stands for all
        images below it. They are resized and cropped as in an evaluation. Images that cannot be
        read are left out, and a warning names them, and so are those of more pixels than
        `max_pixels`, by default as in training. `options` are those of `extract`. Raises InputError
        if `images` is something else, or if none can be read.
        """
        seen: Any = self.config.network
        seen = seen if max_pixels is None else dataclasses.replace(seen, max_pixels=max_pixels)
        source, device = one_by_one(images, seen), next(self.parameters()).device
        found = extract(self.probabilities, source, eval_view(seen), device=device, **options)
        shares, order = found.features.sort(dim=1, descending=True, stable=True)
        rows = zip(found.names, order[:, :top].tolist(), shares[:, :top].tolist(), strict=True)
        return {name: [(self.config.classes[i], p) for i, p in zip(*row, strict=True)] for name, *row in rows}


def check_encoder(method: Any) -> None:
    """Raises InputError unless `method` has an encoder to fine-tune, a ViT or a ResNet."""
    encoder = getattr(method, "encoder", None)
    if not isinstance(encoder, ResNet) and not (hasattr(encoder, "tokens") and hasattr(encoder, "blocks")):
        what = f"the protocol finetune is that of a ViT or a ResNet, and {type(method).__name__} has neither"
        raise InputError(f"{what} as its encoder: leave it out")


def is_classifier(folder: str | Path) -> bool:
    """Whether a local folder holds a fine-tuned network."""
    file = Path(folder) / CONFIG
    own = read_json(file).get(SECTION) if file.is_file() else None
    return isinstance(own, dict) and own.get("method") == f"{__name__}:{Classifier.__qualname__}"


class _Names(KeyMap):
    """The names without the "encoder." in front, which are timm's."""

    def to_ours(self, theirs: Any) -> tuple[dict[str, Tensor], list[str]]:
        return {key if key.startswith(HEADS) else f"encoder.{key}": tensor for key, tensor in theirs.items()}, []

    def to_theirs(self, ours: Any) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        return {key.removeprefix("encoder."): tensor for key, tensor in ours.items()}, {}


def to_theirs(config: ClassifierConfig) -> dict[str, Any]:
    """config.json: the classes, and what timm reads if it has such a network."""
    classes = {"num_classes": len(config.classes)}
    values = {"model_type": "ssl_classifier", **classes, "label_names": list(config.classes)}
    export = layout_of(method_class(config.method)).exports.get("timm")
    try:
        timm = {} if export is None else export({}, config.network)[1]
    except ConfigError:  # a stem, a width or an epsilon that timm has not
        timm = {}
    if not timm:  # the folder is ours alone
        return values
    ends = {**classes, "global_pool": "avg", "fc_norm": True} if "embed_dim" in timm["model_args"] else classes
    inner = {"model_args": {**timm["model_args"], **ends}, "pretrained_cfg": {**timm["pretrained_cfg"], **classes}}
    return {**timm, **values, **inner, "global_pool": "avg"}


def _refused(*_: Any) -> Any:
    raise ConfigError("it is no network that `evaluate --protocols finetune` wrote")


LAYOUT = Layout(keymap=_Names(()), to_theirs=to_theirs, from_theirs=_refused, infer=_refused)
