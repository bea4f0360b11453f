"""The built-in pictures: what they promise to show, and that their class is not in their
colours."""

from __future__ import annotations

import math
import pickle
import re
from pathlib import Path

import numpy as np
import pytest
import torch

from ssl_core.errors import DataError
from ssl_train.data.scenes import CLASSES, SHAPES, SLOTS, TEXTURES, Scenes, draw, held_out, render, write_folder
from ssl_train.data.sources import open_source


def whole_objects(shape: str, number: int, size: int = 128):
    """Scenes of seed 5 whose main object has a shape and does not touch the picture's border."""
    found = []
    index = 0
    while len(found) < number:
        if SHAPES[draw(5, index).main.shape] == shape:
            scene = render(5, index, size, second_object=False)
            mask = scene.masks[0]
            if not (mask[[0, -1]].any() or mask[:, [0, -1]].any()):
                found.append(scene)
        index += 1
    return found


def test_a_picture_depends_on_seed_and_index_alone():
    again = [render(3, index, 48).image for index in (7, 5, 6)]
    for index, image in zip((7, 5, 6), again, strict=True):
        assert np.array_equal(render(3, index, 48).image, image)
    assert not np.array_equal(render(3, 5, 48).image, render(3, 6, 48).image)
    assert not np.array_equal(render(3, 5, 48).image, render(4, 5, 48).image)
    assert render(3, 5, 31).factors == render(3, 5, 48).factors == draw(3, 5)


def test_slots_stay_where_they_are():
    """Written down once: a slot that moves would change every picture ever made."""
    first, last = draw(0, 0), draw(2, 1_000_000)
    assert len(SLOTS) <= 64
    assert [draw(0, index).main.name for index in range(4)] == [
        "dotted square",
        "ringed triangle",
        "dotted circle",
        "striped triangle",
    ]
    assert (first.main.x, first.main.y, first.main.radius) == pytest.approx((0.59186218, 0.37026225, 0.31327788))
    assert (last.ground_luma, *last.waves[1]) == pytest.approx(
        (0.45975735, 0.03917630, 2.55577942, 0.97834578, 2.87252196)
    )


@pytest.mark.parametrize("size", [1, 7, 33, 200])
def test_any_size_can_be_rendered(size):
    scene = render(0, 3, size, second_object=True)
    assert scene.image.shape == (size, size, 3)
    assert scene.image.dtype == np.uint8
    assert scene.masks.shape == (2, size, size)
    assert scene.masks.dtype == bool


def test_sizes_show_the_same_picture():
    large, small = render(1, 2, 128).image, render(1, 2, 32).image
    pooled = large.reshape(32, 4, 32, 4, 3).mean((1, 3))
    assert np.abs(pooled - small).mean() < 3


@pytest.mark.parametrize("shape", SHAPES)
def test_masks_are_the_shapes_of_their_definition(shape):
    """Against the shape's outline written as corners and sampled 6 x 6 times in a pixel."""
    for scene in whole_objects(shape, 3):
        main, size = scene.factors.main, len(scene.image)
        grid = (np.arange(6 * size) + 0.5) / (6 * size)
        dx, dy = grid[None] - main.x, main.y - grid[:, None]
        cos, sin = math.cos(main.angle), math.sin(main.angle)
        u, v = (cos * dx + sin * dy) / main.radius, (cos * dy - sin * dx) / main.radius
        unit = {"circle": 1, "square": math.sqrt(math.pi) / 2, "cross": 1.15332, "triangle": 1.5551}
        u, v = u / unit[shape], v / unit[shape]
        inside = {
            "circle": np.hypot(u, v) <= 1,
            "square": (abs(u) <= 1) & (abs(v) <= 1),
            "cross": (abs(u) <= 0.36) & (abs(v) <= 1) | (abs(v) <= 0.36) & (abs(u) <= 1),
            # corners at (0, 1), (.866, -.5) and (-.866, -.5)
            "triangle": (v >= -0.5) & (v <= 1 - math.sqrt(3) * abs(u)),
        }[shape]
        expected = inside.reshape(size, 6, size, 6).mean((1, 3)) > 0.5
        assert (expected != scene.masks[0]).mean() < 0.002


@pytest.mark.parametrize("shape", SHAPES)
def test_every_shape_has_the_area_of_its_disc(shape):
    for scene in whole_objects(shape, 5):
        disc = math.pi * scene.factors.main.radius**2
        assert scene.masks[0].mean() == pytest.approx(disc, rel=0.02)


@pytest.mark.parametrize("texture", TEXTURES)
def test_every_texture_has_its_duty_and_two_tones(texture):
    scenes = [s for s in whole_objects("square", 24) if TEXTURES[s.factors.main.texture] == texture]
    assert len(scenes) >= 3
    for scene in scenes:
        main = scene.factors.main
        luma = scene.image[scene.masks[0]] @ [0.299, 0.587, 0.114] / 255
        share = main.duty if main.polarity else 1 - main.duty
        assert (luma > main.middle).mean() == pytest.approx(share, abs=0.03)
        bright, dark = luma[luma > main.middle].mean(), luma[luma < main.middle].mean()
        assert 0.8 * main.contrast < bright - dark < 1.05 * main.contrast


def test_stripes_have_the_drawn_period():
    squares = whole_objects("square", 40)
    scene = next(s for s in squares if TEXTURES[s.factors.main.texture] == "striped")
    main, size = scene.factors.main, 128
    angle = main.angle + main.twist
    along = np.arange(-200, 200) / 200 * 0.85 * main.radius  # across the stripes, by the centre
    x = ((main.x + along * math.cos(angle)) * size).astype(int)
    y = ((main.y - along * math.sin(angle)) * size).astype(int)
    bright = scene.image[y, x] @ [0.299, 0.587, 0.114] / 255 > main.middle
    edges = along[1:][bright[1:] & ~bright[:-1]]  # where a stripe begins
    assert len(edges) == 2
    assert np.diff(edges) == pytest.approx(main.period * main.radius, abs=1.5 / size)


def test_the_second_object_is_behind_beside_and_smaller():
    seen, relations = [], set()
    for index in range(200):
        alone = render(7, index, 64, second_object=False)
        scene = render(7, index, 64, second_object=True)
        main, second = scene.masks
        assert np.array_equal(main, alone.masks[0])
        inner = main.copy()  # without the rim, whose pixels show what is behind, too
        for shift in np.ndindex(3, 3):
            inner &= np.roll(main, np.subtract(shift, 1), (0, 1))
        change = scene.image[inner].astype(int) - alone.image[inner]
        assert abs(change).max() <= 1  # laid over another ground, it may round differently
        assert not (main & second).any()
        assert second.sum() < main.sum()
        radius = scene.factors.second.radius
        seen.append(second.mean() / (math.pi * radius**2))
        relations.add(re.search(r"left of|right of|above|below", scene.caption)[0])
    assert min(seen) > 0.25
    assert relations == {"left of", "right of", "above", "below"}


def test_a_quarter_of_the_pictures_has_a_second_object():
    share = np.mean([draw(0, index).second is not None for index in range(2000)])
    assert share == pytest.approx(0.25, abs=0.03)


def test_captions_say_what_is_where():
    pattern = re.compile(r"a (small|large) (\w+ \w+) (left of|right of|above|below) a (\w+ \w+)")
    for index in range(100):
        scene = render(2, index, 8, second_object=True)
        size, main, relation, second = pattern.fullmatch(scene.caption).groups()
        factors = scene.factors
        assert main == CLASSES[scene.label] == factors.main.name
        assert second == factors.second.name
        assert (size == "large") == (factors.main.radius >= 0.35)
        across, down = factors.main.x - factors.second.x, factors.main.y - factors.second.y
        if relation in ("left of", "right of"):
            assert abs(across) >= abs(down)
            assert (across < 0) == (relation == "left of")
        else:
            assert abs(down) > abs(across)
            assert (down < 0) == (relation == "above")


def test_a_caption_needs_two_objects():
    with pytest.raises(ValueError, match="second_object=True"):
        _ = render(0, 0, 8, second_object=False).caption


def test_held_out_combinations_are_a_tenth_and_fixed():
    pairs = [(main, second) for main in CLASSES for second in CLASSES]
    folds = np.array([[held_out(*pair, fold=fold) for pair in pairs] for fold in range(10)])
    assert (folds.sum(0) == 1).all()
    assert folds.sum(1).min() >= 12
    assert [pair for pair, out in zip(pairs, folds[0], strict=True) if out][:2] == [
        ("checked circle", "ringed square"),
        ("checked circle", "striped cross"),
    ]


def test_impossible_pictures_are_refused():
    with pytest.raises(ValueError, match="size = 0"):
        render(0, 0, 0)
    with pytest.raises(ValueError, match="choose 'above' or 'anywhere'"):
        render(0, 0, 8, light="below")


def test_light_comes_from_above_or_from_anywhere():
    above = [math.degrees(draw(0, index).light) for index in range(300)]
    anywhere = [math.degrees(draw(0, index, light="anywhere").light) for index in range(300)]
    assert max(map(abs, above)) <= 18
    assert np.histogram(anywhere, bins=4, range=(-180, 180))[0].min() > 50
    assert draw(0, 1, light="anywhere").main == draw(0, 1).main


def test_light_brightens_the_side_it_comes_from():
    def up_gradient(index: int, light: str) -> float:
        image = render(0, index, 32, light=light).image.mean(2)
        return image[:8].mean() - image[-8:].mean()

    assert np.mean([up_gradient(i, "above") for i in range(200)]) > 5
    assert abs(np.mean([up_gradient(i, "anywhere") for i in range(200)])) < 3


def test_colour_and_brightness_do_not_give_the_class():
    def features(seed: int, number: int):
        scenes = [render(seed, index, 32) for index in range(number)]
        levels = [s.image.reshape(-1, 3) >> 4 for s in scenes]
        colours = [np.concatenate([np.bincount(c, minlength=16) for c in x.T]) for x in levels]
        brightness = [[s.image.mean()] for s in scenes]
        return np.array(colours), np.array(brightness), np.array([s.label for s in scenes])

    *train, labels = features(0, 2000)
    *test, expected = features(1, 1000)
    for stored, asked in zip(train, test, strict=True):
        stored, asked = stored.astype(float), asked.astype(float)
        distance = (stored**2).sum(1) - 2 * asked @ stored.T
        nearest = np.argsort(distance, axis=1)[:, :20]
        votes = np.eye(16)[labels[nearest]].sum(1)
        assert (votes.argmax(1) == expected).mean() < 0.11  # chance is .0625


def test_classes_are_uniform_and_labels_need_no_rendering():
    scenes = Scenes(number=4000, seed=0, size=16)
    assert scenes.labels.dtype == np.int64
    assert np.bincount(scenes.labels, minlength=16).min() > 190
    assert scenes.labels[:50].tolist() == [render(0, index, 8).label for index in range(50)]
    assert scenes.classes[render(0, 9, 8).label] == render(0, 9, 8).factors.main.name


def test_a_source_that_is_lit_from_anywhere_gives_those_pictures_under_a_name_of_its_own():
    above, anywhere = Scenes(10, 4, 24), Scenes(10, 4, 24, light="anywhere")
    picture = torch.from_numpy(render(4, 3, 24, light="anywhere").image).permute(2, 0, 1)
    assert torch.equal(anywhere.load(3)["image"], picture)
    assert not torch.equal(anywhere.load(3)["image"], above.load(3)["image"])
    assert np.array_equal(anywhere.labels, above.labels)
    assert anywhere.fingerprint() != above.fingerprint()


def test_the_source_gives_tensors_names_and_a_fingerprint():
    scenes = Scenes(number=10, seed=4, size=24)
    image = scenes.load(3)["image"]
    assert torch.equal(image, torch.from_numpy(render(4, 3, 24).image).permute(2, 0, 1))
    assert Scenes(10, 4, 24, channels=1).load(3)["image"].shape == (1, 24, 24)
    assert scenes.name(3) == "scenes/4/000003"
    with pytest.raises(IndexError):
        scenes.load(10)
    copy = pickle.loads(pickle.dumps(scenes))
    assert copy.fingerprint() == scenes.fingerprint()
    others = [Scenes(11, 4, 24), Scenes(10, 5, 24), Scenes(10, 4, 25)]
    assert len({scenes.fingerprint(), *(other.fingerprint() for other in others)}) == 4


def test_a_written_folder_reads_back_with_the_same_labels(tmp_path: Path):
    for split, seed in (("train", 0), ("test", 1)):
        write_folder(tmp_path / split, 60, seed, 20)
    folder, scenes = open_source(tmp_path), Scenes(60, 0, 20)
    assert folder.classes == scenes.classes
    order = [int(Path(folder.name(i)).stem) for i in range(len(folder))]
    assert sorted(order) == list(range(60))
    assert np.array_equal(folder.labels, scenes.labels[order])
    assert torch.equal(folder.load(7)["image"], scenes.load(order[7])["image"])
    assert len(open_source(tmp_path, split="test")) == 60
    with pytest.raises(DataError, match="exists"):
        write_folder(tmp_path / "train", 60, 0, 20)
