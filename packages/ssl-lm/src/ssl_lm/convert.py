"""The three models' weights as transformers' `gpt2`, `bert` and `t5` folders, in both directions.
nanoGPT's ckpt.pt is read too.

Names inside our modules are transformers' own, so most rows pair a name with itself. The rest are
names of old files, aliases of tied weights, and heads that have no use here.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ssl_core.config import ConfigError, from_dict
from ssl_core.hub.config_json import read, written
from ssl_core.hub.keymap import KeyMap, Row, prefixed, same
from ssl_core.hub.layout import OPENED, Layout, WeightsMismatch, read_tensors
from ssl_core.hub.weights_file import load_pickle
from ssl_lm.config import BERTConfig, GPTConfig, T5Config


def without(rows: tuple[Row, ...], prefix: str) -> tuple[Row, ...]:
    """The same rows without a prefix on their side: a model that was saved without its head."""
    return tuple((ours, theirs.removeprefix(prefix)) for ours, theirs in rows if isinstance(theirs, str))


def config_of(
    cls: type, model_type: str, values: dict[str, Any], names: dict[str, str], fixed: dict[str, Any], **defaults: Any
) -> Any:
    """Our config of a transformers config.json; `defaults` are theirs for absent and null keys.

    Raises ConfigError for another architecture or an option that we do not have.
    """
    said = read(values, model_type, names=names, fixed=fixed, by=cls.__name__)
    # null means the default, but for a token it means that there is none
    said = {ours: value for ours, value in said.items() if value is not None or ours.endswith("_token_id")}
    fields = {**defaults, **said}
    return from_dict(cls, {**fields, **special_tokens(fields)})


def special_tokens(fields: Mapping[str, Any]) -> dict[str, Any]:
    """The ids of special tokens in `fields`, None where there is no such token.

    transformers writes its defaults beside any vocabulary, −1, and lists of ends. An id outside the
    vocabulary is no token's. Of a list the one id inside the vocabulary is taken, and none of
    several, with a warning.
    """
    size, ids = fields.get("vocab_size"), {}
    for name in (name for name in fields if name.endswith("_token_id")):
        given = fields[name] if isinstance(fields[name], list) else [fields[name]]
        inside = [i for i in given if type(i) is not int or (0 <= i and (type(size) is not int or i < size))]
        if len(inside) > 1:
            warnings.warn(f"{name} = {inside}: we have one such token or none, so it is read as none", stacklevel=2)
        ids[name] = inside[0] if len(inside) == 1 else None
    return ids


def tidy(aliases: Mapping[str, str], state: dict[str, Tensor], config: Any) -> dict[str, Tensor]:
    """`state` without `aliases` (alias → its weight).

    A file may hold an alias beside its weight or instead of it. Raises WeightsMismatch if an alias
    differs from its weight.
    """
    state = dict(state)
    for alias, weight in aliases.items():
        if (tied := state.pop(alias, None)) is not None and not torch.equal(state.setdefault(weight, tied), tied):
            raise WeightsMismatch(f"{alias} differs from {weight}, to which the config ties it: use transformers")
    return state


def infer(state: Mapping[str, Tensor]) -> Any:
    """Raises ConfigError: shapes do not say how many heads there are."""
    raise ConfigError("a language model's checkpoint needs its config.json beside it: give the folder of both")


def text_layout(keymap: KeyMap, to_theirs: Callable[[Any], dict[str, Any]], **fields: Any) -> Layout:
    """The `Layout` of a language model, with its export to transformers."""

    def export(state: Mapping[str, Tensor], config: Any) -> tuple[dict[str, Tensor], dict[str, Any]]:
        return keymap.to_theirs(state)[0], to_theirs(config)

    common: Any = {"infer": infer, "inputs": ("input_ids", "int64 (b, t)"), "exports": {"transformers": export}}
    return Layout(keymap=keymap, to_theirs=to_theirs, **common, **fields)


# ---------------------------------------------------------------- gpt2

GPT_BLOCK = ("ln_1", "attn.c_attn", "attn.c_proj", "ln_2", "mlp.c_fc", "mlp.c_proj")
GPT_ROWS = prefixed(
    same("wte.weight", "wpe.weight", "ln_f.{w}", *(f"h.{{i}}.{name}.{{w}}" for name in GPT_BLOCK)),
    ours="transformer.",
    theirs="transformer.",
)
HEAD = same("lm_head.weight")
GPT_KEYMAP = KeyMap(
    rows=GPT_ROWS,
    also=(*without(GPT_ROWS, "transformer."), *HEAD),  # the Hub's gpt2 has no prefix; the alias of wte
    drop=(r"(transformer\.)?h\.\d+\.attn\.(masked_)?bias",),  # causal masks, once stored as buffers
)
GPT_NAMES = {
    **{"dim": "n_embd", "depth": "n_layer", "heads": "n_head", "hidden": "n_inner", "context": "n_positions"},
    **{"activation": "activation_function", "layer_norm_eps": "layer_norm_epsilon"},
    **{name: name for name in ("vocab_size", "eos_token_id", "pad_token_id")},
}
"""Our config fields and transformers' names for the same value."""
FIXED: dict[str, Any] = {"add_cross_attention": False, "tie_word_embeddings": True}
GPT_FIXED = {**FIXED, "scale_attn_weights": True, "scale_attn_by_inverse_layer_idx": False}
"""Options of transformers of which we have one value, which is their default too."""


def gpt_to_theirs(config: GPTConfig) -> dict[str, Any]:
    """config.json of transformers' GPT2LMHeadModel."""
    dropout = {f"{part}_pdrop": config.dropout for part in ("embd", "attn", "resid")}
    bos = config.eos_token_id
    return written("gpt2", "GPT2LMHeadModel", config, GPT_NAMES, **GPT_FIXED, **dropout, bos_token_id=bos)


def gpt_from_theirs(values: dict[str, Any], preprocessor: dict[str, Any]) -> GPTConfig:
    """Our config of a transformers folder; the recipe's fields keep their defaults."""
    defaults = {"vocab_size": 50257, "eos_token_id": 50256, "dropout": values.get("resid_pdrop", 0.1)}
    return config_of(GPTConfig, "gpt2", values, GPT_NAMES, GPT_FIXED, **defaults)


NANOGPT = {"dim": "n_embd", "depth": "n_layer", "heads": "n_head", "context": "block_size", "vocab_size": "vocab_size"}
"""Our config fields and their names in the model_args of nanoGPT's ckpt.pt."""
GPT2_VOCABULARY = (50257, 50304)
"""GPT-2's tokens, and nanoGPT's default, which pads them to a multiple of 64."""


def of_nanogpt(path: Path) -> tuple[dict[str, Tensor], GPTConfig] | None:
    """(tensors under GPT-2's names, config) of nanoGPT's ckpt.pt; None for any other path.

    Its matrices are (out, in), its GELU is exact, and it may have no biases: zeros, which compute
    the same, stand for them. Its text ends with GPT-2's token if it has GPT-2's vocabulary. Raises
    ConfigError for damaged model_args.
    """
    if not path.is_file() or path.suffix not in (".pt", ".pth"):
        return None
    raw = load_pickle(path)
    if not isinstance(raw, dict) or not isinstance(args := raw.get("model_args"), dict):
        return None
    known = {ours: args[theirs] for ours, theirs in NANOGPT.items() if theirs in args}
    eos = 50256 if known.get("vocab_size") in GPT2_VOCABULARY else None
    config = from_dict(GPTConfig, {**known, "activation": "gelu", "eos_token_id": eos})
    state = {}
    for key, tensor in read_tensors(path, LAYOUTS["gpt"]).items():
        turned = tensor.ndim == 2 and re.search(r"\.(c_attn|c_proj|c_fc)\.weight$", key)
        state[key] = tensor.T.contiguous() if turned else tensor
        if args.get("bias") is False and re.search(r"\.(ln_\w+|c_attn|c_proj|c_fc)\.weight$", key):
            state[key.removesuffix("weight") + "bias"] = tensor.new_zeros(len(tensor))
    return state, config


# ---------------------------------------------------------------- bert

BERT_BLOCK = "encoder.layer.{i}."
BERT_NORMS = ("embeddings.LayerNorm", f"{BERT_BLOCK}attention.output.LayerNorm", f"{BERT_BLOCK}output.LayerNorm")
BERT_ROWS = prefixed(
    same(
        *(f"embeddings.{name}_embeddings.weight" for name in ("word", "position", "token_type")),
        *(f"{norm}.{{w}}" for norm in BERT_NORMS),
        *(f"{BERT_BLOCK}attention.self.{name}.{{w}}" for name in ("query", "key", "value")),
        *(f"{BERT_BLOCK}{name}.dense.{{w}}" for name in ("attention.output", "intermediate", "output")),
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
    rows=(*BERT_ROWS, *same("cls.predictions.bias", "cls.predictions.transform.dense.{w}", f"{TRANSFORM}.{{w}}")),
    also=(
        *BERT_OLD,
        *without((*BERT_ROWS, *BERT_OLD[:-2]), "bert."),
        *same("cls.predictions.decoder.weight", "cls.predictions.decoder.bias"),
    ),
    drop=(r"cls\.seq_relationship\..*", r"(bert\.)?pooler\..*", r".*position_ids"),
)
BERT_NAMES = {
    **{"dim": "hidden_size", "depth": "num_hidden_layers", "heads": "num_attention_heads"},
    **{"hidden": "intermediate_size", "context": "max_position_embeddings"},
    **{"token_types": "type_vocab_size", "init_std": "initializer_range"},
    **{name: name for name in ("vocab_size", "layer_norm_eps", "pad_token_id")},
}
BERT_FIXED = {**FIXED, "hidden_act": "gelu", "position_embedding_type": "absolute", "is_decoder": False}
BERT_ALIASES = {
    "cls.predictions.decoder.weight": "bert.embeddings.word_embeddings.weight",
    "cls.predictions.decoder.bias": "cls.predictions.bias",
}


def bert_to_theirs(config: BERTConfig) -> dict[str, Any]:
    """config.json of transformers' BertForMaskedLM."""
    more = {**BERT_FIXED, "intermediate_size": config.mlp_width}
    more |= {f"{part}_dropout_prob": config.dropout for part in ("hidden", "attention_probs")}
    return written("bert", "BertForMaskedLM", config, BERT_NAMES, **more)


def bert_from_theirs(values: dict[str, Any], preprocessor: dict[str, Any]) -> BERTConfig:
    """Our config of a transformers folder; the tokenizer knows [CLS] and its kin."""
    # None: `settle` asks the tokenizer
    unsaid = dict.fromkeys(("unk_token_id", "cls_token_id", "sep_token_id", "mask_token_id"))
    defaults = {"vocab_size": 30522, "hidden": 3072, "dropout": values.get("hidden_dropout_prob", 0.1)}
    return config_of(BERTConfig, "bert", values, BERT_NAMES, BERT_FIXED, **unsaid, **defaults)


# ---------------------------------------------------------------- t5


def _t5_stack(stack: str, mlp: int) -> tuple[str, ...]:
    """Names of an encoder or a decoder; the MLP is the last of a block's layers, number `mlp`."""
    block = f"{stack}.block.{{i}}.layer."
    cross = [f"{block}1.EncDecAttention.{name}.weight" for name in "qkvo"] if stack == "decoder" else []
    return (
        f"{stack}.final_layer_norm.weight",
        f"{block}0.SelfAttention.relative_attention_bias.weight",
        *(f"{block}0.SelfAttention.{name}.weight" for name in "qkvo"),
        *cross,
        *(f"{block}{mlp}.DenseReluDense.{name}.weight" for name in ("wi", "wi_0", "wi_1", "wo")),
        *(f"{block}{layer}.layer_norm.weight" for layer in range(mlp + 1)),
    )


T5_EMBEDDINGS = ("encoder.embed_tokens.weight", "decoder.embed_tokens.weight")
T5_KEYMAP = KeyMap(
    rows=(*same("shared.weight", *_t5_stack("encoder", 1), *_t5_stack("decoder", 2)), *HEAD),
    also=same(*T5_EMBEDDINGS),
    drop=(r"decoder\.block\.0\.layer\.1\.EncDecAttention\.relative_attention_bias\.weight",),
)
T5_NAMES = {
    **{"dim": "d_model", "depth": "num_layers", "decoder_depth": "num_decoder_layers", "heads": "num_heads"},
    **{"head_dim": "d_kv", "hidden": "d_ff", "dropout": "dropout_rate", "layer_norm_eps": "layer_norm_epsilon"},
    **{"buckets": "relative_attention_num_buckets", "max_distance": "relative_attention_max_distance"},
    **{name: name for name in ("vocab_size", "pad_token_id", "eos_token_id")},
}
T5_MLPS = {"relu": False, "gated-gelu": True}
"""transformers' feed_forward_proj and our `gated`."""


def t5_to_theirs(config: T5Config) -> dict[str, Any]:
    """config.json of transformers' T5ForConditionalGeneration."""
    more = {
        "feed_forward_proj": "gated-gelu" if config.gated else "relu",
        "tie_word_embeddings": config.tied,
        "scale_decoder_outputs": config.tied,
        "decoder_start_token_id": config.pad_token_id,
        "is_encoder_decoder": True,
        "n_positions": config.context,
    }
    return written("t5", "T5ForConditionalGeneration", config, T5_NAMES, **more)


def t5_from_theirs(values: dict[str, Any], preprocessor: dict[str, Any]) -> T5Config:
    """Our config of a transformers folder.

    Sentinels are the last 100 of a vocabulary that is padded to a multiple of 128.
    """
    if (kind := values.get("feed_forward_proj", "relu")) not in T5_MLPS:
        known = " and ".join(T5_MLPS)
        raise ConfigError(f"feed_forward_proj = {kind!r} is not supported, {known} are: use transformers")
    start, size = values.get("decoder_start_token_id"), values.get("vocab_size", 32128)
    pad = special_tokens({"vocab_size": size, "pad_token_id": values.get("pad_token_id", 0)})["pad_token_id"]
    pad = start if pad is None else pad
    if start not in (None, pad):
        raise ConfigError(f"decoder_start_token_id = {start}: here a decoder starts with the pad token {pad}")
    layers = values.get("num_layers", 6)
    published = type(size) is int and size == 32128
    # t5-small's sizes are the defaults of transformers
    sizes = {"vocab_size": 32128, "dim": 512, "depth": 6, "decoder_depth": layers, "heads": 8, "hidden": 2048}
    kinds = {
        "gated": T5_MLPS[kind],
        "tied": values.get("scale_decoder_outputs", values.get("tie_word_embeddings", True)),
        "first_sentinel": 32099 if published else None,
        "context": values.get("n_positions", 512),
    }
    return config_of(T5Config, "t5", {**values, "pad_token_id": pad}, T5_NAMES, {}, **sizes, **kinds)


def t5_tidy(state: dict[str, Tensor], config: T5Config) -> dict[str, Tensor]:
    """`state` without the aliases of the embedding; the head is one if the config ties it."""
    names = (*T5_EMBEDDINGS, "lm_head.weight") if config.tied else T5_EMBEDDINGS
    state = tidy(dict.fromkeys(names, "shared.weight"), state, config)
    # transformers leaves out a head of its own that it tied when it saved the model
    if not config.tied and "shared.weight" in state:
        state.setdefault("lm_head.weight", state["shared.weight"])
    return state


LAYOUTS = {
    "gpt": text_layout(
        GPT_KEYMAP,
        gpt_to_theirs,
        from_theirs=gpt_from_theirs,
        foreign=of_nanogpt,
        tidy=partial(tidy, {"lm_head.weight": "transformer.wte.weight"}),
        recipe=("dropout",),
        others={"gpt2": ("transformers", "text-generation", OPENED)},
    ),
    "bert": text_layout(
        BERT_KEYMAP,
        bert_to_theirs,
        from_theirs=bert_from_theirs,
        tidy=partial(tidy, BERT_ALIASES),
        recipe=("dropout", "init_std", "mask_rate", "whole_words"),
        others={"bert": ("transformers", "fill-mask", OPENED)},
    ),
    "t5": text_layout(
        T5_KEYMAP,
        t5_to_theirs,
        from_theirs=t5_from_theirs,
        tidy=t5_tidy,
        recipe=("dropout", "density", "mean_span"),
        rewritten=("tie_word_embeddings",),  # transformers 5 says true whether or not the weights are tied
        others={"t5": ("transformers", None, OPENED)},  # transformers 5 has no text-to-text pipeline
    ),
}
