"""What docs/guide.md says of code that looks right, run in the few lines that it describes."""

from __future__ import annotations

import copy
import re
from pathlib import Path
from typing import Any

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


# ---------------------------------------------------------------- what ours does instead


SMALL: dict[str, Any] = {"backbone": "resnet18", "width": 8, "small_stem": True, "image_size": 32}
IMAGES = torch.randint(0, 256, (4, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def test_no_backbone_has_an_output_dim():
    models = pytest.importorskip("torchvision.models")
    assert not hasattr(models.resnet18(), "output_dim") and not hasattr(models.vit_b_16(), "output_dim")


def test_four_rotations_are_exact_turns_of_the_whole_batch():
    from ssl_pretext import four_rotations

    turned = four_rotations(IMAGES)
    assert turned.shape == (16, 3, 32, 32)
    for k in range(4):
        assert any(torch.equal(IMAGES[0].rot90(k, (1, 2)), picture) for picture in turned)


def test_jigsaw_has_gaps_standardised_tiles_and_orders_that_differ():
    from ssl_pretext import permutation_set
    from ssl_pretext.config import demo_jigsaw
    from ssl_pretext.views import JigsawView

    sample = JigsawView(demo_jigsaw())({"image": IMAGES[0]}, np.random.default_rng(0))
    tiles, orders = sample["views"][0], permutation_set(504)
    assert tiles.shape == (9, 3, 10, 10) and 10 < demo_jigsaw().image_size // 3
    assert orders.shape == (504, 9)
    different = (orders[:, None] != orders[None]).sum(-1) + 9 * torch.eye(504, dtype=torch.int64)
    random = torch.stack([torch.randperm(9, generator=torch.Generator().manual_seed(i)) for i in range(504)])
    by_chance = (random[:, None] != random[None]).sum(-1) + 9 * torch.eye(504, dtype=torch.int64)
    assert different.min() > by_chance.min()


def test_the_mean_of_two_likely_colours_is_greyer_than_both():
    from ssl_pretext import Colorization, ColorizationConfig, rgb_to_lab

    pair = torch.tensor([[230, 60, 60], [0, 160, 160]], dtype=torch.uint8)[:, :, None, None]
    ab = rgb_to_lab(pair)[:, 1:].flatten(1)
    assert ab.mean(0).norm() < ab.norm(dim=1).min()
    coloured = Colorization(ColorizationConfig(**SMALL)).eval().colorize(rgb_to_lab(IMAGES)[:, :1])
    assert coloured.shape == (4, 3, 32, 32) and coloured.min() >= 0 and coloured.max() <= 1


def test_a_gather_without_gradient_leaves_each_of_two_processes_half_of_it():
    x = torch.randn(2, 8, 5, generator=torch.Generator().manual_seed(0))
    weight = torch.randn(5, 4, generator=torch.Generator().manual_seed(1)).requires_grad_()

    def gradient(detached: int | None) -> torch.Tensor:
        z = x @ weight  # view, sample, width; each process has half of the samples
        parts = [z[:, half].detach() if i == detached else z[:, half] for i, half in enumerate((slice(4), slice(4, 8)))]
        return torch.autograd.grad(nt_xent(*torch.cat(parts, 1), 0.5), weight)[0]

    torch.testing.assert_close((gradient(0) + gradient(1)) / 2, gradient(None) / 2)


def test_losses_of_half_precision_are_computed_in_fp32():
    from ssl_clip import clip_loss
    from ssl_contrastive import byol_loss, nt_xent_loss

    z1, z2 = torch.randn(2, 8, 16).bfloat16()
    assert nt_xent_loss(z1, z2, 0.5).dtype == clip_loss(z1, z2, torch.tensor(10.0)).dtype == torch.float32
    assert 0 <= byol_loss(z1, z2) <= 4 and byol_loss(z1, -z1) == pytest.approx(4, abs=1e-3)


def test_settings_of_the_papers():
    from ssl_contrastive import BYOLConfig, MoCoConfig, SimCLRConfig
    from ssl_mae import MAEConfig

    simclr = SimCLRConfig()
    assert MoCoConfig().crop_scale[0] == 0.2 and simclr.crop_scale[0] == 0.08 and simclr.blur_p == (0.5, 0.5)
    assert simclr.optimizer == "lars" and simclr.warmup_epochs > 0 and BYOLConfig().ema == 0.996
    assert MAEConfig().base_lr == 1.5e-4 and MAEConfig(batch_size=1024).lr == pytest.approx(6e-4)


def test_torchvision_draws_one_set_of_factors_for_a_batch():
    transforms = pytest.importorskip("torchvision.transforms")
    torch.manual_seed(0)
    batch = IMAGES[:1].expand(4, -1, -1, -1)
    once = transforms.ColorJitter(0.4, 0.4, 0.4, 0.1)(batch)
    assert torch.equal(once[0], once[3]) and not torch.equal(once[0], batch[0])


def test_batch_norm_of_two_views_differs_from_that_of_each():
    norm, (x1, x2) = nn.BatchNorm1d(3), (torch.randn(8, 3), torch.randn(8, 3) + 1)
    assert not torch.allclose(norm(torch.cat([x1, x2])), torch.cat([norm(x1), norm(x2)]), atol=0.1)


def test_simsiams_predictor_keeps_its_rate_and_the_head_has_the_backbones_width():
    from ssl_contrastive import SimSiam, SimSiamConfig

    simsiam = SimSiam(SimSiamConfig(**SMALL))
    assert simsiam.projector[0].in_features == simsiam.projector[0].out_features == 64
    others, predictor = simsiam.param_groups(simsiam.config)
    assert predictor["fixed_lr"] and not others.get("fixed_lr")


def test_mocos_queue_is_a_ring_of_any_size_filled_after_the_step():
    from ssl_contrastive import MoCo, MoCoConfig

    moco = MoCo(MoCoConfig(**SMALL, queue=10, bn_splits=1)).train()
    before = moco.queue.clone()
    moco({"views": [IMAGES, IMAGES]}, progress=0.0)
    assert torch.equal(moco.queue, before)
    moco.after_step(progress=0.0)
    changed = (moco.queue != before).any(1)
    assert changed.sum() == 4 and moco.queue_ptr.item() == 4
    moco.eval()({"views": [IMAGES, IMAGES]}, progress=0.0)
    moco.after_step(progress=0.0)
    assert moco.queue_ptr.item() == 4


def test_a_sequence_of_children_loses_the_names_of_the_weights():
    models = pytest.importorskip("torchvision.models")
    network = models.resnet18()
    bare = nn.Sequential(*list(network.children())[:-1])
    assert "conv1.weight" in network.state_dict() and "0.weight" in bare.state_dict()
    assert not set(network.state_dict()) & set(bare.state_dict())


def test_hidden_patches_without_positions_are_all_predicted_alike():
    torch.manual_seed(0)
    decoder = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True).eval()
    seen, hidden = torch.randn(1, 4, 16), torch.randn(1, 1, 16).expand(1, 12, 16)
    predicted = decoder(torch.cat([seen, hidden + torch.zeros(1, 12, 16)], 1))[:, 4:]
    torch.testing.assert_close(predicted, predicted[:, :1].expand_as(predicted))


def test_random_masking_is_a_pure_function_of_noise():
    from ssl_mae import random_masking

    noise = torch.rand(4, 16)
    keep, restore, mask = random_masking(noise, keep=4)
    assert keep.shape == (4, 4) and restore.shape == (4, 16) and mask.sum(1).tolist() == [12] * 4
    assert all(torch.equal(a, b) for a, b in zip((keep, restore, mask), random_masking(noise, keep=4), strict=True))


def test_beits_masks_are_blocks_and_differ():
    from ssl_beit import block_mask

    masks = [torch.as_tensor(block_mask(14, 14, 75, np.random.default_rng(seed))) for seed in range(2)]
    assert masks[0].shape == (14, 14) and masks[0].dtype == torch.bool and not torch.equal(*masks)
    scattered = torch.rand(14, 14, generator=torch.Generator().manual_seed(0)) < masks[0].float().mean()
    borders = [(m[1:] != m[:-1]).sum() + (m[:, 1:] != m[:, :-1]).sum() for m in (masks[0], scattered)]
    assert borders[0] < borders[1] / 2


def test_a_beit_without_a_mask_token_or_labels_has_no_loss():
    transformers = pytest.importorskip("transformers")
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    config = transformers.BeitConfig(**sizes, image_size=32, patch_size=16, vocab_size=20)
    beit = transformers.BeitForMaskedImageModeling(config).eval()
    assert beit.beit.embeddings.mask_token is None
    assert beit(torch.zeros(1, 3, 32, 32)).loss is None


def test_dinos_head_makes_the_logits_that_the_page_shows():
    from ssl_dino.heads import DINOHead

    head = DINOHead(64, prototypes=256, hidden=128, bottleneck=32, layers=3, bn=False, unit=True)
    assert head(torch.randn(4, 64)).shape == (4, 256)
    with pytest.warns(FutureWarning, match="weight_norm"):
        nn.utils.weight_norm(nn.Linear(4, 8))


@pytest.mark.filterwarnings("ignore")
def test_a_vit_model_of_a_mae_drops_the_decoder_and_adds_a_random_pooler(tmp_path):
    transformers = pytest.importorskip("transformers")
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    decoder = {"decoder_" + name: size for name, size in sizes.items()}
    config = transformers.ViTMAEConfig(**sizes, **decoder, image_size=32, patch_size=16)
    transformers.ViTMAEForPreTraining(config).save_pretrained(tmp_path)
    _, found = transformers.ViTModel.from_pretrained(tmp_path, output_loading_info=True)
    assert "pooler.dense.weight" in found["missing_keys"]
    assert any("decoder" in key for key in found["unexpected_keys"])
    assert not hasattr(transformers, "ViTFeatureExtractor") or transformers.__version__ < "5"


def test_vits_processor_squashes_a_picture_into_a_square():
    transformers = pytest.importorskip("transformers")
    picture = Image.new("RGB", (64, 16))
    picture.paste((255, 255, 255), (0, 0, 12, 16))  # a centre crop would lose these columns
    made = transformers.ViTImageProcessor(size={"height": 16, "width": 16})(picture, return_tensors="pt")[
        "pixel_values"
    ]
    assert made.shape == (1, 3, 16, 16) and made[..., 0].min() > 0.5 and made[..., 8].max() < -0.5


# ---------------------------------------------------------------- images and text


def test_clip_learns_its_temperature_and_keeps_it_under_100():
    from ssl_clip import CLIP
    from ssl_clip.config import demo

    clip = CLIP(demo()).eval()
    pictures = torch.randint(0, 256, (2, 3, 64, 64), dtype=torch.uint8)
    vectors = clip.encode_image(pictures), clip.encode_text(torch.ones(2, clip.config.context_length, dtype=torch.long))
    for features in vectors:
        torch.testing.assert_close(features.norm(dim=1), torch.ones(2))
    assert clip.logit_scale.requires_grad
    with torch.no_grad():
        clip.logit_scale.fill_(9.0)
    clip.after_step(0.0)
    assert clip.logit_scale.exp().item() == pytest.approx(100)


@pytest.mark.filterwarnings("ignore")
def test_logits_of_transformers_clip_are_a_tensor_and_its_features_are_none_any_more():
    transformers = pytest.importorskip("transformers", minversion="5.0")
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    text = {**sizes, "vocab_size": 99, "max_position_embeddings": 16, "bos_token_id": 0, "eos_token_id": 1}
    vision = {**sizes, "image_size": 32, "patch_size": 16}
    config = transformers.CLIPConfig(text_config=text, vision_config=vision, projection_dim=8)
    clip = transformers.CLIPModel(config).eval()
    process = transformers.CLIPImageProcessor(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32})

    # `zero_shot_classify`: one picture and its labels in one call
    logits = clip(input_ids=torch.ones(2, 4, dtype=torch.long), pixel_values=torch.zeros(1, 3, 32, 32)).logits_per_image
    assert logits.softmax(1).shape == (1, 2)
    # `clip_feature_extraction`: a list of pictures, in one pass
    pictures = process([Image.new("RGB", (40, 40))] * 3, return_tensors="pt")["pixel_values"]
    assert pictures.shape == (3, 3, 32, 32)
    # `CLIPRetrieval`: takes what the features are for a tensor
    with pytest.raises(AttributeError):
        clip.get_image_features(pixel_values=pictures).norm(dim=-1)


def test_pictures_and_texts_may_lie_apart_whatever_they_mean():
    from ssl_clip import modality_gap

    g = torch.Generator().manual_seed(0)
    side = 2 * torch.eye(16)[0]
    a, b = (F.normalize(torch.randn(50, 16, generator=g) + sign * side, dim=1) for sign in (1, -1))
    assert modality_gap(a, b) > 2 * modality_gap(a[:25], a[25:])


def test_squeeze_breaks_an_index_of_one_picture():
    with pytest.raises(TypeError, match="0-d"):
        list((torch.randn(1, 8) @ torch.randn(8, 1)).squeeze())


# ---------------------------------------------------------------- ours on text and other pictures


def test_gpt_generates_without_dropout_at_temperature_0():
    from ssl_lm import GPT, GPTConfig

    gpt = GPT(GPTConfig(vocab_size=100, dim=32, depth=2, heads=2, context=64, dropout=0.5)).train()
    prompt = torch.randint(0, 100, (2, 8))
    first, again = (gpt.generate(prompt, max_new_tokens=5, temperature=0, top_p=0.9) for _ in range(2))
    assert first.shape == (2, 13) and torch.equal(first, again) and torch.equal(first[:, :8], prompt)


def test_every_text_gets_a_mask_and_no_special_token_does():
    from ssl_lm import mask_tokens

    ids = torch.randint(5, 100, (64, 6))
    ids[:, 0], ids[:, -2:] = 1, 0
    inputs, labels = mask_tokens(ids, vocab_size=100, mask_token_id=4, special_ids=[0, 1, 2, 3, 4])
    asked = labels != -100
    assert asked.any(1).all() and not asked[:, 0].any() and not asked[:, -2:].any()
    assert torch.equal(labels[asked], ids[asked]) and torch.equal(inputs[~asked], ids[~asked])
    assert not set(inputs[asked].tolist()) & {0, 1, 2, 3}


def test_a_probe_that_is_not_trained_to_the_end_measures_the_optimiser():
    from ssl_train.evaluate.linear import linear_probe

    torch.manual_seed(0)
    y = torch.arange(240) % 4
    x = 1e-3 * (torch.randn(4, 16)[y] + 0.5 * torch.randn(240, 16))
    head = nn.Linear(16, 4)
    nn.init.zeros_(head.weight)
    adam = torch.optim.Adam(head.parameters(), lr=1e-3)
    for _ in range(100):
        adam.zero_grad()
        F.cross_entropy(head(x[:120]), y[:120]).backward()
        adam.step()
    assert F.cross_entropy(head(x), y) > 1.38  # ln 4 is 1.386: it has learned next to nothing
    assert linear_probe(x[:120], y[:120], x[120:], y[120:]).held_out_loss < 0.3


def test_k_past_the_bank_fails_in_topk_and_not_here():
    from ssl_train.evaluate.knn import knn

    bank = torch.randn(5, 3)
    with pytest.raises(RuntimeError):
        (bank @ bank.T).topk(20, dim=1)
    assert knn(bank, torch.arange(5) % 2, bank, ks=[20])[5].shape == (5,)
    assert torch.tensor([1, 0]).mode().values == 0  # a tie goes to the smallest label


def test_few_shot_draws_ten_nested_sets():
    from ssl_train.errors import EvaluationError
    from ssl_train.evaluate.fewshot import draw, fewshot

    x, y = torch.randn(40, 4), torch.arange(40) % 4
    few = fewshot(x, y, x, y, shots=5)
    assert len(few.accuracies) == 10 and few.interval == pytest.approx(2.262 * few.std / 10**0.5, rel=1e-3)
    assert torch.equal(draw(y, 5, seed=3)[:, :2], draw(y, 2, seed=3))
    with pytest.raises(EvaluationError, match="ask for fewer"):
        fewshot(x, y, x, y, shots=11)


def test_a_16_bit_picture_turns_negative_and_a_chest_keeps_its_sides():
    transforms = pytest.importorskip("torchvision.transforms")
    from ssl_contrastive.config import SimCLRConfig
    from ssl_contrastive.views import build
    from ssl_train.domains import with_views

    small = {"backbone": "resnet18", "width": 8, "small_stem": True, "image_size": 32, "in_channels": 1}
    medical = build(with_views(SimCLRConfig(**small, mean=(0.5,), std=(0.2,)), "medical")).first
    deep = Image.fromarray(np.full((4, 4), 60_000, dtype=np.uint16))
    assert transforms.ToTensor()(deep).min() < 0
    sides = torch.zeros(1, 40, 40, dtype=torch.uint8)
    sides[..., 20:] = 200
    for seed in range(20):
        view = medical(sides, np.random.default_rng(seed)).float()
        assert view[..., :8].mean() <= view[..., -8:].mean()


def test_random_rotation_draws_any_angle_and_leaves_black_corners():
    transforms = pytest.importorskip("torchvision.transforms")
    torch.manual_seed(0)
    assert transforms.RandomRotation.get_params([-90, 90]) % 90 != 0
    assert (transforms.RandomRotation((45, 45))(torch.ones(1, 20, 20)) == 0).any()
    square = IMAGES[0]
    turns = [turned for k in range(4) for turned in (square.rot90(k, (1, 2)), square.rot90(k, (1, 2)).flip(2))]
    assert all(torch.equal(turned.flatten().sort().values, square.flatten().sort().values) for turned in turns)
    assert len({turned.numpy().tobytes() for turned in turns}) == 8
