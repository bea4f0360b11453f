"""What docs/guide.md says of code that looks right, run in the few lines that it describes."""

from __future__ import annotations

import copy
import re
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import nn

GUIDE = (Path(__file__).resolve().parents[1] / "docs" / "guide.md").read_text()
NAMES = """RotationSSL create_rotation_dataset train_rotation_ssl create_jigsaw_dataset JigsawSSL ColorizationSSL
prepare_colorization_data info_nce_loss SimCLRDataAugmentation SimCLR train_simclr BYOL byol_loss SimSiam simsiam_loss
MoCo._dequeue_and_enqueue get_finetuning_model PatchEmbedding MAE train_step random_masking BEiTPretraining
create_bool_masked_pos DINO DINOAugmentation DINOHead extract_dino_features load_mae_pretrained clip_loss
clip_feature_extraction zero_shot_classify CLIPRetrieval visualize_clip_embeddings GPTLanguageModel.generate
create_mlm_input extract_features LinearProbe knn_evaluation few_shot_evaluation MedicalSSL SatelliteSSL""".split()


def headings() -> set[str]:
    return {name for line in re.findall("^### (.*)$", GUIDE, re.MULTILINE) for name in re.findall("`([^`]+)`", line)}


@pytest.mark.parametrize("name", NAMES)
def test_every_name_has_a_heading(name):
    assert name in headings()


def test_no_heading_has_a_name_that_is_not_listed():
    assert headings() == set(NAMES)


def test_no_accuracy_stands_in_the_text_without_a_way_to_get_it():
    for figure in ("38.6", "61.4", "53.9", "97.8"):
        assert figure not in GUIDE


# ---------------------------------------------------------------- pretext tasks


def test_turning_an_oblong_picture_leaves_black_and_rot90_of_a_square_does_not():
    turned = np.asarray(Image.new("L", (32, 20), 255).rotate(90))
    assert (turned == 0).mean() == 0.375
    assert torch.ones(1, 20, 20).rot90(1, (1, 2)).min() == 1


def test_a_tanh_cannot_reach_the_colours():
    from ssl_pretext import rgb_to_lab

    corners = torch.tensor([[r, g, b] for r in (0, 255) for g in (0, 255) for b in (0, 255)], dtype=torch.uint8)
    ab = rgb_to_lab(corners[:, :, None, None])[:, 1:]
    assert ab.min() < -100 and 98 < ab.max() < 110 and torch.tanh(torch.tensor(1e9)) == 1


# ---------------------------------------------------------------- contrastive learning


def nt_xent(z1: torch.Tensor, z2: torch.Tensor, temperature: float) -> torch.Tensor:
    z = F.normalize(torch.cat([z1, z2]), dim=1)
    scores = (z @ z.T / temperature).masked_fill(torch.eye(len(z), dtype=torch.bool), -torch.inf)
    return F.cross_entropy(scores, torch.arange(len(z)).roll(len(z1)))


def test_half_precision_does_not_overflow_at_temperature_007():
    z1, z2 = torch.randn(2, 64, 128, generator=torch.Generator().manual_seed(0))
    whole, half = nt_xent(z1, z2, 0.07), nt_xent(z1.half(), z2.half(), 0.07)
    assert half.isfinite() and half.item() == pytest.approx(whole.item(), abs=0.02)


def test_a_sum_over_half_of_the_views_is_half_of_the_loss():
    z = torch.randn(1, 8, 16).expand(2, -1, -1)  # both views alike: every view loses the same as its other
    z = F.normalize(torch.cat([z[0], z[1]]), dim=1)
    scores = (z @ z.T / 0.5).masked_fill(torch.eye(16, dtype=torch.bool), -torch.inf)
    each = F.cross_entropy(scores, torch.arange(16).roll(8), reduction="none")
    assert (each[:8].sum() / 16).item() == pytest.approx(each.mean().item() / 2, rel=1e-5)


def test_an_even_blur_kernel_raises():
    transforms = pytest.importorskip("torchvision.transforms")
    assert int(0.1 * 224) == 22
    with pytest.raises(ValueError, match="odd"):
        transforms.GaussianBlur(22)


def test_only_the_bare_squeeze_loses_a_batch_of_one():
    features = torch.randn(1, 512, 1, 1)
    assert features.squeeze(-1).squeeze(-1).shape == (1, 512)
    assert features.squeeze().shape == (512,)


def test_predictions_of_128_do_not_meet_projections_of_256():
    with pytest.raises(RuntimeError, match="128"):
        F.cosine_similarity(torch.randn(4, 128), torch.randn(4, 256))


def test_byol_is_twice_the_gradient_of_a_negative_cosine():
    from ssl_contrastive import byol_loss

    p, z = torch.randn(8, 16, requires_grad=True), torch.randn(8, 16)
    [ours] = torch.autograd.grad(byol_loss(p, z), p)
    [theirs] = torch.autograd.grad(-F.cosine_similarity(p, z).mean(), p)
    torch.testing.assert_close(ours, 2 * theirs)


def test_a_slice_of_the_queue_cannot_take_a_batch_that_does_not_divide_it():
    queue, keys = torch.zeros(128, 10), torch.randn(4, 128)
    with pytest.raises(RuntimeError):
        queue[:, 8:12] = keys.T


# ---------------------------------------------------------------- masks, heads, attention


def patchify(images: torch.Tensor, p: int) -> torch.Tensor:
    h = w = images.shape[2] // p
    x = images.reshape(len(images), 3, h, p, w, p)
    return torch.einsum("nchpwq->nhwpqc", x).reshape(len(images), h * w, p * p * 3)


def test_patchify_assumes_squares_of_three_channels_and_no_size():
    assert patchify(torch.randn(1, 3, 96, 96), 16).shape == (1, 36, 768)
    for shape in ((1, 3, 96, 64), (1, 1, 96, 96)):
        with pytest.raises(RuntimeError):
            patchify(torch.randn(shape), 16)


@pytest.mark.filterwarnings("ignore:.*weight_norm.*:FutureWarning")
def test_a_head_with_weight_norm_cannot_be_copied():
    head = nn.utils.weight_norm(nn.Linear(4, 8, bias=False))
    with pytest.raises(RuntimeError, match="deepcopy"):
        copy.deepcopy(head)


def test_ten_crops_cut_in_two_broadcast_for_one_image_and_raise_for_more():
    for images, raises in ((1, False), (2, True)):
        student, teacher = torch.randn(10 * images, 8).chunk(2)[0], torch.randn(2 * images, 8).chunk(2)[0]
        if raises:
            with pytest.raises(RuntimeError):
                (student * teacher).sum()
        else:
            assert (student * teacher).shape == (5, 8)


def test_a_block_without_a_causal_mask_sees_the_future():
    torch.manual_seed(0)
    block = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True).eval()
    text = torch.randn(1, 6, 16)
    other = torch.cat([text[:, :5], torch.randn(1, 1, 16)], 1)
    mask = nn.Transformer.generate_square_subsequent_mask(6)
    assert not torch.allclose(block(text)[:, :5], block(other)[:, :5])
    torch.testing.assert_close(block(text, src_mask=mask)[:, :5], block(other, src_mask=mask)[:, :5])


# ---------------------------------------------------------------- text, measuring, other pictures


def test_temperature_0_and_a_text_without_a_mask_are_not_finite():
    assert not (torch.randn(5) / 0).softmax(-1).isfinite().all()
    assert F.cross_entropy(torch.randn(4, 9), torch.full((4,), -100)).isnan()


def test_a_vote_goes_to_the_larger_class_and_a_weighted_one_to_the_nearer():
    from ssl_train.evaluate.knn import knn

    train = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.0, 1.0]])
    labels, near = torch.tensor([1, 0, 0]), torch.tensor([[1.0, 0.1]])
    assert labels.mode().values == 0 and knn(train, labels, near, ks=[3])[3].tolist() == [1]


def test_tsne_needs_more_points_than_its_perplexity():
    manifold = pytest.importorskip("sklearn.manifold")
    with pytest.raises(ValueError, match="perplexity"):
        manifold.TSNE().fit_transform(np.random.default_rng(0).normal(size=(30, 4)))


def test_jitter_of_six_bands_fails():
    transforms = pytest.importorskip("torchvision.transforms")
    with pytest.raises(TypeError):
        transforms.ColorJitter(0.4, 0.4, 0.4, 0.1)(torch.rand(6, 8, 8))
