"""BEiT: its loss against plain Python, what hidden patches see, initialisation, features."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch
from torch import nn

from ssl_beit import BEiT, BEiTConfig, beit_loss
from ssl_beit.beit import masked_first
from ssl_beit.config import vit_base
from ssl_core.config import ConfigError
from ssl_core.pixels import normalize
from ssl_train.fit import passes
from ssl_train.optim import build_optimizer

SIZES = {"image_size": (16, 24), "patch_size": 8, "dim": 16, "depth": 2, "heads": 2, "drop_path": 0.0}
TOKENS = {"vocab": 12, "mask_patches": 3, "mask_block": 1}
TOKENIZER = {"tokenizer_hidden": 8, "tokenizer_blocks": 1, "tokenizer_init": 4}
SMALL = BEiTConfig(**SIZES, **TOKENS, **TOKENIZER)


def method(**fields) -> BEiT:
    """A small network with random weights, tables too."""
    torch.manual_seed(0)
    network = BEiT(dataclasses.replace(SMALL, **fields))
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return network.eval()


def pixels(b: int = 2, c: int = 3, h: int = 16, w: int = 24) -> torch.Tensor:
    return torch.randint(0, 256, (b, c, h, w), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))


MASK = torch.tensor([[1, 0, 0, 1, 1, 0], [0, 0, 1, 0, 0, 0]], dtype=torch.bool)


def plain_loss(logits: list, tokens: list, mask: list) -> float:
    total, count = 0.0, 0
    for b in range(len(mask)):
        for n in range(len(mask[b])):
            if mask[b][n]:
                row = logits[b][n]
                total -= row[tokens[b][n]] - math.log(sum(math.exp(value) for value in row))
                count += 1
    return total / count


def test_the_loss_equals_plain_python():
    network, images = method(), pixels()
    tokens = network.tokenize(images).flatten(1)
    expected = plain_loss(network.logits(images, MASK).tolist(), tokens.tolist(), MASK.tolist())
    out = network({"views": [images, images], "mask": MASK}, 0.0)
    assert out["loss"].item() == pytest.approx(expected, rel=1e-5)
    right = network.logits(images, MASK).argmax(-1) == tokens
    assert out["accuracy"].item() == pytest.approx(right[MASK].float().mean().item())
    assert out["most_frequent"].item() == pytest.approx(tokens[MASK].bincount().max().item() / 4)


def test_tokens_of_patches_that_are_seen_do_not_matter():
    logits, tokens = torch.randn(2, 6, 12), torch.randint(12, (2, 6))
    ids, weight = masked_first(MASK, 3)
    chosen = logits.gather(1, ids[..., None].expand(-1, -1, 12))
    other = torch.where(MASK, tokens, (tokens + 1) % 12)
    losses = [beit_loss(chosen, t.gather(1, ids), weight).item() for t in (tokens, other)]
    assert losses[0] == losses[1]
    assert losses[0] == pytest.approx(nn.functional.cross_entropy(logits[MASK], tokens[MASK]).item(), rel=1e-6)


def test_hidden_patches_come_first_and_are_weighted():
    ids, weight = masked_first(MASK, 3)
    assert ids[0].tolist() == [0, 3, 4] and ids[1, 0] == 2
    assert weight.tolist() == [[1, 1, 1], [1, 0, 0]]


def test_a_mask_beyond_the_budget_is_refused_not_cut():
    mask = torch.ones(2, 6, dtype=torch.bool)
    with pytest.raises(RuntimeError, match="a mask hides more than mask_patches patches"):
        method()({"views": [pixels(), pixels()], "mask": mask}, 0.0)


def test_the_loss_begins_near_the_logarithm_of_the_vocabulary():
    torch.manual_seed(0)
    network = BEiT(dataclasses.replace(SMALL, vocab=512, dim=64, heads=4, image_size=64, mask_patches=30))
    mask = torch.rand(4, 64) < 0.4
    mask &= mask.cumsum(1) <= 30
    out = network({"views": [pixels(4, h=64, w=64)] * 2, "mask": mask}, 0.0)
    assert out["loss"].item() == pytest.approx(math.log(512), abs=0.1)


def test_hidden_patches_are_seen_by_nothing():
    network, images = method(), pixels()
    hide = MASK.view(2, 1, 2, 3).repeat_interleave(8, 2).repeat_interleave(8, 3)
    changed = torch.where(hide, 255 - images, images)
    assert torch.equal(network.logits(images, MASK), network.logits(changed, MASK))
    assert not torch.equal(network.logits(images, ~MASK), network.logits(changed, ~MASK))


def test_positions_are_relative_alone():
    network, images = method(), pixels()
    with torch.no_grad():
        network.encoder.rel_pos_bias.relative_position_bias_table.zero_()
    rolled = images.roll(8, 3)  # by a patch
    tokens, moved = network.patch_features(images), network.patch_features(rolled)
    assert torch.allclose(moved, tokens.roll(1, 2), atol=1e-5), "without the table the order of patches is nothing"
    network = method()
    assert not torch.allclose(network.patch_features(rolled), network.patch_features(images).roll(1, 2), atol=1e-3)


def test_the_bias_is_added_to_the_logits_of_every_block():
    network, x = method(), torch.randn(2, 7, 16)
    bias = network.encoder.rel_pos_bias((2, 3))
    attention = network.encoder.blocks[1].attn
    q, k, v = attention.split(x)
    weights = (q @ k.transpose(-2, -1) / math.sqrt(8) + bias).softmax(-1)
    expected = attention.proj((weights @ v).transpose(1, 2).flatten(2))
    assert torch.allclose(attention(x, bias), expected, atol=1e-6)


def test_keys_have_no_bias():
    attention = method().encoder.blocks[0].attn
    names = {name for name, _ in attention.named_parameters()}
    assert names == {"qkv.weight", "q_bias", "v_bias", "proj.weight", "proj.bias"}
    _, k, _ = attention.split(torch.zeros(1, 2, 16))
    assert k.abs().max() == 0


def test_another_size_resamples_the_table():
    network = method()
    assert network.encode(pixels(h=32, w=16)).shape == (2, 16)
    assert network.logits(pixels(h=32, w=16), torch.zeros(2, 8, dtype=torch.bool)).shape == (2, 8, 12)


def test_initialisation_is_the_specifications():
    torch.manual_seed(0)
    network = BEiT(dataclasses.replace(vit_base(), depth=2, tokenizer_hidden=0, tokenizer=None))
    for name, module in network.named_modules():
        if isinstance(module, nn.Linear | nn.Conv2d):
            block = int(name.split(".")[2]) + 1 if "blocks" in name else 0
            scale = math.sqrt(2 * block) if name.endswith(("attn.proj", "mlp.fc2")) else 1
            assert module.weight.abs().max().item() <= 0.02 / scale + 1e-9, name
            assert module.weight.std().item() * scale == pytest.approx(0.01079, rel=0.02), name
            assert module.bias is None or module.bias.abs().max() == 0, name
    assert 0.0141 < network.encoder.blocks[0].attn.proj.weight.abs().max() <= 0.01415
    for token in (network.encoder.cls_token, network.encoder.mask_token):
        assert token.abs().max() <= 0.02 and token.std().item() == pytest.approx(0.01079, rel=0.1)
    assert network.encoder.rel_pos_bias.relative_position_bias_table.abs().max() == 0
    assert all((block.ls1.gamma == 0.1).all() and (block.ls2.gamma == 0.1).all() for block in network.encoder.blocks)


def test_parameters_are_as_many_as_published():
    with torch.device("meta"):
        network = BEiT(dataclasses.replace(vit_base(), tokenizer_hidden=0, tokenizer=None))
    assert sum(p.numel() for p in network.parameters()) == 91_965_776


def test_matrices_decay_and_vectors_and_cls_do_not():
    network = method()
    groups = build_optimizer(network, network.config).param_groups
    decayed, plain = (set(group["param_names"]) for group in groups)
    assert (groups[0]["weight_decay"], groups[1]["weight_decay"]) == (0.05, 0.0)
    assert {"encoder.mask_token", "encoder.rel_pos_bias.relative_position_bias_table"} <= decayed
    assert {"encoder.cls_token", "encoder.blocks.0.ls1.gamma", "encoder.blocks.0.attn.q_bias"} <= plain
    assert not any(name.startswith("tokenizer.") for name in decayed | plain)


@pytest.mark.parametrize("pool", ["cls", "mean"])
@pytest.mark.parametrize("final_norm", ["tokens", "pooled"])
def test_features_are_pooled_as_the_config_says(pool, final_norm):
    alone = {"vocab": 0, "tokenizer_hidden": 0, "tokenizer": None} if final_norm == "pooled" else {}
    network, images = method(pool=pool, final_norm=final_norm, **alone), pixels()
    x = network.encoder.tokens(normalize(images, SMALL.mean, SMALL.std))
    norm = network.encoder.norm if final_norm == "tokens" else network.encoder.fc_norm
    assert isinstance(norm, nn.LayerNorm)
    x = norm(x) if final_norm == "tokens" else x
    expected = x[:, 0] if pool == "cls" else x[:, 1:].mean(1)
    expected = norm(expected) if final_norm == "pooled" else expected
    assert torch.allclose(network.encode(images), expected, atol=1e-6)
    assert torch.allclose(network.patch_features(images), x[:, 1:].view(2, 2, 3, 16), atol=1e-6)


def test_drop_path_rises_from_0_to_its_rate():
    network = method(depth=3, drop_path=0.2)
    assert [block.drop_path.rate for block in network.encoder.blocks] == pytest.approx([0, 0.1, 0.2])


@pytest.mark.parametrize(
    ("mask", "message"),
    [
        (
            torch.zeros(2, 5, dtype=torch.bool),
            r"mask must be bool \(2, 6\), one value per patch, got torch.bool \(2, 5\)",
        ),
        (torch.zeros(2, 6), r"mask must be bool \(2, 6\), one value per patch, got torch.float32"),
    ],
)
def test_masks_that_do_not_fit_are_refused(mask, message):
    with pytest.raises(ValueError, match=message):
        method().logits(pixels(), mask)


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (pixels(c=4), r"images must be \(b, 3, h, w\) for 3 channel means, got \(2, 4, 16, 24\)"),
        (pixels(c=4).float(), r"images must be \(b, 3, h, w\), got \(2, 4, 16, 24\)"),
        (pixels()[0], r"images must be \(b, 3, h, w\) for 3 channel means, got \(3, 16, 24\)"),
        (pixels(h=18), "18x24 is not divisible by the patch size 8"),
    ],
)
def test_images_that_do_not_fit_are_refused(images, message):
    with pytest.raises(ValueError, match=message):
        method().encode(images)


def test_an_encoder_alone_says_what_it_lacks():
    network = method(vocab=0, tokenizer_hidden=0, tokenizer=None)
    assert network.encode(pixels()).shape == (2, 16)
    with pytest.raises(ConfigError, match="no mask token"):
        network.logits(pixels(), MASK)
    with pytest.raises(ConfigError, match="hold no tokenizer"):
        network.tokenize(pixels())


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"heads": 3}, "heads = 3: must divide the width 16"),
        ({"layer_scale": 0.0}, "layer_scale = 0.0: must be above 0"),
        ({"mask_patches": 7}, "mask_patches = 7: must be at most 6"),
        ({"mask_block": 7}, "mask_block = 7: must be at most 6"),
        ({"image_size": (8, 24)}, "a block mask needs two rows"),
        ({"vocab": 1}, "vocab = 1"),
        ({"final_norm": "pooled"}, "final_norm = 'pooled': is for an encoder alone"),
        ({"vocab": 0}, "vocab = 0: a tokenizer needs visual tokens"),
        ({"tokenizer_hidden": 6}, "tokenizer_hidden = 6: must be .*a multiple of 4"),
        ({"tokenizer_init": 0}, "tokenizer_init = 0"),
        ({"drop_path": 1.0}, "drop_path = 1.0"),
        ({"jitter": -0.1}, "jitter = -0.1"),
        ({"crop_scale": (0.0, 1.0)}, "crop_scale"),
    ],
)
def test_a_config_that_makes_no_network_is_refused(fields, message):
    with pytest.raises(ConfigError, match=message):
        dataclasses.replace(SMALL, **fields)


def test_images_with_more_hidden_patches_count_more_in_accumulation():
    network = method(mask_patches=4)
    mask = torch.tensor([[1, 1, 1, 1, 0, 0], [1, 1, 1, 0, 0, 0], [1, 0, 0, 0, 0, 0], [0, 1, 0, 0, 0, 0]]).bool()
    batch = {"views": [pixels(4), pixels(4, h=16, w=24)], "mask": mask}
    parts = [{"views": [view[i : i + 2] for view in batch["views"]], "mask": mask[i : i + 2]} for i in (0, 2)]

    def gradient(given):
        network.zero_grad()
        for part, share in passes(network, given):
            (network(part, 0.0)["loss"] * share).backward()
        return torch.cat([p.grad.flatten() for p in network.parameters() if p.grad is not None])

    assert [share for _, share in passes(network, parts)] == [7 / 9, 2 / 9]
    torch.testing.assert_close(gradient(parts), gradient([batch]), rtol=1e-4, atol=1e-6)
