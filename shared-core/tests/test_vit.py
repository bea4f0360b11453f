"""The Vision Transformer: what it computes, of which tokens, at which cost."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from ssl_core.hub.encoders import VIT
from ssl_core.hub.keymap import KeyMap
from ssl_core.patches import interpolate_positions, patchify, take_tokens, unpatchify
from ssl_core.vit import Attention, Block, DropPath, LayerScale, PatchEmbed, ViT, attention, attention_weights


def random_(module: nn.Module, seed: int = 0) -> nn.Module:
    """`module` with every parameter drawn anew, positions, CLS and biases too, in eval mode."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(0.3 * torch.randn(parameter.shape, generator=generator))
    return module.eval()


def vit(**options) -> ViT:
    sizes = dict(image_size=16, patch_size=4, dim=24, depth=3, heads=3)
    return random_(ViT(**{**sizes, **options}))


def images(h: int = 16, w: int = 16, c: int = 3, b: int = 2) -> torch.Tensor:
    return torch.randn(b, c, h, w, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize(
    ("options", "parameters"),
    [
        (dict(dim=384, heads=6), 21_665_664),
        (dict(), 85_798_656),
        (dict(dim=1024, depth=24, heads=16), 303_301_632),
        # DINOv2's, without its mask token
        (dict(image_size=518, patch_size=14, layer_scale=1e-5), 86_579_712),
    ],
)
def test_parameters_are_as_many_as_published(options, parameters):
    with torch.device("meta"):
        assert sum(p.numel() for p in ViT(**options).parameters()) == parameters


def test_forward_equals_a_transformer_written_out():
    network, x = vit(layer_norm_eps=1e-3), images()
    tokens = []
    for n in range(16):
        row, column = divmod(n, 4)
        patch = x[:, :, 4 * row : 4 * row + 4, 4 * column : 4 * column + 4]
        projection = network.patch_embed.proj
        tokens.append(torch.einsum("bcpq,dcpq->bd", patch, projection.weight) + projection.bias)
    y = torch.stack([network.cls_token[0, 0].expand(2, -1), *tokens], 1) + network.pos_embed
    for block in network.blocks:
        z = F.layer_norm(y, (24,), block.norm1.weight, block.norm1.bias, 1e-3)
        q, k, v = F.linear(z, block.attn.qkv.weight, block.attn.qkv.bias).split(24, -1)
        heads = []
        for h in range(3):
            part = slice(8 * h, 8 * h + 8)
            weights = (q[..., part] @ k[..., part].transpose(1, 2) / 8**0.5).softmax(-1)
            heads.append(weights @ v[..., part])
        y = y + F.linear(torch.cat(heads, -1), block.attn.proj.weight, block.attn.proj.bias)
        z = F.layer_norm(y, (24,), block.norm2.weight, block.norm2.bias, 1e-3)
        z = F.linear(z, block.mlp.fc1.weight, block.mlp.fc1.bias)
        z = z * 0.5 * (1 + torch.erf(z / 2**0.5))
        y = y + F.linear(z, block.mlp.fc2.weight, block.mlp.fc2.bias)
    expected = F.layer_norm(y, (24,), network.norm.weight, network.norm.bias, 1e-3)
    assert torch.allclose(network(x), expected, atol=1e-5)


def test_patch_projection_is_the_convolution_that_its_weights_are():
    embed, x = random_(PatchEmbed(patch_size=4, in_channels=2, dim=5)), images(c=2, h=8, w=12)
    convolved = embed.proj(x).flatten(2).transpose(1, 2)
    assert torch.allclose(embed(x), convolved, atol=1e-5)


@pytest.mark.parametrize("positions", ["learned", "sincos"])
def test_equal_transformers_vit_with_the_same_weights(positions, tmp_path):
    from transformers import ViTConfig, ViTModel

    config = ViTConfig(
        image_size=16, patch_size=4, hidden_size=24, num_hidden_layers=3, num_attention_heads=3, intermediate_size=60,
        layer_norm_eps=1e-6,
    )  # fmt: skip
    theirs = random_(ViTModel(config, add_pooling_layer=False))
    ours = ViT(image_size=16, patch_size=4, dim=24, depth=3, heads=3, mlp_ratio=2.5, positions=positions).eval()
    theirs.save_pretrained(tmp_path)
    from safetensors.torch import load_file

    state, unknown = KeyMap(rows=VIT).to_ours(load_file(tmp_path / "model.safetensors"))
    assert unknown == []
    ours.load_state_dict(state)
    with torch.no_grad():
        assert torch.allclose(ours(images()), theirs(images()).last_hidden_state, atol=1e-5)
        larger = theirs(images(24, 24), interpolate_pos_encoding=True).last_hidden_state
        assert torch.allclose(ours(images(24, 24)), larger, atol=1e-5)


def test_an_mlp_is_as_wide_as_the_ratio_says_whatever_the_rounding_of_floats():
    assert int(44 * (60 / 44)) == 59, "a case that truncation gets wrong"
    assert Block(dim=44, heads=4, mlp_ratio=60 / 44).mlp.fc1.out_features == 60


def test_keeping_every_patch_in_order_equals_seeing_the_whole_image():
    network, x = vit(), images()
    assert torch.allclose(network(x, torch.arange(16).expand(2, -1)), network(x), atol=1e-5)


def test_dropped_patches_do_not_reach_any_token():
    network, x = vit(), images()
    keep = torch.tensor([[3, 7, 12], [0, 15, 4]])
    patches = patchify(x, 4)
    hidden = torch.ones(2, 16, dtype=torch.bool).scatter(1, keep, False)
    other = unpatchify(torch.where(hidden[..., None], torch.full_like(patches, 9.0), patches), 4, (4, 4))
    assert not torch.equal(other, x)
    seen = network(x, keep)
    assert seen.shape == (2, 4, 24)
    assert torch.equal(network(other, keep), seen)


def test_kept_tokens_come_in_the_order_of_keep():
    network, x = vit(), images()
    keep = torch.tensor([[3, 7, 12], [0, 15, 4]])
    turned = network(x, keep.flip(1))
    straight = network(x, keep)
    assert torch.allclose(turned[:, 1:].flip(1), straight[:, 1:], atol=1e-5)
    assert torch.allclose(turned[:, 0], straight[:, 0], atol=1e-5)


def test_shuffling_the_patches_of_an_image_changes_cls_only_through_the_positions():
    x = images(b=1)
    order = torch.randperm(16, generator=torch.Generator().manual_seed(0))
    shuffled = unpatchify(take_tokens(patchify(x, 4), order[None]), 4, (4, 4))
    network = vit(positions="sincos")
    assert (network(x)[:, 0] - network(shuffled)[:, 0]).abs().max() > 1e-3
    with torch.no_grad():
        network.pos_embed.zero_()
    assert torch.allclose(network(x)[:, 0], network(shuffled)[:, 0], atol=1e-5)


def test_another_image_size_resamples_the_positions_by_the_networks_convention():
    for how in ("offset", "size", "antialias"):
        network, x = vit(pos_interp=how), images(24, 8)
        assert network.patch_features(x).shape == (2, 6, 2, 24)
        resized = vit(image_size=(24, 8))
        state = network.state_dict()
        state["pos_embed"] = interpolate_positions(state["pos_embed"], (4, 4), (6, 2), how)
        resized.load_state_dict(state)
        assert torch.allclose(network(x), resized(x), atol=1e-5)


def test_oblong_native_sizes_keep_rows_before_columns():
    network, x = vit(image_size=(8, 24)), images(8, 24)
    features = network.patch_features(x)
    assert features.shape == (2, 2, 6, 24)
    assert torch.equal(features[:, 1, 2], network(x)[:, 1 + 8])


@pytest.mark.parametrize(
    ("x", "message"),
    [
        (torch.zeros(2, 4, 16, 16), r"must be \(b, 3, h, w\), got \(2, 4, 16, 16\)"),
        (torch.zeros(3, 16, 16), r"must be \(b, 3, h, w\), got \(3, 16, 16\)"),
        (torch.zeros(2, 3, 16, 18), "16x18 is not divisible by the patch size 4: resize to 16x16"),
        (torch.zeros(2, 3, 16, 16, dtype=torch.uint8), "must be normalised floats, got torch.uint8"),
    ],
)
def test_images_that_do_not_fit_are_refused(x, message):
    with pytest.raises(ValueError, match=message):
        vit()(x)


def test_heads_must_divide_the_width():
    with pytest.raises(ValueError, match="width 24 is not divisible by 5 heads"):
        Attention(dim=24, heads=5)


def test_bf16_attention_on_a_cpu_is_that_of_float32_up_to_rounding():
    q, k, v = (images(5, 8, c=3) for _ in range(3))
    exact = attention_weights(q, k) @ v
    assert torch.allclose(attention(q, k, v), exact, atol=1e-5)
    assert torch.allclose(attention_weights(q, k).sum(-1), torch.ones(2, 3, 5))
    rounded = attention(q.bfloat16(), k.bfloat16(), v.bfloat16())
    assert rounded.dtype == torch.bfloat16
    assert torch.allclose(rounded.float(), exact, atol=0.03)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 0.05)])
def test_a_bias_is_added_to_the_logits_and_has_a_gradient(dtype, tolerance):
    torch.manual_seed(0)
    q, k, v = (torch.randn(2, 3, 5, 8, dtype=dtype) for _ in range(3))
    bias = torch.randn(3, 5, 5, requires_grad=True)
    out = attention(q, k, v, bias)
    fused = F.scaled_dot_product_attention(q.float(), k.float(), v.float(), attn_mask=bias)
    assert out.dtype == dtype
    assert torch.allclose(out.float(), fused, atol=tolerance)
    [gradient] = torch.autograd.grad(out.float().square().sum(), bias)
    [expected] = torch.autograd.grad(fused.square().sum(), bias)
    assert torch.allclose(gradient, expected, atol=10 * tolerance)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_weights_of_another_dtype_take_float32_images(dtype):
    network, x = vit(), images()
    expected = network(x)
    result = network.to(dtype)(x)
    assert result.dtype == dtype
    tolerance = 1e-5 if dtype == torch.float64 else 0.2
    assert torch.allclose(result.float(), expected, atol=tolerance)


def test_attention_maps_are_the_weights_that_the_block_uses():
    network, x = vit(), images()
    for index, block in enumerate(network.blocks):
        y = network.embed(x)
        for earlier in network.blocks[:index]:
            y = earlier(y)
        maps = network.attention_matrix(x, index)
        assert maps.shape == (2, 3, 17, 17)
        assert torch.equal(network.attention_matrix(x, index - 3), maps), "counted from the end"
        normed = block.norm1(y)
        values = block.attn.split(normed)[2]
        mixed = block.attn.proj((maps @ values).transpose(1, 2).flatten(2))
        assert torch.allclose(mixed, block.attn(normed), atol=1e-5)
    with pytest.raises(IndexError):
        network.attention_matrix(x, 3)


def test_attention_maps_are_what_cls_gives_to_the_patches():
    network, x = vit(registers=2), images(16, 24)
    matrix, maps = network.attention_matrix(x, 1), network.attention_maps(x, 1)
    assert matrix.shape == (2, 3, 27, 27) and maps.shape == (2, 3, 4, 6)
    for row, column in ((0, 0), (1, 2), (3, 5)):
        assert torch.allclose(maps[:, :, row, column], matrix[:, :, 0, 3 + 6 * row + column], rtol=1e-5)
    assert torch.allclose(maps.sum((2, 3)) + matrix[:, :, 0, :3].sum(-1), torch.ones(2, 3))


def test_attention_maps_of_a_large_picture_need_no_whole_matrix():
    network = vit().eval()
    sizes: list[int] = []

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            result = function(*args, **(kwargs or {}))
            sizes.extend(
                y.numel() for y in (result if isinstance(result, tuple) else (result,)) if isinstance(y, torch.Tensor)
            )
            return result

    with torch.inference_mode(), Watch():
        network.attention_maps(images(256, 256)[:1], 2)
    n = 1 + 64 * 64
    assert n * 24 <= max(sizes) < n * n, "something as large as one head's matrix was made"


def test_registers_stand_behind_cls_without_a_position_and_leave_no_output():
    network, x = vit(registers=2), images(24, 8)
    embedded = network.embed(x)
    assert embedded.shape == (2, 1 + 2 + 12, 24)
    assert torch.equal(embedded[:, 1:3], network.register_tokens.expand(2, -1, -1))
    y = embedded
    for block in network.blocks:
        y = block(y)
    assert torch.equal(network(x), network.norm(torch.cat([y[:, :1], y[:, 3:]], 1)))
    assert network.patch_features(x).shape == (2, 6, 2, 24)
    keep = torch.tensor([[3, 7, 11], [0, 10, 4]])
    assert network(x, keep).shape == (2, 4, 24)
    before = network(x)
    with torch.no_grad():
        network.register_tokens[:, 1, 0] += 1
    assert not torch.allclose(network(x), before, atol=1e-3), "they take part in the attention"


def test_layer_scale_multiplies_each_branch_per_channel():
    block, x = random_(Block(dim=24, heads=3, layer_scale=0.1)), images(1, 24, c=5)[:, :, 0]
    y = x + block.ls1.gamma * block.attn(block.norm1(x))
    assert torch.allclose(block(x), y + block.ls2.gamma * block.mlp(block.norm2(y)), atol=1e-6)
    assert torch.equal(LayerScale(5, 0.1).gamma.detach(), torch.full((5,), 0.1))
    names = {name for name, _ in Block(dim=24, heads=3, layer_scale=0.1).named_parameters()}
    plain = {name for name, _ in Block(dim=24, heads=3).named_parameters()}
    assert names - plain == {"ls1.gamma", "ls2.gamma"}


def test_drop_path_drops_whole_samples_and_keeps_the_mean():
    torch.manual_seed(0)
    layer, x = DropPath(0.25).train(), torch.ones(4000, 2, 3)
    kept = layer(x)
    per_sample = kept.flatten(1)
    assert (per_sample == per_sample[:, :1]).all()
    assert sorted(per_sample.unique().tolist()) == pytest.approx([0, 1 / 0.75])
    assert kept.mean().item() == pytest.approx(1, abs=0.04)  # three standard deviations of 4000 draws are 0.027
    assert torch.equal(layer.eval()(x), x)


def test_drop_path_rises_linearly_over_the_blocks():
    network = ViT(image_size=8, patch_size=4, dim=8, depth=5, heads=2, drop_path=0.2)
    rates = [block.drop_path.rate for block in network.blocks]
    assert rates == pytest.approx([0, 0.05, 0.1, 0.15, 0.2])


def test_every_weight_gets_a_gradient_and_fixed_positions_get_none():
    network = vit(positions="sincos").train()
    network(images()).square().mean().backward()
    without = [name for name, p in network.named_parameters() if p.grad is None]
    assert without == ["pos_embed"]


def flops(network: ViT, keep: int | None = None) -> tuple[float, float]:
    """(of linear layers, of attention products) for one image, in FLOPs, without computing
    anything."""
    with torch.device("meta"):
        x, index = torch.empty(1, 3, 224, 224), torch.empty(1, keep or 0, dtype=torch.long)
        with FlopCounterMode(display=False) as counter:
            network(x, index if keep else None)
    by_kind = counter.get_flop_counts()["Global"]
    products = sum(n for kind, n in by_kind.items() if "bmm" in str(kind))
    return counter.get_total_flops() - products, products


def test_seeing_a_quarter_of_the_patches_costs_a_quarter():
    with torch.device("meta"):
        network = ViT(positions="sincos")
    (whole, whole_products), (quarter, quarter_products) = flops(network), flops(network, keep=49)
    blocks, projection = 2 * 12 * 12 * 768**2, 2 * 768 * 768  # per token, per patch
    assert whole == blocks * 197 + projection * 196
    assert quarter == blocks * 50 + projection * 49
    assert whole_products == 12 * 4 * 197**2 * 768
    assert quarter_products == 12 * 4 * 50**2 * 768
    # The published 3.86 counts linear layers only, and projects the patches that nobody looks at.
    assert whole / (quarter + projection * 147) == pytest.approx(3.86, abs=0.02)
    assert (whole + whole_products) / (quarter + quarter_products) == pytest.approx(4.06, abs=0.02)
