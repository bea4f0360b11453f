"""Images and texts in one picture."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from ssl_clip import embedding_map, modality_gap
from ssl_clip.map import centred, sample_pairs
from ssl_core.errors import BadSample, DataError, InputError


def test_the_gap_is_the_distance_of_the_means_and_goes_when_they_are_taken_away():
    generator = torch.Generator().manual_seed(0)
    text = F.normalize(torch.randn(200, 8, generator=generator), dim=1)
    image = F.normalize(text + 2 * F.normalize(torch.ones(8), dim=0), dim=1)
    assert modality_gap(image, text) == pytest.approx((image.mean(0) - text.mean(0)).norm().item())
    assert modality_gap(image, text) > 0.5 > 0.1 > modality_gap(centred(image), centred(text))


@pytest.mark.parametrize("method", ["tsne", "pca"])
@pytest.mark.parametrize("centre", [False, True])
def test_a_map_shows_images_and_texts(method, centre, tmp_path, model, images):
    pytest.importorskip("matplotlib")
    figure = embedding_map(model(), images(4), ["red", "green", "blue"], method, centre=centre)
    figure.savefig(tmp_path / "map.png")
    title = figure.axes[0].get_title()
    assert title.startswith("modality gap") and ("taken away" in title) == centre
    assert {text.get_text() for text in figure.axes[0].texts} == {"red", "green", "blue"}
    with pytest.raises(InputError, match="needs four"):
        embedding_map(model(), images(1), ["red"], method)


class Captioned:
    """Grey pictures, of which `captions` says what each has."""

    def __init__(self, captions: dict[int, str]) -> None:
        self.captions = captions

    def __len__(self) -> int:
        return 9

    def load(self, index: int) -> dict[str, torch.Tensor]:
        return {"image": torch.full((3, 16, 16), index, dtype=torch.uint8)}

    def texts(self, index: int) -> list[str]:
        if index not in self.captions:
            raise BadSample("its caption is missing")
        return [self.captions[index]]


def test_a_map_draws_images_that_have_a_caption_and_each_text_once(small):
    images, texts = sample_pairs(Captioned({1: "grey", 4: "dark", 7: "grey"}), small, 20)
    assert sorted(images[:, 0, 0, 0].tolist()) == [1, 4, 7] and sorted(texts) == ["dark", "grey"]
    assert len(sample_pairs(Captioned({1: "grey", 4: "dark", 7: "grey"}), small, 2)[0]) == 2
    with pytest.raises(DataError, match="no readable image has a caption"):
        sample_pairs(Captioned({}), small, 20)
