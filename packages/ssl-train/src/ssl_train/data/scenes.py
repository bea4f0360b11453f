"""`scenes`, the built-in data: rendered pictures of textured shapes on quiet grounds.

Each picture has a main object, whose shape and texture are its class, and now and then a smaller
one beside or partly behind it. A picture is a function of (seed, index): every factor is read from
its own slot of `default_rng((seed, index)).random(64)`, so it stays the same at every size and
whatever else is asked for. Narrow hues and two tones shared by all classes keep the class out of
colour and brightness: it has to be learned from shape and texture.

Lengths are in image widths, angles in radians counter-clockwise, luma in 0..1, hues in turns; y
points down in pictures and up in an object's own frame. Factors and labels are exact everywhere; a
pixel may differ by one between processors, whose vector units round sines differently.
"""

from __future__ import annotations

import functools
import hashlib
import math
import os
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from ssl_train.data import images

SHAPES = ("circle", "cross", "square", "triangle")
TEXTURES = ("checked", "dotted", "ringed", "striped")
# Alphabetical, so that a folder written from these gets the same labels.
CLASSES = tuple(f"{texture} {shape}" for texture in TEXTURES for shape in SHAPES)

_OBJECT = {
    "shape": (0, 4),
    "texture": (0, 4),
    "radius": (0.31, 0.39),  # of the disc of equal area
    "angle": (-math.radians(22), math.radians(22)),
    "period": (0.65, 0.80),  # of the texture, in radii
    "twist": (-0.06 * math.pi, 0.06 * math.pi),  # of the texture against the object
    "offset_u": (-1, 1),  # of the texture, in radii
    "offset_v": (-1, 1),
    "duty": (0.44, 0.56),  # share of the wave's crest: stripes, dots, every other ring or check
    "hue": (0.02, 0.08),
    "saturation": (0.30, 0.45),
    "middle": (0.47, 0.53),  # luma between the two tones
    "contrast": (0.45, 0.55),
    "polarity": (0, 2),  # 1: the crest is the brighter tone
}
_WAVE = {
    "amplitude": (0.02, 0.05),
    "direction": (0, math.pi),
    "frequency": (0.5, 1.5),  # periods in an image width
    "phase": (0, 2 * math.pi),
}
# Factor -> (low, high) of a uniform draw. The position is the slot: append, never insert.
SLOTS: dict[str, tuple[float, float]] = {
    **_OBJECT,
    "x": (0.3, 0.7),
    "y": (0.3, 0.7),
    "second_present": (0, 1),
    **{f"second_{factor}": span for factor, span in _OBJECT.items()},
    "second_radius": (0.10, 0.14),
    "second_direction": (0, 1),  # turns; where the search for free room starts
    "second_gap": (0.1, 1.1),  # radii from the main object's edge to the second one's centre
    "light": (-1, 1),
    "shade": (0.05, 0.10),  # luma from the middle of an object to its rim
    "shadow_shift": (0.12, 0.22),  # in radii
    "shadow_depth": (0.10, 0.18),
    "ground_hue": (0.50, 0.56),
    "ground_saturation": (0.15, 0.30),
    "ground_luma": (0.40, 0.50),
    "ground_gradient": (0.02, 0.06),
    **{f"wave1_{factor}": span for factor, span in _WAVE.items()},
    **{f"wave2_{factor}": span for factor, span in _WAVE.items()},
}
_LOW, _HIGH = np.array(list(SLOTS.values()), dtype=float).T
SECOND_PROBABILITY = 0.25
_LIGHT = {"above": math.radians(18), "anywhere": math.pi}  # to either side of straight up

_AREA = {"circle": math.pi, "cross": 2.3616, "square": 4.0, "triangle": 0.75 * math.sqrt(3)}
_OUTER = {"circle": 1.0, "cross": math.hypot(1, 0.36), "square": math.sqrt(2), "triangle": 1.0}
# Mean slope of each texture per radian of its phase, for an edge about one pixel wide.
_SLOPE = {"checked": 0.5, "dotted": 1.2, "ringed": 1.0, "striped": 1.0}
_LUMA = np.array([0.299, 0.587, 0.114])


@dataclass(frozen=True)
class ObjectFactors:
    """One object: `shape` and `texture` count in SHAPES and TEXTURES, the rest is as in SLOTS."""

    shape: int
    texture: int
    radius: float
    angle: float
    period: float
    twist: float
    offset_u: float
    offset_v: float
    duty: float
    hue: float
    saturation: float
    middle: float
    contrast: float
    polarity: int
    x: float
    y: float

    @property
    def label(self) -> int:
        return self.texture * len(SHAPES) + self.shape

    @property
    def name(self) -> str:
        return CLASSES[self.label]

    @property
    def scale(self) -> float:
        """Length of the shape's own unit, which gives every shape the area of the disc."""
        return self.radius * math.sqrt(math.pi / _AREA[SHAPES[self.shape]])


@dataclass(frozen=True)
class SceneFactors:
    """All that was drawn for one picture. `light` is its angle, clockwise from straight up."""

    main: ObjectFactors
    second: ObjectFactors | None
    light: float
    shade: float
    shadow_shift: float
    shadow_depth: float
    ground_hue: float
    ground_saturation: float
    ground_luma: float
    ground_gradient: float
    waves: tuple[tuple[float, float, float, float], ...]  # amplitude, direction, frequency, phase

    @property
    def caption(self) -> str:
        """Both objects in words, by the larger side of their centres' distance.

        Raises ValueError where there is no second object: render with `second_object=True`.
        """
        main, second = self.main, self.second
        if second is None:
            raise ValueError("a caption needs two objects: render with second_object=True")
        size = "small" if main.radius < sum(SLOTS["radius"]) / 2 else "large"
        dx, dy = main.x - second.x, main.y - second.y
        if abs(dx) >= abs(dy):
            relation = "left of" if dx < 0 else "right of"
        else:
            relation = "above" if dy < 0 else "below"
        return f"a {size} {main.name} {relation} a {second.name}"


@dataclass(frozen=True)
class Scene:
    """A rendered picture.

    image: uint8 (h, w, 3). masks: bool (2, h, w), the main object and what is seen of the second.
    """

    image: np.ndarray
    masks: np.ndarray
    factors: SceneFactors

    @property
    def label(self) -> int:
        """Class of the main object, a position in CLASSES."""
        return self.factors.main.label

    @property
    def caption(self) -> str:
        """`SceneFactors.caption`."""
        return self.factors.caption


def render(
    seed: int,
    index: int,
    size: int,
    *,
    second_object: bool | None = None,
    light: Literal["above", "anywhere"] = "above",
) -> Scene:
    """Picture `index` of `seed`, `size` x `size` pixels.

    A second object is there with probability .25, or always or never as `second_object` says. Light
    comes from above within 18 degrees. Where the task is to tell how a picture was turned, take
    `light="anywhere"`: shadow, shading and ground would give the answer away.
    Raises ValueError where `size` < 1 or `light` is another word.
    """
    if size < 1:
        raise ValueError(f"size = {size}: a picture needs a pixel")
    factors = draw(seed, index, second_object=second_object, light=light)
    luma = _ground(factors, size)
    second = np.zeros((size, size), np.float32)
    main = np.zeros((size, size), np.float32)
    if factors.second is not None:
        _paint(factors.second, factors, luma, second)
    _paint(factors.main, factors, luma, main)
    second *= 1 - main
    return Scene(_colour(factors, luma, main, second), np.stack((main > 0.5, second > 0.5)), factors)


def draw(
    seed: int, index: int, *, second_object: bool | None = None, light: Literal["above", "anywhere"] = "above"
) -> SceneFactors:
    """The factors of a picture, without rendering it; arguments as for `render`."""
    if light not in _LIGHT:
        raise ValueError(f"light = {light!r}: choose 'above' or 'anywhere'")
    uniform = np.random.default_rng((seed, index)).random(64)[: len(SLOTS)]
    factor = dict(zip(SLOTS, (_LOW + (_HIGH - _LOW) * uniform).tolist(), strict=True))
    main = _object(factor, "", factor["x"], factor["y"])
    if second_object is None:
        second_object = factor["second_present"] < SECOND_PROBABILITY
    second = None
    if second_object:
        gap = factor["second_gap"] * factor["second_radius"]
        place = _beside(main, factor["second_radius"], factor["second_direction"], gap)
        second = _object(factor, "second_", *place)
    return SceneFactors(
        main=main,
        second=second,
        light=factor["light"] * _LIGHT[light],
        shade=factor["shade"],
        shadow_shift=factor["shadow_shift"],
        shadow_depth=factor["shadow_depth"],
        ground_hue=factor["ground_hue"],
        ground_saturation=factor["ground_saturation"],
        ground_luma=factor["ground_luma"],
        ground_gradient=factor["ground_gradient"],
        waves=tuple(tuple(factor[f"wave{k}_{part}"] for part in _WAVE) for k in (1, 2)),
    )


def held_out(main: str, second: str, fold: int = 0) -> bool:
    """Whether captions that join these two classes are kept for the test: one combination in ten.

    `main` and `second` are names in CLASSES; `fold` in 0..9 picks which tenth.
    """
    return zlib.crc32(f"{main}, {second}".encode()) % 10 == fold


class Scenes:
    """`number` pictures of `seed` as a source (see `ssl_train.data.sources`), rendered on `load`;
    `light` as for `render`."""

    def __init__(
        self, number: int, seed: int, size: int, channels: int = 3, light: Literal["above", "anywhere"] = "above"
    ) -> None:
        self.number, self.seed, self.size, self.channels = number, seed, size, channels
        self.light: Literal["above", "anywhere"] = light
        self.classes = list(CLASSES)
        self._labels: np.ndarray | None = None

    def __len__(self) -> int:
        return self.number

    @property
    def labels(self) -> np.ndarray:
        """int64 (n,), from the first two slots alone: nothing is rendered for them."""
        if self._labels is None:
            draws = [np.random.default_rng((self.seed, i)).random(2) for i in range(self.number)]
            shape, texture = (np.reshape(draws, (-1, 2)) * 4).astype(np.int64).T
            self._labels = texture * len(SHAPES) + shape
        return self._labels

    def load(self, index: int) -> dict[str, Any]:
        """{"image": uint8 (c, h, w)}"""
        scene = render(self.seed, range(self.number)[index], self.size, light=self.light)
        return {"image": images.to_tensor(scene.image, self.channels)}

    def name(self, index: int) -> str:
        return f"scenes/{self.seed}/{index:06d}"

    def fingerprint(self) -> str:
        key = f"scenes {SLOTS} {self.number} {self.seed} {self.size} {self.channels}"
        key += "" if self.light == "above" else f" light {self.light}"
        return hashlib.sha256(key.encode()).hexdigest()[:16]


def write_folder(
    path: str | os.PathLike[str], number: int, seed: int, size: int, format: Literal["png", "jpeg"] = "png"
) -> Path:
    """Write pictures 0 to `number` - 1 of `seed` as `path/<class>/<index>.<format>`.

    A folder of that name is complete: it appears in one step. Raises DataError where it exists.
    """
    scenes = (render(seed, index, size) for index in range(number))
    return images.write_folder(path, ((CLASSES[s.label], s.image) for s in scenes), format)


def _object(factor: dict[str, float], prefix: str, x: float, y: float) -> ObjectFactors:
    values: dict[str, Any] = {name: factor[prefix + name] for name in _OBJECT}
    for name in ("shape", "texture", "polarity"):
        values[name] = int(values[name])
    return ObjectFactors(**values, x=x, y=y)


def _beside(main: ObjectFactors, radius: float, turn: float, gap: float) -> tuple[float, float]:
    """A centre `gap` outside the main object's edge.

    Of eight directions from `turn` on, the first that keeps the second object in the picture, or
    the one that has to be pulled in least.
    """
    best, least = (0.0, 0.0), math.inf
    for step in range(8):
        angle = 2 * math.pi * (turn + step / 8)
        reach = _reach(SHAPES[main.shape], angle - main.angle) * main.scale + gap
        x, y = main.x + reach * math.cos(angle), main.y - reach * math.sin(angle)
        inside_x, inside_y = (min(max(v, radius), 1 - radius) for v in (x, y))
        pulled = math.hypot(x - inside_x, y - inside_y)
        if pulled < least:
            best, least = (inside_x, inside_y), pulled
    return best


def _reach(shape: str, angle: float) -> float:
    """Distance from the centre to the edge in a direction, in the shape's unit."""
    u, v = math.cos(angle), math.sin(angle)
    if shape == "circle":
        return 1.0
    if shape == "square":
        return 1 / max(abs(u), abs(v))
    if shape == "triangle":
        return 0.5 / max(0.866 * abs(u) + 0.5 * v, -v)
    return max(1 / max(abs(u) / 0.36, abs(v)), 1 / max(abs(v) / 0.36, abs(u)))


@functools.lru_cache(maxsize=8)
def _centres(size: int) -> np.ndarray:
    return ((np.arange(size) + 0.5) / size).astype(np.float32)


def _ground(factors: SceneFactors, size: int) -> np.ndarray:
    """Luma (h, w): two low waves and a gradient towards the light."""
    x, y = _centres(size), _centres(size)[:, None]
    up, right = math.cos(factors.light), math.sin(factors.light)
    slope = 2 * factors.ground_gradient
    luma = (0.5 - y) * (slope * up) + ((x - 0.5) * (slope * right) + factors.ground_luma)
    for amplitude, direction, frequency, phase in factors.waves:
        turns = 2 * math.pi * frequency
        wave = x * (turns * math.cos(direction)) + (y * (turns * math.sin(direction)) + phase)
        np.sin(wave, out=wave)
        wave *= amplitude
        luma += wave
    return luma


def _paint(factors: ObjectFactors, scene: SceneFactors, luma: np.ndarray, coverage: np.ndarray) -> None:
    """Lay an object and its shadow into `luma` (h, w), its share of each pixel into `coverage`."""
    size, radius = len(luma), factors.radius
    right, up = math.sin(scene.light), math.cos(scene.light)
    shift = scene.shadow_shift * radius
    x, y = factors.x - shift * right, factors.y + shift * up
    box, dx, dy = _box(factors, x, y, size, margin=0.1 * radius)
    luma[box] -= scene.shadow_depth * _coverage(factors, dx, dy, softness=0.2 * radius)

    box, dx, dy = _box(factors, factors.x, factors.y, size, margin=0.5 / size)
    cover = _coverage(factors, dx, dy, softness=1 / size)
    crest = _texture(factors, dx, dy, cover, size)
    contrast = factors.contrast if factors.polarity else -factors.contrast
    slope = scene.shade / radius
    tone = contrast * crest
    tone += dx * (slope * right) + (dy * (slope * up) + (factors.middle - contrast / 2))
    tone -= luma[box]
    tone *= cover
    luma[box] += tone
    coverage[box] = cover


def _box(
    factors: ObjectFactors, x: float, y: float, size: int, margin: float
) -> tuple[tuple[slice, slice], np.ndarray, np.ndarray]:
    """Rows and columns that an object at (x, y) can touch, and their offsets dx (w,), dy (h, 1)."""
    reach = _OUTER[SHAPES[factors.shape]] * factors.scale + margin
    rows, columns = (
        slice(max(0, math.floor((v - reach) * size)), max(0, math.ceil((v + reach) * size))) for v in (y, x)
    )
    centres = _centres(size)
    return (rows, columns), centres[columns] - x, (y - centres[rows])[:, None]


def _coverage(factors: ObjectFactors, dx: np.ndarray, dy: np.ndarray, softness: float) -> np.ndarray:
    """Share of the object in each pixel (h, w), from the signed distance to its edge.

    With a `softness` of one pixel this is anti-aliasing without supersampling.
    """
    cos, sin = math.cos(factors.angle), math.sin(factors.angle)
    # in units of the edge's width, so that no (h, w) array has to be divided
    unit = factors.scale / softness
    dx, dy = dx / softness, dy / softness
    u, v = dx * cos + dy * sin, dy * cos - dx * sin
    distance = _DISTANCE[SHAPES[factors.shape]](u, v, unit)
    np.subtract(0.5, distance, out=distance)
    return np.clip(distance, 0, 1, out=distance)


def _circle(u: np.ndarray, v: np.ndarray, unit: float) -> np.ndarray:
    return np.sqrt(u * u + v * v) - unit


def _cross(u: np.ndarray, v: np.ndarray, unit: float) -> np.ndarray:
    u, v, arm = abs(u), abs(v), 0.36 * unit
    return np.minimum(np.maximum(u - arm, v - unit), np.maximum(v - arm, u - unit))


def _square(u: np.ndarray, v: np.ndarray, unit: float) -> np.ndarray:
    return np.maximum(abs(u), abs(v)) - unit


def _triangle(u: np.ndarray, v: np.ndarray, unit: float) -> np.ndarray:
    return np.maximum(0.866 * abs(u) + 0.5 * v, -v) - 0.5 * unit


_DISTANCE: dict[str, Callable[[np.ndarray, np.ndarray, float], np.ndarray]] = {
    "circle": _circle,
    "cross": _cross,
    "square": _square,
    "triangle": _triangle,
}


def _texture(factors: ObjectFactors, dx: np.ndarray, dy: np.ndarray, cover: np.ndarray, size: int) -> np.ndarray:
    """Share of the crest in each pixel (h, w): a wave cut at the quantile of its duty."""
    texture = TEXTURES[factors.texture]
    k = 2 * math.pi / (factors.period * factors.radius)
    room = 0.3 if texture == "ringed" else 1.0  # rings far off centre would look like stripes
    a, b = (room * offset * factors.radius for offset in (factors.offset_u, factors.offset_v))
    cos, sin = math.cos(factors.angle + factors.twist), math.sin(factors.angle + factors.twist)
    u = dx * (k * cos) + (dy * (k * sin) + k * a)
    v = dy * (k * cos) - (dx * (k * sin) - k * b)
    if texture == "striped":
        wave = np.sin(u)
    elif texture == "ringed":
        wave = np.sin(np.sqrt(u * u + v * v))
    elif texture == "checked":
        wave = np.sin(0.707 * u) * np.sin(0.707 * v)
    else:  # cos V + cos(.866 U + .5 V) + cos(.866 U - .5 V): a hexagonal grid of dots
        wave = np.cos(v) + 2 * np.cos(0.866 * u) * np.cos(0.5 * v)
    inside = wave[cover > 0.5]
    place = int((1 - factors.duty) * len(inside))
    cut = np.partition(inside, place)[place] if len(inside) else 0.0
    wave -= cut
    wave *= size / (k * _SLOPE[texture])
    wave += 0.5
    return np.clip(wave, 0, 1, out=wave)


def _chroma(hue: float, saturation: float) -> np.ndarray:
    """RGB (3,) that adds a hue to a gray and leaves its luma as it is."""
    colour = saturation / 2 * np.cos(2 * math.pi * (hue - np.arange(3) / 3))
    return colour - _LUMA @ colour


def _colour(factors: SceneFactors, luma: np.ndarray, main: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Luma and shares of the objects (h, w) to uint8 RGB (h, w, 3)."""
    ground = _chroma(factors.ground_hue, factors.ground_saturation)
    image = luma + ground.astype(np.float32)[:, None, None]  # c h w
    for factor, share in ((factors.main, main), (factors.second, second)):
        if factor is not None:
            chroma = _chroma(factor.hue, factor.saturation) - ground
            image += np.multiply.outer(chroma.astype(np.float32), share)
    image *= 255
    image += 0.5
    np.clip(image, 0, 255, out=image)
    return np.ascontiguousarray(image.astype(np.uint8).transpose(1, 2, 0))  # h w c
