"""The discrete VAE: its loss against plain Python, and what holds whatever the weights are."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch

from ssl_beit import DVAE, DVAEConfig, gumbel_noise, kl_to_uniform, logit_laplace_loss
from ssl_beit.config import PRESETS
from ssl_beit.dvae import anneal, logit_laplace_log_density, map_pixels, unmap_pixels, usage
from ssl_core.config import ConfigError

SIZES = {"image_size": (16, 24), "hidden": 8, "blocks": 1, "decoder_init": 4, "vocab": 12}
SMALL = DVAEConfig(**SIZES, kl_warmup=0.5, temperature_decay=0.5, ema=0.9)


def method(**fields) -> DVAE:
    torch.manual_seed(0)
    return DVAE(dataclasses.replace(SMALL, **fields)).eval()


def pixels(b: int = 2, c: int = 3, h: int = 16, w: int = 24) -> torch.Tensor:
    return torch.randint(0, 256, (b, c, h, w), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))


def batch(b: int = 2) -> dict:
    return {"views": [pixels(b)], "seed": torch.arange(b)}


def plain_loss(x: list[float], mu: list[float], log_b: list[float]) -> float:
    total = 0.0
    for value, location, log_scale in zip(x, mu, log_b, strict=True):
        scale = math.exp(log_scale)
        distance = abs(math.log(value / (1 - value)) - location)
        total -= math.log(math.exp(-distance / scale) / (2 * scale * value * (1 - value)))
    return total / len(x)


def test_the_reconstruction_loss_equals_plain_python():
    x = map_pixels(pixels() / 255)
    mu, log_b = torch.randn(2, 2, 3, 16, 24, generator=torch.Generator().manual_seed(2))
    expected = plain_loss(x.flatten().tolist(), mu.flatten().tolist(), log_b.flatten().tolist())
    assert logit_laplace_loss(x, mu, log_b).item() == pytest.approx(expected, rel=1e-5)


def test_the_kl_term_equals_plain_python():
    logits = torch.randn(2, 12, 2, 3, generator=torch.Generator().manual_seed(3))
    total = 0.0
    for b in range(2):
        for y in range(2):
            for x in range(3):
                weights = [math.exp(v) for v in logits[b, :, y, x].tolist()]
                q = [w / sum(weights) for w in weights]
                total += sum(p * math.log(p * len(q)) for p in q)
    assert kl_to_uniform(logits).item() == pytest.approx(total / 12, rel=1e-5)


def test_kl_is_0_for_uniform_codes_and_ln_of_the_vocabulary_for_certain_ones():
    assert kl_to_uniform(torch.zeros(1, 8192, 2, 2)).item() == pytest.approx(0, abs=1e-5)
    certain = torch.zeros(1, 8192, 2, 2)
    certain[:, 7] = 1e4
    assert kl_to_uniform(certain).item() == pytest.approx(9.0109, abs=1e-4)


@pytest.mark.parametrize(("mu", "log_b"), [(0.0, 0.0), (1.0, -1.0), (-2.0, 0.5)])
def test_the_density_integrates_to_1(mu, log_b):
    # over u = logit x, where dx = x (1 - x) du
    u = torch.linspace(-60, 60, 400_001, dtype=torch.float64)
    x = u.sigmoid().clamp(1e-15, 1 - 1e-15)
    density = logit_laplace_log_density(x, torch.full_like(x, mu), torch.full_like(x, log_b)).exp() * x * (1 - x)
    inside = (u.abs() < 30).double()  # beyond, float64 has no x
    assert torch.trapezoid(density * inside, u).item() == pytest.approx(1, abs=1e-3)


def test_mapped_pixels_lie_between_a_tenth_and_nine_tenths_and_come_back():
    levels = torch.arange(256, dtype=torch.float64) / 255
    mapped = map_pixels(levels)
    assert (mapped.min().item(), mapped.max().item()) == pytest.approx((0.1, 0.9))
    assert torch.allclose(unmap_pixels(mapped), levels, atol=1e-12)
    assert unmap_pixels(torch.tensor([0.0, 1.0])).tolist() == [0.0, 1.0]


def test_the_loss_is_the_sum_of_both_terms_over_the_values_of_the_image():
    network = method()
    out = network(batch(), 0.25)
    weight = anneal(0.25, 0.0, 6.6, 0.5)
    assert out["kl_weight"].item() == pytest.approx(weight) and weight == pytest.approx(3.3)
    expected = out["reconstruction"] + weight / 192 * out["kl"]
    assert out["loss"].item() == pytest.approx(expected.item(), rel=1e-6)
    x = network.online.mapped(pixels())
    logits = network.online.encoder(x)
    noise = gumbel_noise(torch.arange(2), (2, 3, 12)).permute(0, 3, 1, 2)
    codes = ((logits + noise) / out["temperature"]).softmax(1)
    assert torch.allclose(codes.sum(1), torch.ones(2, 2, 3), atol=1e-5)
    mu, log_b = network.online.decoder(codes).chunk(2, 1)
    assert out["reconstruction"].item() == pytest.approx(logit_laplace_loss(x, mu, log_b).item(), rel=1e-5)
    assert 6.6 / 192 == pytest.approx(0.034375)


def test_parameters_and_shapes_are_as_published():
    with torch.device("meta"):
        network = DVAE(PRESETS["dvae"]["dalle"]())
        counts = [sum(p.numel() for p in part.parameters()) for part in network.online.children()]
        tensors = [len(list(part.parameters())) for part in network.online.children()]
        logits = network.online.encoder(torch.zeros(1, 3, 112, 112))
        values = network.online.decoder(logits)
    assert (counts, tensors) == ([53_786_240, 43_829_766], [74, 76])
    assert logits.shape == (1, 8192, 14, 14)
    assert values.shape == (1, 6, 112, 112)
    assert network.online.encoder(torch.zeros(1, 3, 256, 256, device="meta")).shape == (1, 8192, 32, 32)


def test_weights_begin_as_the_authors_do():
    torch.manual_seed(0)
    network = DVAE(DVAEConfig(image_size=32, hidden=64, vocab=512))
    for name, parameter in network.online.named_parameters():
        if parameter.ndim == 4:
            fan_in = parameter[0].numel()
            tolerance = 5 / math.sqrt(parameter.numel())
            assert parameter.std().item() * math.sqrt(fan_in) == pytest.approx(1, abs=tolerance), name
        else:
            assert parameter.abs().max() == 0, name
    assert network.online.encoder.blocks.group_1.block_1.gain == 1 / 64


def test_gumbel_noise_has_the_law_and_depends_on_its_own_seed_alone():
    noise = gumbel_noise(torch.tensor([5, 6]), (400, 500))
    assert torch.isfinite(noise).all()
    assert noise.mean().item() == pytest.approx(0.5772, abs=0.01)
    assert noise.var().item() == pytest.approx(math.pi**2 / 6, abs=0.03)
    for level in (-1.0, 0.0, 1.0, 3.0):
        share = (noise < level).float().mean().item()
        assert share == pytest.approx(math.exp(-math.exp(-level)), abs=0.004)
    assert torch.equal(gumbel_noise(torch.tensor([6]), (400, 500))[0], noise[1])
    correlation = torch.corrcoef(torch.stack([noise[0].flatten(), noise[1].flatten(), noise[0].flatten().roll(1)]))
    assert (correlation - torch.eye(3)).abs().max() < 0.01


def test_uniform_numbers_of_the_noise_never_reach_0_or_1():
    """In float32 the last of 2^24 steps would round to 1: infinite noise. 2^23 steps are safe."""
    steps = torch.tensor([0, 2**23 - 1]).float()
    uniform = (steps + 0.5) / 2**23
    assert 0 < uniform[0] and uniform[1] < 1
    assert gumbel_noise(torch.arange(40), (300, 1000)).max() < 17


def test_tokens_are_the_most_likely_ones_of_the_averaged_weights():
    network = method()
    with torch.no_grad():
        for parameter in network.online.parameters():
            parameter.add_(1.0)
    ids = network.tokenize(pixels())
    assert ids.shape == (2, 2, 3) and ids.dtype == torch.long
    logits = network.average.encoder(map_pixels(pixels() / 255))
    assert torch.equal(ids, logits.argmax(1))
    assert torch.equal(network.tokenize(pixels() / 255), ids)


def test_decoding_ids_is_decoding_their_one_hot_codes():
    network = method()
    ids = torch.randint(12, (2, 2, 3), generator=torch.Generator().manual_seed(4))
    codes = torch.nn.functional.one_hot(ids, 12).permute(0, 3, 1, 2).float()
    mu, _ = network.average.decoder(codes).chunk(2, 1)
    images = network.decode(ids)
    assert images.shape == (2, 3, 16, 24)
    assert torch.allclose(images, ((mu.sigmoid() - 0.1) / 0.8).clamp(0, 1), atol=1e-6)
    assert 0 <= images.min() and images.max() <= 1


def test_features_are_the_mean_over_positions():
    network = method()
    patches = network.patch_features(pixels())
    assert patches.shape == (2, 2, 3, 64)
    assert torch.allclose(network.encode(pixels()), patches.mean((1, 2)), atol=1e-6)


def test_the_average_follows_the_weights_with_its_momentum():
    network = method()
    with torch.no_grad():
        for parameter in network.online.parameters():
            parameter.add_(1.0)
    before = [p.clone() for p in network.average.parameters()]
    for _ in range(3):
        network.after_step(0.5)
    for old, average, online in zip(before, network.average.parameters(), network.online.parameters(), strict=True):
        assert torch.allclose(average, 0.9**3 * old + (1 - 0.9**3) * online, atol=1e-6)
    assert not any(p.requires_grad for p in network.average.parameters())


def test_codes_in_use_are_counted():
    used, perplexity = usage(torch.tensor([[0, 0], [3, 3]]), 8)
    assert used.item() == 0.25
    assert perplexity.item() == pytest.approx(2)


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (pixels(c=4), r"images must be \(b, 3, h, w\), got \(2, 4, 16, 24\)"),
        (pixels(h=17), "17x24 is not divisible by the patch size 8: resize to 16x24"),
        (pixels()[0], r"images must be \(b, 3, h, w\), got \(3, 16, 24\)"),
    ],
)
@pytest.mark.parametrize("call", ["tokenize", "encode", "patch_features"])
def test_images_that_do_not_fit_are_refused(call, images, message):
    with pytest.raises(ValueError, match=message):
        getattr(method(), call)(images)


@pytest.mark.parametrize(
    ("ids", "message"),
    [
        (torch.zeros(2, 2), r"ids must be integers \(b, h, w\), got torch.float32 \(2, 2\)"),
        (torch.full((1, 2, 2), 12), r"ids must lie in \[0, 12\), got 12 to 12"),
        (torch.full((1, 2, 2), -1), r"ids must lie in \[0, 12\)"),
    ],
)
def test_ids_that_are_no_tokens_are_refused(ids, message):
    with pytest.raises(ValueError, match=message):
        method().decode(ids)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"patch_size": 16, "image_size": 32}, "patch_size = 16: the tokenizer's stride is 8"),
        ({"mean": (0.5, 0.5, 0.5)}, "mean = .*must be 0"),
        ({"std": (0.5, 0.5, 0.5)}, "std = .*must be 1"),
        ({"hidden": 6}, "hidden = 6: must be .*a multiple of 4"),
        ({"vocab": 1}, "vocab = 1"),
        ({"blocks": 0}, "blocks = 0"),
        ({"decoder_init": 0}, "decoder_init = 0"),
        ({"temperature": 0.0}, "temperature = 0.0: must be above 0"),
        ({"kl_warmup": 1.5}, "kl_warmup = 1.5: must be at least 0 and at most 1"),
        ({"kl_weight": -1.0}, "kl_weight = -1.0"),
        ({"ema": 1.0}, "ema = 1.0"),
        ({"crop_scale": (0.5, 0.2)}, "crop_scale"),
        ({"image_size": 20}, "image_size = 20: must be divisible"),
    ],
)
def test_a_config_that_makes_no_tokenizer_is_refused(fields, message):
    with pytest.raises(ConfigError, match=message):
        dataclasses.replace(SMALL, **fields)
