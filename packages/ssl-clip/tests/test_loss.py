"""The two losses: against plain Python, in one process and in several, and against open_clip's."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from ssl_clip import clip_loss, siglip_loss
from ssl_clip.loss import clip_loss_and_top1, dense_clip_loss, dense_siglip_loss, siglip_loss_and_top1
from ssl_core import distributed
from ssl_testing import children
from ssl_train.processes import process_group


def features(n: int = 7, d: int = 5, *, length: float = 1.0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    image, text = torch.randn(2, n, d, generator=generator, dtype=torch.float64)
    return length * F.normalize(image, dim=1), length * F.normalize(image + text, dim=1)


def plain_clip(image: list, text: list, scale: float) -> float:
    total = 0.0
    for i in range(len(image)):
        row = [scale * sum(a * b for a, b in zip(image[i], y, strict=True)) for y in text]
        column = [scale * sum(a * b for a, b in zip(x, text[i], strict=True)) for x in image]
        for logits in (row, column):
            top = max(logits)
            total += top + math.log(sum(math.exp(s - top) for s in logits)) - logits[i]
    return total / (2 * len(image))


def plain_siglip(image: list, text: list, scale: float, bias: float) -> float:
    total = 0.0
    for i, x in enumerate(image):
        for j, y in enumerate(text):
            logit = scale * sum(a * b for a, b in zip(x, y, strict=True)) + bias
            total += math.log1p(math.exp(-logit if i == j else logit))
    return total / len(image)


def with_gradients(loss: Callable[..., Tensor], *inputs: Tensor) -> list[Tensor]:
    leaves = [x.detach().clone().requires_grad_() for x in inputs]
    value = loss(*leaves)
    return [value.detach(), *torch.autograd.grad(3 * value, leaves)]


def assert_close(a: list[Tensor], b: list[Tensor], tolerance: float = 1e-10) -> None:
    for x, y in zip(a, b, strict=True):
        torch.testing.assert_close(x, y, rtol=tolerance, atol=tolerance)


SCALE, BIAS = torch.tensor(9.0, dtype=torch.float64), torch.tensor(-3.0, dtype=torch.float64)


@pytest.mark.parametrize("scale", [1.0, 14.3, 100.0])
def test_losses_equal_plain_python(scale):
    image, text = features()
    t = torch.tensor(scale, dtype=torch.float64)
    expected = plain_clip(image.tolist(), text.tolist(), scale)
    for loss in (clip_loss, dense_clip_loss):
        assert loss(image, text, t).item() == pytest.approx(expected, rel=1e-12)
    expected = plain_siglip(image.tolist(), text.tolist(), scale, -3.0)
    for loss in (siglip_loss, dense_siglip_loss):
        assert loss(image, text, t, BIAS).item() == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("block", [1, 3, 8, 1000])
@pytest.mark.parametrize("kept", [0, 20, 1000])
@pytest.mark.parametrize("length", [1.0, 3.0])
def test_blocks_change_nothing(block, kept, length):
    def clip_blocks(*inputs: Tensor) -> Tensor:
        return clip_loss_and_top1(*inputs, block=block, kept=kept)[0]

    def siglip_blocks(*inputs: Tensor) -> Tensor:
        return siglip_loss_and_top1(*inputs, block=block)[0]

    pairs = (*features(length=length), SCALE)  # at length 3 the logits reach 81, beyond NARROW
    assert_close(with_gradients(clip_blocks, *pairs), with_gradients(dense_clip_loss, *pairs))
    assert_close(with_gradients(siglip_blocks, *pairs, BIAS), with_gradients(dense_siglip_loss, *pairs, BIAS))


def test_logits_far_apart_stay_finite_in_fp32():
    image = torch.eye(4) * torch.tensor([30.0, 1.0, 1.0, 0.01])
    for text in (image.clone(), -image):
        outputs = with_gradients(clip_loss, image, text, torch.tensor(100.0))
        assert_close(outputs, with_gradients(dense_clip_loss, image, text, torch.tensor(100.0)), 1e-3)
        assert all(torch.isfinite(x).all() for x in outputs)
        assert all(torch.isfinite(x).all() for x in with_gradients(siglip_loss, image, text, torch.tensor(100.0), BIAS))


def test_half_precision_features_and_autocast_do_not_round_logits():
    image, text = (x.to(torch.bfloat16) for x in features(64, 32))
    expected = dense_clip_loss(image.double(), text.double(), torch.tensor(100.0)).item()
    with torch.autocast("cpu", torch.bfloat16):
        assert clip_loss(image, text, torch.tensor(100.0)).item() == pytest.approx(expected, abs=1e-5)


def test_shapes_that_do_not_pair_are_refused():
    image, text = features()
    with pytest.raises(ValueError, match=r"image and text must both be \(n, d\), got \(7, 5\) and \(6, 5\)"):
        clip_loss(image, text[:6], SCALE)
    with pytest.raises(ValueError, match="must both be"):
        siglip_loss(image[0], text[0], SCALE, BIAS)


def test_the_share_of_right_answers_is_logged():
    image, _ = features()
    assert clip_loss_and_top1(image, image, SCALE)[1].item() == 1
    assert clip_loss_and_top1(image, image.roll(1, 0), SCALE)[1].item() == 0


@pytest.mark.parametrize("cuts", [(4, 3), (1, 6), (3, 2, 2)])
def test_processes_with_any_numbers_of_rows_have_the_gradient_of_one(cuts):
    image, text = features()
    whole = [
        with_gradients(dense_clip_loss, image, text, SCALE),
        with_gradients(dense_siglip_loss, image, text, SCALE, BIAS),
    ]

    def rank() -> list[list[list]]:
        with process_group(60):
            part = slice(sum(cuts[: distributed.rank()]), sum(cuts[: distributed.rank() + 1]))
            pair = (image[part], text[part], SCALE)
            both = [with_gradients(clip_loss, *pair), with_gradients(siglip_loss, *pair, BIAS)]
            return [[x.tolist() for x in outputs] for outputs in both]

    ranks = []
    for ended in children.run_ranks(len(cuts), rank):
        assert ended.code == 0, ended
        ranks.append(ended.value)
    for number, expected in enumerate(whole):
        outputs = [[torch.tensor(x, dtype=torch.float64) for x in ended[number]] for ended in ranks]
        for own in outputs:
            assert_close([own[0]], [expected[0]])
        world = len(cuts)  # as DDP takes the mean: features are of one rank each, scale and bias of all
        joined = [torch.cat([own[i] for own in outputs]) / world for i in (1, 2)]
        shared = [sum(own[i] for own in outputs) / world for i in range(3, len(expected))]
        assert_close([*joined, *shared], expected[1:])


def test_lengths_of_embeddings_do_not_matter():
    image, text = features(8, 16)
    for loss, others in ((clip_loss, (SCALE,)), (siglip_loss, (SCALE, BIAS)), (dense_clip_loss, (SCALE,))):
        unit = loss(F.normalize(image, dim=1), F.normalize(text, dim=1), *others)
        torch.testing.assert_close(loss(3 * image, 0.2 * text, *others), unit)


def test_both_equal_open_clips():
    theirs = pytest.importorskip("open_clip.loss")
    image, text = features(32, 16)

    def normalised(loss: Callable[..., Tensor]) -> Callable[..., Tensor]:
        return lambda i, t, *scalars: loss(F.normalize(i, dim=1), F.normalize(t, dim=1), *scalars)

    expected = with_gradients(normalised(theirs.ClipLoss()), image, text, SCALE)
    assert_close(with_gradients(clip_loss, image, text, SCALE), expected)
    expected = with_gradients(normalised(theirs.SigLipLoss()), image, text, SCALE, BIAS)
    assert_close(with_gradients(siglip_loss, image, text, SCALE, BIAS), expected)
