"""Model cards: README.md from what a folder holds, merged with what people wrote into it.

What this file writes stands between two marks, so that a later card can replace it and leave the
rest of the page alone.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ssl_core.errors import InputError
from ssl_core.hub.format import SECTION
from ssl_core.hub.layout import Layout, read_json
from ssl_core.hub.weights_file import write_whole

BEGIN = "<!-- ssl-core: written from the run; what you change before the end mark is lost -->"
END = "<!-- ssl-core: end -->"
BLOCK = re.compile(r"<!-- ssl-core: written.*?<!-- ssl-core: end -->", re.DOTALL)
OURS = "ssl-core"
"""`by` in a metric's arguments: the entries of a model-index that we replace"""


class CardError(InputError, ValueError):
    """A README.md whose YAML header cannot be read."""


def write_card(
    folder: str | Path,
    *,
    name: str,
    layout: Layout,
    license: str | None = None,
    results: Sequence[Any] = (),
    parts: Sequence[str] = (),
    **header: Any,
) -> Path:
    """Write `folder/README.md`: a header, how to load the model of config.json, and `parts` in
    Markdown.

    `name` is the Hub id under which the model will be found, `layout` the method's. `results` are
    huggingface_hub's EvalResult; `header` holds other fields of its ModelCardData, such as
    base_model, datasets and tags. `license` is that of the weights, and weights that go on from
    CC-BY-NC ones are CC-BY-NC; by default it stays what the README.md says, Apache-2.0 when there
    is none. Text that people added outside the marks of the README.md stays. Raises CardError for a
    README.md that cannot be merged, OSError and ValueError for files that cannot be read.
    """
    from huggingface_hub import ModelCardData

    folder, title = Path(folder), name.rsplit("/", 1)[-1]
    config, path = read_json(folder / "config.json"), folder / "README.md"
    old = _parse(path.read_bytes().decode("utf-8-sig")) if path.exists() else None
    own = config.get(SECTION, {})
    package = own.get("method", "").partition(".")[0].replace("_", "-")
    alone = (None, None, "No other library reads this folder." if own else "")
    library, pipeline, text = layout.others.get(str(config.get("model_type")), alone)
    data = ModelCardData(
        license=license or (old and old.data.get("license")) or "apache-2.0",
        tags=[tag for tag in ("self-supervised-learning", package, *header.pop("tags", ())) if tag],
        **({"model_name": title, "eval_results": list(results)} if results else {}),
        **{"library_name": library or package or None, "pipeline_tag": pipeline, **header},
    )
    loading = _loading(own, layout.inputs, text).replace("{name}", name)
    block = "\n\n".join([BEGIN, *(part for part in (loading, *parts) if part), END])
    card = f"---\n{data.to_yaml()}\n---\n\n# {title}\n\n{block}\n"
    if old is not None:
        card = _merge(old, _parse(card))
    write_whole(path, lambda temporary: temporary.write_bytes(card.encode()))
    return path


def merge_card(old: str, new: str) -> str:
    """The card `old` with the marked block and the figures of `new`; everything else in it stays.

    Of the YAML header, our keys are renewed, tags and datasets united, other keys and other
    people's entries of the model-index kept. So is the licence, with a warning when the two differ:
    whoever put it there may have had a reason. Merging the same card again changes nothing.
    Raises CardError when a header cannot be read.
    """
    theirs, ours = _parse(old), _parse(new)
    kept, offered = theirs.data.get("license"), ours.data.get("license")
    if kept and offered and kept != offered:
        what = f"the card there says licence {kept}, the new one {offered}: {kept} is kept"
        warnings.warn(f"{what}. Edit the card there if that is wrong", stacklevel=2)
        ours.data.license = kept
    return _merge(theirs, ours)


def _merge(theirs: Any, ours: Any) -> str:
    """`ours` into `theirs`, two ModelCards."""
    for key, value in ours.data.to_dict().items():
        if key in ("tags", "datasets"):
            before = theirs.data.get(key, [])
            before = [before] if isinstance(before, str) else before
            value = list(dict.fromkeys([*before, *value]))
        if key != "model-index":
            theirs.data[key] = value
    results = theirs.data.get("eval_results", [])
    others = [result for result in results if (result.metric_args or {}).get("by") != OURS]
    theirs.data.eval_results = [*others, *ours.data.get("eval_results", [])] or None
    if theirs.data.eval_results and not theirs.data.get("model_name"):
        theirs.data.model_name = ours.data.model_name
    theirs.text = _merge_text(theirs.text, ours.text)
    return str(theirs)


def _merge_text(old: str, new: str) -> str:
    block = BLOCK.search(new)
    own = [line for line in BLOCK.sub("", new).splitlines() if line.strip() and not line.startswith("# ")]
    lost = [line for line in own if line not in old]
    if lost:
        what = f"{len(lost)} lines outside the marks of the new one are left out: {lost[0]!r}"
        warnings.warn(f"the card there keeps its text; {what}", stacklevel=3)
    if block is None:
        return old
    end = "\r\n" if "\r\n" in old else "\n"
    text = block[0].replace("\n", end)
    if BLOCK.search(old):
        return BLOCK.sub(lambda _: text, old, count=1)
    return f"{old.rstrip()}{end}{end}{text}{end}"


def _parse(card: str) -> Any:
    from huggingface_hub import ModelCard
    from yaml import YAMLError

    try:
        return ModelCard(card)
    except (ValueError, YAMLError) as error:
        raise CardError(f"the header of README.md cannot be read, mend its YAML: {error}") from error


def _loading(own: dict[str, Any], inputs: tuple[str, str], text: str) -> str:
    """How to load what is in our section of config.json, in three lines, and `text` of
    `Layout.others`."""
    if "method" not in own:
        return ""
    (module, _, cls), config = own["method"].partition(":"), own.get("config", {})
    load = f'from {module} import {cls}\nmodel = {cls}.from_pretrained("{{name}}")'
    encode = f"features = model.encode({inputs[0]})  # {inputs[1]} -> (b, d)"
    patches = f"[:, {1 + config.get('registers', 0)}:].mean(1)"
    text = text.replace("{pooled}", patches if config.get("pool") == "mean" else "[:, 0]")
    return f"## Load\n\n```python\n{load}\n{encode}\n```\n\n{text}"
