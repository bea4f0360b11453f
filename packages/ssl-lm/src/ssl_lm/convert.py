"""The three models' weights as transformers' `gpt2`, `bert` and `t5` folders hold them, in both directions.

Names inside our modules are transformers' own, so most rows pair a name with itself. What differs: files of old carry
names, aliases of tied weights and heads that have no use here.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ssl_core.config import ConfigError, from_dict
from ssl_core.hub.keymap import KeyMap, Row, prefixed
from ssl_core.hub.layout import Layout, WeightsMismatch, check_shapes
from ssl_lm.config import BERTConfig, GPTConfig, T5Config

if TYPE_CHECKING:
    from ssl_lm.text_model import TextModel


def same(*names: str) -> tuple[Row, ...]:
    """Rows of names that are the same on both sides."""
    return tuple((name, name) for name in names)


def without(rows: tuple[Row, ...], prefix: str) -> tuple[Row, ...]:
    """The same rows without a prefix on their side: a model that was saved without its head."""
    return tuple((ours, theirs.removeprefix(prefix)) for ours, theirs in rows if isinstance(theirs, str))


HEAD: tuple[Row, ...] = same("lm_head.weight")

# ---------------------------------------------------------------- gpt2

GPT_ROWS = prefixed(
    same(
        "wte.weight",
        "wpe.weight",
        "ln_f.{w}",
        *(f"h.{{i}}.{name}.{{w}}" for name in ("ln_1", "attn.c_attn", "attn.c_proj", "ln_2", "mlp.c_fc", "mlp.c_proj")),
    ),
    ours="transformer.",
    theirs="transformer.",
)

GPT_KEYMAP = KeyMap(
    rows=GPT_ROWS,
    also=(*without(GPT_ROWS, "transformer."), *HEAD),  # the hub's gpt2 has no prefix; the alias of wte
    drop=(r"(transformer\.)?h\.\d+\.attn\.(masked_)?bias",),  # causal masks, once stored as buffers
)

GPT_NAMES = {
    "vocab_size": "vocab_size",
    "context": "n_positions",
    "dim": "n_embd",
    "depth": "n_layer",
    "heads": "n_head",
    "hidden": "n_inner",
    "activation": "activation_function",
    "layer_norm_eps": "layer_norm_epsilon",
    "eos_token_id": "eos_token_id",
    "pad_token_id": "pad_token_id",
}
"""Our config fields and transformers' names for the same value."""

GPT_FIXED = {
    "scale_attn_weights": True, "scale_attn_by_inverse_layer_idx": False, "add_cross_attention": False,
    "tie_word_embeddings": True,
}  # fmt: skip
"""Options of transformers of which we have one value, its default too."""


def gpt_to_theirs(config: GPTConfig) -> dict[str, Any]:
    """config.json of transformers' GPT2LMHeadModel."""
    return {
        **_written("gpt2", "GPT2LMHeadModel", GPT_FIXED, config, GPT_NAMES),
        **{f"{part}_pdrop": config.dropout for part in ("embd", "attn", "resid")},
        "bos_token_id": config.eos_token_id,
    }


def gpt_from_theirs(values: dict[str, Any], preprocessor: dict[str, Any]) -> GPTConfig:
    """Our config of a transformers folder; the recipe's fields keep their defaults.

    Raises ConfigError for another architecture or an option that we do not have.
    """
    defaults = {"vocab_size": 50257, "eos_token_id": 50256, "dropout": values.get("resid_pdrop", 0.1)}
    return _read(GPTConfig, "gpt2", values, GPT_NAMES, GPT_FIXED, defaults)


# ---------------------------------------------------------------- bert

BERT_NORMS = (
    "embeddings.LayerNorm",
    "encoder.layer.{i}.attention.output.LayerNorm",
    "encoder.layer.{i}.output.LayerNorm",
)

BERT_ROWS = prefixed(
    same(
        *(f"embeddings.{name}_embeddings.weight" for name in ("word", "position", "token_type")),
        *(f"{norm}.{{w}}" for norm in BERT_NORMS),
        *(f"encoder.layer.{{i}}.attention.self.{name}.{{w}}" for name in ("query", "key", "value")),
        *(f"encoder.layer.{{i}}.{name}.dense.{{w}}" for name in ("attention.output", "intermediate", "output")),
    ),
    ours="bert.",
    theirs="bert.",
)

TRANSFORM = "cls.predictions.transform.LayerNorm"

BERT_OLD: tuple[Row, ...] = tuple(
    (f"{norm}.{new}", f"{norm}.{old}")
    for norm in (*(f"bert.{norm}" for norm in BERT_NORMS), TRANSFORM)
    for new, old in (("weight", "gamma"), ("bias", "beta"))
)
"""Norms as files converted from TensorFlow spell them."""

BERT_KEYMAP = KeyMap(
    rows=(
        *BERT_ROWS,
        *same("cls.predictions.bias", "cls.predictions.transform.dense.{w}", f"{TRANSFORM}.{{w}}"),
    ),
    also=(
        *BERT_OLD,
        *without((*BERT_ROWS, *BERT_OLD[:-2]), "bert."),
        *same("cls.predictions.decoder.weight", "cls.predictions.decoder.bias"),
    ),
    drop=(r"cls\.seq_relationship\..*", r"(bert\.)?pooler\..*", r".*position_ids"),
)

BERT_NAMES = {
    "vocab_size": "vocab_size",
    "context": "max_position_embeddings",
    "dim": "hidden_size",
    "depth": "num_hidden_layers",
    "heads": "num_attention_heads",
    "hidden": "intermediate_size",
    "token_types": "type_vocab_size",
    "layer_norm_eps": "layer_norm_eps",
    "init_std": "initializer_range",
    "pad_token_id": "pad_token_id",
}

BERT_FIXED = {
    "hidden_act": "gelu", "position_embedding_type": "absolute", "is_decoder": False, "add_cross_attention": False,
    "tie_word_embeddings": True,
}  # fmt: skip


def bert_to_theirs(config: BERTConfig) -> dict[str, Any]:
    """config.json of transformers' BertForMaskedLM."""
    return {
        **_written("bert", "BertForMaskedLM", BERT_FIXED, config, BERT_NAMES),
        "intermediate_size": config.mlp_width,
        "hidden_dropout_prob": config.dropout,
        "attention_probs_dropout_prob": config.dropout,
    }


def bert_from_theirs(values: dict[str, Any], preprocessor: dict[str, Any]) -> BERTConfig:
    """Our config of a transformers folder. It does not say which tokens are [CLS] and its kin: the tokenizer does.

    Raises ConfigError for another architecture or an option that we do not have.
    """
    unsaid = dict.fromkeys(("unk_token_id", "cls_token_id", "sep_token_id", "mask_token_id"))
    defaults = {**unsaid, "vocab_size": 30522, "hidden": 3072, "dropout": values.get("hidden_dropout_prob", 0.1)}
    return _read(BERTConfig, "bert", values, BERT_NAMES, BERT_FIXED, defaults)


# ---------------------------------------------------------------- t5


def _t5_stack(stack: str, mlp: str) -> tuple[str, ...]:
    """Names of an encoder or a decoder; the MLP is the last of a block's layers."""
    block = f"{stack}.block.{{i}}.layer."
    cross = [f"{block}1.EncDecAttention.{name}.weight" for name in "qkvo"] if stack == "decoder" else []
    return (
        f"{stack}.final_layer_norm.weight",
        f"{block}0.SelfAttention.relative_attention_bias.weight",
        *(f"{block}0.SelfAttention.{name}.weight" for name in "qkvo"),
        *cross,
        *(f"{block}{mlp}.DenseReluDense.{name}.weight" for name in ("wi", "wi_0", "wi_1", "wo")),
        *(f"{block}{layer}.layer_norm.weight" for layer in range(int(mlp) + 1)),
    )


T5_KEYMAP = KeyMap(
    rows=(*same("shared.weight", *_t5_stack("encoder", "1"), *_t5_stack("decoder", "2")), *HEAD),
    also=same("encoder.embed_tokens.weight", "decoder.embed_tokens.weight"),
    drop=(r"decoder\.block\.0\.layer\.1\.EncDecAttention\.relative_attention_bias\.weight",),
)

T5_NAMES = {
    "vocab_size": "vocab_size",
    "dim": "d_model",
    "depth": "num_layers",
    "decoder_depth": "num_decoder_layers",
    "heads": "num_heads",
    "head_dim": "d_kv",
    "hidden": "d_ff",
    "buckets": "relative_attention_num_buckets",
    "max_distance": "relative_attention_max_distance",
    "layer_norm_eps": "layer_norm_epsilon",
    "dropout": "dropout_rate",
    "pad_token_id": "pad_token_id",
    "eos_token_id": "eos_token_id",
}


def t5_to_theirs(config: T5Config) -> dict[str, Any]:
    """config.json of transformers' T5ForConditionalGeneration."""
    return {
        **_written("t5", "T5ForConditionalGeneration", {}, config, T5_NAMES),
        "feed_forward_proj": "gated-gelu" if config.gated else "relu",
        "tie_word_embeddings": config.tied,
        "scale_decoder_outputs": config.tied,
        "decoder_start_token_id": config.pad_token_id,
        "is_encoder_decoder": True,
        "n_positions": config.context,
    }


def t5_from_theirs(values: dict[str, Any], preprocessor: dict[str, Any]) -> T5Config:
    """Our config of a transformers folder; sentinels are the last 100 of a vocabulary padded to a multiple of 128.

    Raises ConfigError for another architecture or an option that we do not have.
    """
    kinds = {"relu": False, "gated-gelu": True}
    kind = values.get("feed_forward_proj", "relu")
    if kind not in kinds:
        raise ConfigError(f"feed_forward_proj = {kind!r} is not supported, {' and '.join(kinds)} are: use transformers")
    start, pad = values.get("decoder_start_token_id"), values.get("pad_token_id", 0)
    if start not in (None, pad):
        raise ConfigError(f"decoder_start_token_id = {start}: here a decoder starts with the pad token {pad}")
    size = values.get("vocab_size", 32128)
    published = type(size) is int and size == 32128
    defaults = {
        "vocab_size": 32128, "dim": 512, "depth": 6, "heads": 8, "hidden": 2048, "gated": kinds[kind],
        "tied": values.get("scale_decoder_outputs", values.get("tie_word_embeddings", True)),
        "first_sentinel": 32099 if published else None, "context": values.get("n_positions", 512),
        "decoder_depth": values.get("num_layers", 6),
    }  # fmt: skip
    return _read(T5Config, "t5", values, T5_NAMES, {}, defaults)


# ---------------------------------------------------------------- all three


def _written(
    model_type: str, architecture: str, fixed: dict[str, Any], config: Any, names: dict[str, str]
) -> dict[str, Any]:
    """What is the same for all in a transformers config."""
    return {
        "model_type": model_type,
        "architectures": [architecture],
        "dtype": "float32",
        **fixed,
        **{theirs: getattr(config, ours) for ours, theirs in names.items()},
    }


def _read(
    cls: type, model_type: str, values: dict[str, Any], names: dict[str, str], fixed: dict[str, Any],
    defaults: dict[str, Any],
) -> Any:  # fmt: skip
    if values.get("model_type") != model_type:
        raise ConfigError(f"model_type is {values.get('model_type')!r}: {cls.__name__} reads {model_type!r}")
    for key, only in fixed.items():
        if values.get(key, only) != only:
            raise ConfigError(f"{key} = {values[key]!r} is not supported: use transformers for this model")
    # a null in their file is the default, but a token that is null is none
    said = {ours: values[theirs] for ours, theirs in names.items() if theirs in values}
    said = {ours: value for ours, value in said.items() if value is not None or ours.endswith("_token_id")}
    return from_dict(cls, {**defaults, **said})


def infer(state: Mapping[str, Tensor]) -> Any:
    """Raises ConfigError: shapes do not say how many heads there are."""
    raise ConfigError("a language model's checkpoint needs its config.json beside it: give the folder of both")


def _adapter(method: Callable[[], type], aliases: dict[str, str]) -> Callable[..., dict[str, Tensor]]:
    """`adapt` of a layout: aliases of tied weights are taken out, or in where the weight itself is missing."""

    def adapt(state: dict[str, Tensor], stored: Any, wanted: Any) -> dict[str, Tensor]:
        """`state` without aliases. Raises WeightsMismatch when an alias differs from what it is tied to, or when `state`
        is not of `stored`'s sizes."""
        with torch.device("meta"):
            shapes = {key: tuple(tensor.shape) for key, tensor in method()(stored).state_dict().items()}
        state = dict(state)
        for alias, weight in aliases.items():
            if alias in shapes:
                # a model whose own head was tied when transformers saved it
                if alias not in state and weight in state:
                    state[alias] = state[weight]
            elif alias in state:
                tied = state.pop(alias)
                if not torch.equal(state.setdefault(weight, tied), tied):
                    raise WeightsMismatch(
                        f"{alias} differs from {weight}, to which the config ties it: use transformers"
                    )
        check_shapes(state, shapes)
        return state

    return adapt


def _gpt() -> type:
    from ssl_lm.gpt import GPT

    return GPT


def _bert() -> type:
    from ssl_lm.bert import BERT

    return BERT


def _t5() -> type:
    from ssl_lm.t5 import T5

    return T5


GPT_LAYOUT = Layout(
    keymap=GPT_KEYMAP, to_theirs=gpt_to_theirs, from_theirs=gpt_from_theirs, infer=infer,
    adapt=_adapter(_gpt, {"lm_head.weight": "transformer.wte.weight"}), recipe=("dropout",),
)  # fmt: skip

BERT_LAYOUT = Layout(
    keymap=BERT_KEYMAP, to_theirs=bert_to_theirs, from_theirs=bert_from_theirs, infer=infer,
    adapt=_adapter(_bert, {
        "cls.predictions.decoder.weight": "bert.embeddings.word_embeddings.weight",
        "cls.predictions.decoder.bias": "cls.predictions.bias",
    }),
    recipe=("dropout", "init_std", "mask_rate", "whole_words"),
)  # fmt: skip

T5_LAYOUT = Layout(
    keymap=T5_KEYMAP, to_theirs=t5_to_theirs, from_theirs=t5_from_theirs, infer=infer,
    adapt=_adapter(_t5, {name: "shared.weight" for name in (
        "encoder.embed_tokens.weight", "decoder.embed_tokens.weight", "lm_head.weight")}),
    recipe=("dropout", "density", "mean_span"),
    rewritten=("tie_word_embeddings",),  # transformers 5 says true whether or not the weights are tied
)  # fmt: skip


def to_transformers(method: TextModel) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """(state dict, config) of the model as transformers reads it."""
    layout = method.layout()
    return layout.keymap.to_theirs(method.state_dict())[0], layout.to_theirs(method.config)


EXPORTS = {"transformers": to_transformers}
"""What `export --to` writes."""
