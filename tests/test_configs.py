"""What the configs of all packages have in common: recipes and presets by name, and bounds that
hold."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Annotated, Any, get_args, get_origin

import pytest
from projects import methods

from ssl_core.bounds import Checked, field_hints
from ssl_core.errors import ConfigError
from ssl_core.method import load
from ssl_train.cli.main import bounds_in_words

ROOT = Path(__file__).resolve().parents[1]
MODULES = [project.module.name for project in methods(ROOT).values()]
CONFIGS = {name: import_module(f"{name}.config") for name in MODULES}
CHECKED = {
    f"{module.__name__}:{name}": cls
    for module in (import_module("ssl_core.config"), import_module("ssl_train.options"), *CONFIGS.values())
    for name, cls in vars(module).items()
    if isinstance(cls, type) and issubclass(cls, Checked) and cls.__module__ == module.__name__
}
BOUNDED = [
    pytest.param(cls, field, id=f"{name}.{field}")
    for name, cls in CHECKED.items()
    for field, hints in field_hints(cls).items()
    if bounds_in_words(*hints)
]


@pytest.mark.parametrize("module", CONFIGS)
def test_recipes_and_presets_have_the_same_names(module):
    recipes, presets = CONFIGS[module].RECIPES, CONFIGS[module].PRESETS
    assert recipes.keys() == presets.keys()
    for name, recipe in recipes.items():
        assert (recipe.name, recipe.package, recipe.presets) == (name, module, presets[name])
        assert next(iter(presets[name])) == "demo"
        assert {type(preset()) for preset in presets[name].values()} == {load(recipe.config)}
        measure = recipe.measure or f"{module}.measure:"
        assert measure.startswith(f"{module}.measure:")


def outside(hint: Any, value: Any) -> Iterator[Any]:
    """Values that break one bound of `hint` by as little as there is, all else as in `value`, which
    keeps them."""
    args = get_args(hint)
    if get_origin(hint) is Annotated:
        yield from outside(args[0], value)
        for stated in args[1:]:
            limits = {name: getattr(stated, name, None) for name in ("gt", "ge", "lt", "le", "multiple_of", "func")}
            for name, limit in limits.items():
                if limit is not None:
                    yield broken(name, limit, whole=args[0] is int)
    elif get_origin(hint) is tuple:
        many = value if isinstance(value, tuple) else (0.5,) * len(args)
        for i, element in enumerate(args[:1] * len(many) if args[-1] is Ellipsis else args):
            yield from ((*many[:i], bad, *many[i + 1 :]) for bad in outside(element, many[i]))
    else:
        for option in args:
            yield from outside(option, value)


def broken(name: str, limit: Any, *, whole: bool) -> Any:
    """A value outside of one bound."""
    if name in ("gt", "lt"):
        return limit
    if name in ("ge", "le"):
        up = name == "le"
        return limit + (1 if up else -1) if whole else math.nextafter(limit, math.inf if up else -math.inf)
    return 2 * limit + 1 if name == "multiple_of" else (1.0, 0.5)  # which is not rising


@pytest.mark.parametrize(("cls", "field"), BOUNDED)
def test_a_value_just_outside_a_bound_is_refused(cls, field):
    config = cls()
    cases = [bad for hint in field_hints(cls)[field] for bad in outside(hint, getattr(config, field))]
    assert cases
    for bad in cases:
        with pytest.raises(ConfigError, match=rf"^{field}(\[\d\])? = .*: (must be|expected) "):
            dataclasses.replace(config, **{field: bad})


@pytest.mark.parametrize("cls", CHECKED.values(), ids=CHECKED)
def test_every_number_states_its_bounds(cls):
    free = {"mean"}
    for field, hints in field_hints(cls).items():
        if field not in free and {int, float} & {*get_args(hints[0]), hints[0]}:
            assert bounds_in_words(*hints), field
