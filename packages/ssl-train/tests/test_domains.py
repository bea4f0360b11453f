from __future__ import annotations

from dataclasses import dataclass

import pytest

from ssl_core.config import ConfigError
from ssl_train.domains import VIEWS, views_of, with_views


@dataclass(frozen=True)
class Config:
    crop_scale: tuple[float, float] = (0.08, 1.0)
    flip: bool = True
    turn: bool = False
    jitter: tuple[float, ...] = (0.8, 0.8, 0.8, 0.2)
    blur_p: tuple[float, float] = (1.0, 0.1)
    solarize_p: float = 0.2


@dataclass(frozen=True)
class Upright:
    crop_scale: tuple[float, float] = (0.08, 1.0)
    flip: bool = True
    jitter: float = 0.4


@dataclass(frozen=True)
class Captioned:
    crop_scale: tuple[float, float] = (0.9, 1.0)


def test_views_set_the_fields_that_a_config_has_in_their_shape():
    medical = with_views(Config(), "medical")
    assert medical == Config((0.5, 1.0), False, False, (0.2, 0.2, 0.0, 0.0), (0.0, 0.0), 0.0)
    assert with_views(Config(), "natural") == Config()
    assert with_views(Config(), "satellite").turn and with_views(Config(), "satellite").blur_p == (1.0, 0.1)
    assert with_views(Upright(), "medical") == Upright((0.5, 1.0), False, 0.0), "one strength is of colours too"


@pytest.mark.parametrize("name", VIEWS)
def test_a_method_that_cannot_turn_pictures_refuses_views_from_above(name):
    for config in (Upright(), Captioned()):
        if VIEWS[name].get("turn"):
            with pytest.raises(ConfigError, match=f"views = '{name}': these turn and mirror pictures"):
                views_of(config, name)
        else:
            views_of(config, name)
    if not VIEWS[name].get("turn"):
        assert views_of(Captioned(), name) == {}, "a caption is of the whole picture"
    with pytest.raises(ConfigError, match="draws no views"):
        views_of(Empty(), name)


@dataclass(frozen=True)
class Empty:
    context: int = 8
