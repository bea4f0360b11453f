"""Masks of attention, features as colours, and which patches correspond."""

from __future__ import annotations

import numpy as np
import torch
from einops import rearrange

from ssl_dino import mass_mask, pca_colours
from ssl_dino.maps import correspondences, overlay


def test_a_mask_holds_the_share_of_the_mass_with_the_fewest_patches():
    maps = torch.rand(2, 3, 4, 5, generator=torch.Generator().manual_seed(0))
    for mass in (0.1, 0.6, 0.95):
        mask = mass_mask(maps, mass)
        for one, kept in zip(maps.flatten(0, 1).flatten(1), mask.flatten(0, 1).flatten(1), strict=True):
            held = one[kept].sum() / one.sum()
            largest = one.sort(descending=True).values
            fewest = int((largest.cumsum(0) / one.sum() < mass - 1e-6).sum()) + 1
            assert held >= mass - 1e-5 and int(kept.sum()) == fewest
            assert one[kept].min() >= (one[~kept].max() if (~kept).any() else 0)
    assert mass_mask(maps, 1.0).all()


def test_a_mask_equals_the_authors_sorting():
    maps = torch.rand(1, 2, 3, 3, generator=torch.Generator().manual_seed(1))
    values, order = torch.sort(maps.flatten(2))
    kept = torch.cumsum(values / values.sum(2, keepdim=True), 2) > 1 - 0.6
    expected = torch.stack([kept[0, head][torch.argsort(order[0, head])] for head in range(2)])
    assert torch.equal(mass_mask(maps, 0.6)[0].flatten(1), expected)


def test_patches_outside_a_mask_are_dimmed():
    image, mask = torch.ones(1, 3, 4, 4), torch.tensor([[[[True, False], [False, False]]]])
    shown = overlay(image, mask, dim=0.25)
    assert (shown[..., :2, :2] == 1).all() and (shown[..., 2:, :] == 0.25).all() and (shown[..., :2, 2:] == 0.25).all()


def test_colours_are_the_principal_components_of_all_patches():
    from sklearn.decomposition import PCA

    features = torch.randn(2, 4, 5, 8, generator=torch.Generator().manual_seed(0)) * torch.arange(1, 9)
    colours = pca_colours(features)
    assert colours.shape == (2, 3, 4, 5) and colours.min() == 0 and colours.max() == 1
    rows = rearrange(features, "b h w d -> (b h w) d").numpy()
    expected = PCA(3).fit_transform(rows)
    ours = rearrange(colours, "b c h w -> (b h w) c").numpy()
    for c in range(3):
        inside = (ours[:, c] > 0) & (ours[:, c] < 1)
        assert abs(np.corrcoef(ours[inside, c], expected[inside, c])[0, 1]) > 0.9999
    assert pca_colours(torch.randn(1, 2, 2, 2)).shape == (1, 3, 2, 2), "with fewer dimensions than colours"


def test_correspondences_find_patches_that_have_moved():
    features = torch.randn(3, 4, 16, generator=torch.Generator().manual_seed(0))
    moved = features.roll((1, 2), (0, 1))
    places, mutual = correspondences(features, moved)
    assert mutual.all()
    for row in range(3):
        for column in range(4):
            assert places[row, column].tolist() == [(row + 1) % 3, (column + 2) % 4]
