"""The table of relative positions."""

from __future__ import annotations

import torch

from ssl_beit.positions import RelativeBias, interpolate_table, relative_positions


def test_the_table_of_a_14_x_14_grid_is_the_published_one():
    index = relative_positions((14, 14))
    assert index.shape == (197, 197)
    assert index.unique().numel() == 732 and index.max() == 731
    assert (index[0, 0], index[0, 1], index[1, 0]) == (731, 729, 730)
    assert (index.diagonal()[1:] == 364).all()
    query, key = 1 + 5 * 14 + 9, 1 + 2 * 14 + 11
    assert index[query, key] == 27 * (5 - 2 + 13) + (9 - 11 + 13)


def test_a_grid_that_is_not_square_has_a_row_for_every_offset():
    index = relative_positions((2, 3))
    assert index.unique().numel() == 3 * 5 + 3
    offsets = {}
    for q in range(6):
        for k in range(6):
            offset = (q // 3 - k // 3, q % 3 - k % 3)
            assert offsets.setdefault(offset, int(index[1 + q, 1 + k])) == index[1 + q, 1 + k]
    assert len(set(offsets.values())) == 15


def test_a_table_is_resampled_over_offsets_and_keeps_the_rows_of_cls():
    table = torch.randn(3 * 5 + 3, 2)
    wide = interpolate_table(table, (2, 3), (4, 5))
    assert wide.shape == (7 * 9 + 3, 2)
    assert torch.equal(wide[-3:], table[-3:])
    assert torch.equal(interpolate_table(table, (2, 3), (2, 3)), table)


def test_the_bias_of_a_pair_is_its_row_for_every_head():
    bias = RelativeBias((2, 3), heads=2)
    torch.nn.init.normal_(bias.relative_position_bias_table)
    found, index = bias((2, 3)), relative_positions((2, 3))
    assert found.shape == (2, 7, 7)
    assert torch.equal(found[:, 4, 1], bias.relative_position_bias_table[index[4, 1]])
