"""The masked autoencoder: its loss against plain Python, and what holds for any weights."""

from __future__ import annotations

import dataclasses
import math
import statistics

import pytest
import torch
from torch import nn

from ssl_core.patches import patchify, take_tokens, unpatchify
from ssl_core.pixels import normalize
from ssl_mae import MAE, MAEConfig, mae_loss, random_masking
from ssl_mae.config import vit_base
from ssl_mae.mae import standardize
from ssl_train.optim import decay_groups, warmup_cosine

SMALL = MAEConfig(
    image_size=(8, 12),
    patch_size=4,
    dim=16,
    depth=2,
    heads=2,
    decoder_dim=12,
    decoder_depth=2,
    decoder_heads=3,
    mask_ratio=0.6,
)


def method(**fields) -> MAE:
    """A small network with random weights, the decoder's mask token and biases too."""
    torch.manual_seed(0)
    network = MAE(dataclasses.replace(SMALL, **fields))
    with torch.no_grad():
        for parameter in network.parameters():
            if parameter.requires_grad:
                parameter.add_(0.2 * torch.randn_like(parameter))
    return network.eval()


def pixels(b: int = 2, c: int = 3, h: int = 8, w: int = 12) -> torch.Tensor:
    return torch.randint(0, 256, (b, c, h, w), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))


def noise(b: int = 2, n: int = 6) -> torch.Tensor:
    return torch.rand(b, n, generator=torch.Generator().manual_seed(2))


def plain_loss(images: list, pred: list, noise: list, config: MAEConfig) -> float:
    """The loss of images [b][c][h][w] of bytes in loops over numbers, for predictions [b][n][d]."""
    p, channels = config.patch_size, config.in_channels
    total, removed = 0.0, 0
    for b, image in enumerate(images):
        rows, columns = len(image[0]) // p, len(image[0][0]) // p
        keep = int(rows * columns * (1 - config.mask_ratio))
        seen = sorted(range(rows * columns), key=lambda i: noise[b][i])[:keep]
        for n in set(range(rows * columns)) - set(seen):
            target = [
                (image[c][n // columns * p + y][n % columns * p + x] / 255 - config.mean[c]) / config.std[c]
                for y in range(p)
                for x in range(p)
                for c in range(channels)
            ]
            if config.norm_pix_loss:
                mean, var = statistics.fmean(target), statistics.variance(target)
                target = [(value - mean) / math.sqrt(var + 1e-6) for value in target]
            total += sum((a - b) ** 2 for a, b in zip(pred[b][n], target, strict=True)) / len(target)
            removed += 1
    return total / removed


@pytest.mark.parametrize("norm_pix_loss", [True, False])
@pytest.mark.parametrize("channels", [1, 3])
def test_loss_equals_plain_python(norm_pix_loss, channels):
    mean, std = (0.4, 0.5, 0.3)[:channels], (0.2, 0.3, 0.25)[:channels]
    network = method(norm_pix_loss=norm_pix_loss, in_channels=channels, mean=mean, std=std)
    images = pixels(c=channels)
    result = network.reconstruct(images, noise())
    expected = plain_loss(images.tolist(), result.pred.tolist(), noise().tolist(), network.config)
    assert network({"views": [images], "noise": noise()}, 0.0)["loss"].item() == pytest.approx(expected, rel=1e-5)
    assert result.loss.item() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize(
    ("patches", "ratio", "kept"), [(196, 0.75, 49), (196, 0.6, 78), (196, 0.5, 98), (100, 0.9, 9), (16, 0.6, 6)]
)
def test_so_many_patches_are_seen_as_the_authors_rounding_says(patches, ratio, kept):
    side = math.isqrt(patches)
    config = dataclasses.replace(SMALL, image_size=side * 4, mask_ratio=ratio)
    assert config.kept == kept
    with torch.no_grad():
        mask = MAE(config).reconstruct(pixels(3, 3, side * 4, side * 4)).mask
    assert mask.sum(1).tolist() == [patches - kept] * 3


def test_mask_and_order_put_every_kept_token_back_in_its_place():
    x = torch.randn(3, 10, 5)
    keep, restore, mask = random_masking(torch.rand(3, 10), 4)
    kept = take_tokens(x, keep)
    restored = take_tokens(torch.cat([kept, torch.full((3, 6, 5), 7.0)], 1), restore)
    assert torch.equal(restored, torch.where(mask[..., None] > 0, 7.0, x))
    assert mask.sum(1).tolist() == [6.0] * 3


def test_patches_of_the_smallest_noise_are_seen_each_sample_its_own():
    keep, _, mask = random_masking(torch.tensor([[0.3, 0.1, 0.2, 0.9], [0.0, 0.8, 0.7, 0.6]]), 2)
    assert keep.tolist() == [[1, 2], [0, 3]]
    assert mask.tolist() == [[1, 0, 0, 1], [0, 1, 1, 0]]


def test_gradient_on_predictions_of_visible_patches_is_exactly_zero():
    target, mask = torch.randn(2, 6, 48), torch.tensor([[1.0, 0, 1, 0, 0, 1], [0, 0, 1, 1, 1, 0]])
    pred = torch.randn(2, 6, 48, requires_grad=True)
    mae_loss(pred, target, mask).backward()
    assert pred.grad is not None
    assert (pred.grad[mask == 0] == 0).all()
    expected = 2 * (pred - target)[mask == 1] / 48 / mask.sum()
    assert torch.allclose(pred.grad[mask == 1], expected)


def test_predictions_of_visible_patches_do_not_change_the_loss_by_a_bit():
    target, pred = torch.randn(2, 6, 48), torch.randn(2, 6, 48)
    mask = torch.tensor([[1.0, 0, 1, 0, 0, 1], [0, 0, 1, 1, 1, 0]])
    other = torch.where(mask[..., None] > 0, pred, 1e3 * torch.randn(2, 6, 48))
    assert mae_loss(pred, target, mask).item() == mae_loss(other, target, mask).item()


def test_the_variance_of_a_patch_is_the_unbiased_one():
    patches = torch.randn(4, 8, 768, generator=torch.Generator().manual_seed(0))
    standardised, mean, std = standardize(patches)
    assert torch.allclose(standardised * std + mean, patches, atol=1e-5)
    loss = mae_loss(torch.zeros_like(patches), standardised, torch.ones(4, 8)).item()
    assert loss == pytest.approx(767 / 768, abs=2e-5), "the biased one would give 1"


def test_loss_is_computed_in_float32():
    pred = torch.full((1, 2, 4), 300.0, dtype=torch.float16)
    assert mae_loss(pred, torch.zeros(1, 2, 4, dtype=torch.float16), torch.ones(1, 2)).item() == 90_000


def test_a_loss_of_float64_stays_float64():
    pred = torch.full((1, 2, 4), 1 + 1e-12, dtype=torch.float64)
    loss = mae_loss(pred, torch.ones_like(pred), torch.ones(1, 2))
    assert loss.dtype == torch.float64 and loss.item() == pytest.approx(1e-24, rel=1e-3)


def test_two_removed_patches_get_different_predictions_by_their_positions_alone():
    network = method()
    pred, mask = network.reconstruct(pixels(1), noise(1))[1:3]
    hidden = pred[0, mask[0] == 1]
    assert torch.cdist(hidden, hidden).add(torch.eye(len(hidden)) * 9).min() > 1e-2
    with torch.no_grad():
        network.decoder.pos_embed.zero_()
    pred = network.reconstruct(pixels(1), noise(1)).pred
    assert (pred[0, mask[0] == 1] - pred[0, mask[0] == 1][:1]).abs().max() < 1e-5


def test_positions_of_both_parts_are_sincos_and_not_trained():
    network = method()
    for part in (network.encoder, network.decoder):
        assert not part.pos_embed.requires_grad
        rows = part.pos_embed[0]
        assert rows[0].abs().max() == 0
        assert torch.allclose(rows[1:].square().sum(-1), torch.tensor(rows.shape[1] / 2))


def test_shuffling_patches_changes_the_features():
    network = method()
    images = normalize(pixels(1), SMALL.mean, SMALL.std)
    shuffled = unpatchify(patchify(images, 4)[:, [3, 1, 5, 0, 2, 4]], 4, (2, 3))
    assert (network.encode(images) - network.encode(shuffled)).abs().max() > 1e-2


def test_removed_patches_are_seen_by_the_loss_and_by_nothing_else():
    network, images = method(), pixels()
    before = network.reconstruct(images, noise())
    hidden = before.mask[..., None].expand(-1, -1, 48) > 0
    changed = unpatchify(torch.where(hidden, 255 - patchify(images, 4), patchify(images, 4)), 4, (2, 3))
    after = network.reconstruct(changed, noise())
    assert torch.equal(after.pred, before.pred)
    assert after.loss != before.loss


def test_fixed_noise_fixes_the_result_and_without_it_masks_differ():
    network, images = method(), pixels()
    first, second = network.reconstruct(images, noise()), network.reconstruct(images, noise())
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    torch.manual_seed(0)
    masks = [network.reconstruct(images).mask for _ in range(8)]
    assert len({tuple(mask.flatten().tolist()) for mask in masks}) > 1
    assert any(not torch.equal(mask[0], mask[1]) for mask in masks)


def test_the_ratio_of_the_config_is_the_one_that_is_used():
    assert method(mask_ratio=0.5).reconstruct(pixels()).mask.sum(1).tolist() == [3, 3]
    assert method().reconstruct(pixels(), mask_ratio=0.2).mask.sum(1).tolist() == [2, 2]


@pytest.mark.parametrize("norm_pix_loss", [True, False])
def test_a_perfect_prediction_reconstructs_the_image(norm_pix_loss, monkeypatch):
    network, images = method(norm_pix_loss=norm_pix_loss), pixels()
    target = patchify(normalize(images, SMALL.mean, SMALL.std), 4)
    answer = standardize(target)[0] if norm_pix_loss else target
    monkeypatch.setattr(network.decoder, "forward", lambda tokens, restore, grid: answer)
    result = network.reconstruct(images, noise())
    assert torch.allclose(result.image, images / 255, atol=1e-5)
    assert result.loss < 1e-10


def test_a_reconstruction_shows_the_input_where_it_was_seen_and_stays_in_range():
    images = pixels()
    result = method().reconstruct(images, noise())
    seen = result.mask[..., None].expand(-1, -1, 48) == 0
    assert torch.allclose(patchify(result.image, 4)[seen], patchify(images / 255, 4)[seen], atol=1e-6)
    assert not torch.allclose(patchify(result.image, 4)[~seen], patchify(images / 255, 4)[~seen], atol=0.1)
    assert 0 <= result.image.min() and result.image.max() <= 1


@pytest.mark.parametrize("pool", ["cls", "mean"])
def test_features_are_cls_or_the_mean_of_the_patches(pool):
    network, images = method(pool=pool), pixels()
    tokens = network.encoder(normalize(images, SMALL.mean, SMALL.std))
    expected = tokens[:, 0] if pool == "cls" else tokens[:, 1:].mean(1)
    assert torch.equal(network.encode(images), expected)
    assert network.encode(images).shape == (2, 16)
    assert torch.equal(network.patch_features(images), tokens[:, 1:].view(2, 2, 3, 16))


def test_any_size_that_the_patch_divides_goes_in():
    network = method()
    assert network.encode(pixels(h=16, w=4)).shape == (2, 16)
    assert network.reconstruct(pixels(h=16, w=20), noise(n=20)).image.shape == (2, 3, 16, 20)


@pytest.mark.parametrize("call", ["encode", "reconstruct", "forward", "patch_features"])
@pytest.mark.parametrize(
    ("images", "message"),
    [
        (pixels(c=4), r"images must be \(b, 3, h, w\) for 3 channel means, got \(2, 4, 8, 12\)"),
        (pixels(c=4) / 255 - 0.5, r"images must be \(b, 3, h, w\), got \(2, 4, 8, 12\)"),
        (pixels(h=9, w=14), "image size 9x14 is not divisible by the patch size 4: resize to 8x16"),
        (pixels(h=9, w=14) / 255 - 0.5, "image size 9x14 is not divisible by the patch size 4: resize to 8x16"),
    ],
)
def test_images_that_do_not_fit_are_refused(call, images, message):
    network = method()
    arguments = ({"views": [images]}, 0.0) if call == "forward" else (images,)
    with pytest.raises(ValueError, match=message):
        getattr(network, call)(*arguments)


@pytest.mark.parametrize("shape", [(2, 5), (1, 6), (6,), (2, 6, 1)])
def test_noise_of_another_shape_is_refused(shape):
    with pytest.raises(ValueError, match=r"noise must be \(2, 6\), one value per patch, got \("):
        method().reconstruct(pixels(), torch.rand(shape))
    with pytest.raises(ValueError, match=r"noise must be \(2, 6\)"):
        method()({"views": [pixels()], "noise": torch.rand(shape)}, 0.0)


@pytest.mark.parametrize(("ratio", "kept"), [(1.0, 0), (0.9, 0), (1.5, -3), (0.0, 6), (-0.5, 9)])
def test_a_ratio_that_leaves_nothing_to_see_or_to_predict_is_refused(ratio, kept):
    with pytest.raises(ValueError, match=f"mask_ratio {ratio} keeps {kept} of 6 patches"):
        method().reconstruct(pixels(), mask_ratio=ratio)


def test_micro_batches_add_up_to_the_batch():
    network, images = method().train(), pixels(4)
    assert MAE.accumulates
    network({"views": [images], "noise": noise(4)}, 0.0)["loss"].backward()
    whole = {name: p.grad.clone() for name, p in network.named_parameters() if p.grad is not None}
    network.zero_grad()
    for part in (slice(0, 2), slice(2, 4)):
        (network({"views": [images[part]], "noise": noise(4)[part]}, 0.0)["loss"] / 2).backward()
    for name, p in network.named_parameters():
        if name in whole:
            assert torch.allclose(p.grad, whole[name], atol=1e-6), name


def test_initialisation_is_the_papers():
    torch.manual_seed(0)
    network = MAE(dataclasses.replace(vit_base(), depth=1, decoder_depth=1))
    for name, module in network.named_modules():
        if isinstance(module, nn.Linear):
            bound = math.sqrt(6 / sum(module.weight.shape))
            assert module.weight.abs().max() <= bound, name
            assert module.weight.std().item() == pytest.approx(bound / math.sqrt(3), rel=0.01), name
            assert module.bias.abs().max() == 0, name
        if isinstance(module, nn.LayerNorm):
            assert module.eps == 1e-6
            assert (module.weight == 1).all() and (module.bias == 0).all()
    projection = network.encoder.patch_embed.proj
    assert 0.0624 < projection.weight.abs().max() <= 0.0625
    assert projection.weight.std().item() == pytest.approx(0.0625 / math.sqrt(3), rel=0.01)
    assert 0.9 / math.sqrt(768) < projection.bias.abs().max() <= 1 / math.sqrt(768), "torch's default"
    for token in (network.encoder.cls_token, network.decoder.mask_token):
        assert token.std().item() == pytest.approx(0.02, rel=0.1)
        assert token.mean().abs() < 0.003


def test_matrices_decay_and_vectors_do_not():
    network = MAE(SMALL)
    decayed, plain = decay_groups(network, 0.05)
    assert (decayed["weight_decay"], plain["weight_decay"]) == (0.05, 0.0)
    names = {name for name, _ in decayed["params"]}
    assert all(p.ndim > 1 for _, p in decayed["params"])
    assert all(p.ndim <= 1 for _, p in plain["params"])
    assert {"encoder.cls_token", "decoder.mask_token", "encoder.patch_embed.proj.weight"} <= names
    covered = names | {name for name, _ in plain["params"]}
    assert {name for name, _ in network.named_parameters()} - covered == {"encoder.pos_embed", "decoder.pos_embed"}


def test_learning_rate_follows_the_papers_rule_per_iteration():
    config, steps = vit_base(), 312  # of an epoch of ImageNet at batch 4096
    assert config.lr == pytest.approx(2.4e-3)
    rule = dict(total=800 * steps, warmup=40 * steps, peak=config.lr, final=config.min_lr)
    for step in (0, 1, 311, 20 * steps + 5, 40 * steps - 1):
        assert warmup_cosine(step, **rule) == pytest.approx(2.4e-3 * (step / steps) / 40)
    assert warmup_cosine(40 * steps, **rule) == pytest.approx(2.4e-3)
    assert warmup_cosine(420 * steps, **rule) == pytest.approx(1.2e-3)
    assert warmup_cosine(800 * steps - 1, **rule) < 1e-12
