"""A folder of images that can be searched: the embeddings of its files, kept up to date."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from ssl_clip.clip import CLIP
from ssl_clip.index_files import FORMAT, IndexFiles, IndexMismatch, locked, read_meta, write_meta
from ssl_clip.nearest import exact_search, has_faiss, updated_lists
from ssl_core.config import TrainConfig, to_dict
from ssl_core.device import autocast, pick_device, pick_precision
from ssl_core.errors import BadSample, DataError, InputError
from ssl_core.hub.weights_file import write_whole
from ssl_train.data.files import printable, walk
from ssl_train.data.sources import EXTENSIONS
from ssl_train.data.views import eval_view

if TYPE_CHECKING:
    from ssl_clip.verbs import Index

EXACT = 200_000
"""Images up to which a query is compared with every one of them."""
RECIPE_FIELDS = ("loss", "tokenizer", "truncate", "crop_scale", "init_image", "lock_image", "max_pixels")
"""Fields of a `CLIPConfig` that decide no embedding, beside those of `TrainConfig`."""


@dataclass(frozen=True)
class Update:
    """What an update of an index did."""

    added: int
    changed: int
    removed: int
    unreadable: list[tuple[str, str]]
    """(path, reason) of every file that the index knows and cannot show"""
    total: int

    def __str__(self) -> str:
        found = f"{self.added} new, {self.changed} changed, {self.removed} gone, {len(self.unreadable)} unreadable"
        return f"{found}; {self.total} images can be searched"


class ImageIndex:
    """Embeddings of the images below a folder. Make one with `build`, or open one with `open`."""

    last_update: Update | None = None

    def __init__(self, clip: CLIP, folder: Path, meta: dict[str, Any]) -> None:
        self.clip, self.files = clip, IndexFiles(folder, meta)
        self._opened: tuple[Path, Any] | None = None

    @classmethod
    def build(
        cls, clip: CLIP, images: str | Path, out: str | Path, *, weights: str | None = None, **options: Any
    ) -> ImageIndex:
        """Index the images below `images` into the folder `out`, or bring the index up to date.

        `weights` is noted for `ssl-clip search`; `options` are those of `update`, whose report is
        in `last_update`. Raises DataError when `images` is no folder, and IndexMismatch when `out`
        holds an index of another model or of another folder, or something else.
        """
        root, out = Path(images), Path(out)
        if not root.is_dir():
            raise DataError(f"{root} is no folder of images")
        if out.exists() and not (out / "index.json").is_file() and any(p.name != ".lock" for p in out.iterdir()):
            raise IndexMismatch(f"{out} is not empty and holds no index: give another --out")
        out.mkdir(parents=True, exist_ok=True)
        with locked(out):
            # An index that is there must be of this model and this folder.
            if (out / "index.json").is_file():
                index = cls.open(clip, out)
                if (indexed := index.files.meta["root"]) != str(root.resolve()):
                    raise IndexMismatch(f"{out} indexes {indexed}, not {root}: give another --out")
            else:
                meta = {"format": FORMAT, "model": fingerprint(clip), "dim": clip.config.embed_dim}
                meta |= {"root": str(root.resolve()), "weights": weights, "number": 1, "bytes": 0, "lists": None}
                write_meta(out, meta)
                index = cls(clip, out, meta)
            index.last_update = index._update(**options)
        return index

    @classmethod
    def open(cls, clip: CLIP, folder: str | Path) -> Self:
        """The index in `folder`; IndexMismatch when another model made it or files are damaged."""
        folder = Path(folder)
        meta = read_meta(folder)
        if meta["model"] != fingerprint(clip):
            made_by = meta["weights"] or meta["model"]
            what = f"{folder} was made by another model ({made_by}): search it with that one, or index the folder again"
            raise IndexMismatch(what)
        return cls(clip, folder, meta)

    def __len__(self) -> int:
        return len(self.files)

    @property
    def unreadable(self) -> list[tuple[str, str]]:
        return [(path, entry["error"]) for path, entry in self.files.entries.items() if "error" in entry]

    def update(self, **options: Any) -> Update:
        """Encode files that are new or changed, forget those that are gone.

        `options` are `batch_size` (64), `workers` (0), `progress` (False) and `max_pixels` (that of
        the training). If it is killed, the next update continues where it stopped. Raises
        IndexMismatch while another process updates the index.
        """
        with locked(self.files.folder):
            self.files = IndexFiles(self.files.folder, read_meta(self.files.folder))  # others may have updated it
            return self._update(**options)

    def _update(self, **options: Any) -> Update:
        """`update`, while the lock is held."""
        files = self.files
        # A file is new or changed when its size or its time differs from what its line says. What
        # could not be read is tried again where the limit on pixels is another.
        again = options.get("max_pixels") is not None
        known, now = dict(files.entries), dict(_scan(Path(files.meta["root"]), skip=files.folder.resolve()))
        todo = [
            path
            for path, stamp in now.items()
            if path not in known or known[path]["stamp"] != stamp or (again and "error" in known[path])
        ]
        gone = [path for path in known if path not in now]
        # Lists are read before their file goes; they are brought up to date below.
        lists, before = self._lists(), files.rows
        if todo or gone or not files.lists_are_whole():
            files.lists.unlink(missing_ok=True)  # if this is killed before it is written again, search is exact
        encoded = self._encoded(todo, **options)
        files.append(gone, ([(path, now[path], *made) for path, *made in batch] for batch in encoded))

        # Rows that lost their file are thrown away together; the lists follow.
        dead = [known[path]["row"] for path in (*todo, *gone) if "row" in known.get(path, {})]
        if files.is_stale():
            files.rewrite()
            lists = None
        if not files.lists.is_file():
            self._write_lists(lists, np.arange(before, files.rows), np.array(dead, dtype=np.int64))
        added = sum(path not in known for path in todo)
        return Update(added, len(todo) - added, len(gone), self.unreadable, len(self))

    def _encoded(
        self,
        paths: Sequence[str],
        *,
        batch_size: int = 64,
        workers: int = 0,
        progress: bool = False,
        max_pixels: int | None = None,
    ) -> Iterator[list[Any]]:
        """(path, fp16 vector or None, what is wrong) of `paths`, a batch at a time."""
        files: Any = _Files(self.files.meta["root"], paths, self.clip.config, max_pixels)
        generator = torch.Generator()  # iterating draws from it, and not from the global one
        batches: Any = DataLoader(files, batch_size, num_workers=workers, collate_fn=list, generator=generator)
        if progress:
            from ssl_train.log import Progress  # brings tqdm

            batches = Progress(batches, desc="index", unit="batches", leave=False)
        device = self.clip.logit_scale.device
        precision = pick_precision("auto", device)
        for batch in batches:
            # Only the readable images are encoded, in the order of the batch.
            good = [image for _, image, _ in batch if image is not None]  # c h w each
            vectors: Iterator[np.ndarray] = iter(())
            if good:
                with torch.inference_mode(), autocast(precision, device):
                    encoded = self.clip.encode_image(torch.stack(good).to(device))  # b d
                vectors = iter(torch.nn.functional.normalize(encoded.float(), dim=1).half().cpu().numpy())
            yield [(path, None if image is None else next(vectors), error) for path, image, error in batch]

    def search(self, query: str | Tensor, top_k: int = 5, *, exact: bool = False) -> list[tuple[str, float]]:
        """[(path, cosine)] of the best images for a text, or for an image (c, h, w), best first.

        Compared with every image up to EXACT of them, and with faiss's lists beyond, unless
        `exact`. Paths start with the folder that was indexed. Raises InputError when nothing is
        indexed or top_k is not positive.
        """
        if top_k < 1:
            raise InputError(f"top_k = {top_k}: ask for at least one image")
        if not len(self):
            raise InputError(f"{self.files.folder} holds no image that can be searched")
        with torch.inference_mode():
            vector = self.clip.encode_text(query) if isinstance(query, str) else self._encode_image(query)  # 1 d
        [rows], [scores] = self.nearest(vector.float().cpu().numpy(), top_k, exact=exact)
        # Rows back to paths.
        (paths, _), root = self.files.searchable(), self.files.meta["root"]
        return [(os.path.join(root, paths[row]), float(score)) for row, score in zip(rows, scores, strict=True)]

    def nearest(self, queries: np.ndarray, top_k: int, *, exact: bool = False) -> tuple[np.ndarray, np.ndarray]:
        """(rows, cosines), both (q, up to top_k), of the best images for queries (q, d)."""
        _, rows = self.files.searchable()
        if not exact and (lists := self._lists()) is not None:
            scores, found = lists.search(np.ascontiguousarray(queries, dtype=np.float32), min(top_k, len(rows)))
            return found, scores
        return exact_search(self.files.matrix(), queries, top_k, rows)

    def _encode_image(self, image: Tensor) -> Tensor:
        view = eval_view(self.clip.config)({"image": image})["views"][0]
        return self.clip.encode_image(view[None].to(self.clip.logit_scale.device))

    def _write_lists(self, lists: Any, added: np.ndarray, dead: np.ndarray) -> None:
        """Write faiss's lists for more than EXACT images. Without faiss search stays exact."""
        self._opened = None
        if len(self) > EXACT and has_faiss():
            import faiss

            _, rows = self.files.searchable()
            lists = updated_lists(lists, self.files.matrix(), rows, added, dead)
            write_whole(self.files.lists, lambda path: faiss.write_index(lists, str(path)))
        self.files.note_finished()

    def _lists(self) -> Any:
        """faiss's lists, where they were written and faiss is installed; they are read once.

        Lists that are damaged are passed over with a warning: exact search finds the same, slower.
        """
        file = self.files.lists
        if not file.is_file() or not has_faiss():
            return None
        if self._opened is None or self._opened[0] != file:
            if not self.files.lists_are_whole():
                warnings.warn(f"{file} is damaged: search is exact until the folder is indexed again", stacklevel=3)
                return None
            import faiss

            self._opened = file, faiss.read_index(str(file))
        return self._opened[1]


def fingerprint(clip: CLIP) -> str:
    """Sixteen hex digits of what decides an embedding: weights, tokenizer, the network's config."""
    total = hashlib.sha256()
    for name, tensor in sorted(clip.state_dict().items()):
        total.update(name.encode())
        total.update(tensor.detach().float().cpu().contiguous().numpy().tobytes())
    # How it was trained does not matter, how it reads an image does: heads, epsilon, crop.
    trained = {*(field.name for field in dataclasses.fields(TrainConfig)), *RECIPE_FIELDS}
    network = {name: value for name, value in to_dict(clip.config).items() if name not in trained}
    total.update(json.dumps(network, sort_keys=True).encode())
    total.update((clip.tokenizer.fingerprint() if clip.tokenizer is not None else "").encode())
    return total.hexdigest()[:16]


def _scan(root: Path, skip: Path) -> Iterator[tuple[str, list[int]]]:
    """(path below root, [bytes, time in ns]) of every image, hidden folders left out."""
    for name in walk(root, EXTENSIONS, skip):
        try:
            status = os.stat(root / name)
        except OSError:  # a broken link, or gone since: as if it were not there
            continue
        yield name, [status.st_size, status.st_mtime_ns]


class _Files(Dataset[tuple[str, Tensor | None, str]]):
    """(path, view of the image or None, what is wrong with it) of each file."""

    def __init__(self, root: str, paths: Sequence[str], config: Any, max_pixels: int | None) -> None:
        from ssl_train.data.images import ImageFiles  # brings Pillow

        self.source, self.view = ImageFiles(Path(root), paths, config.in_channels), eval_view(config)
        self.source.max_pixels = max_pixels or config.max_pixels

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, index: int) -> tuple[str, Tensor | None, str]:
        path = self.source.name(index)
        try:
            sample = self.source.load(index)
        except BadSample as error:
            return path, None, str(error)
        return path, self.view(sample)["views"][0], ""


def run(recipe: Any, arguments: Index) -> dict[str, Any]:
    """The command `index`."""
    from ssl_train.log import next_steps, typed

    clip = CLIP.from_pretrained(arguments.weights, device=pick_device(arguments.device))
    # An absolute path, so that `search` finds the model from any folder. A Hub id stays as it is.
    weights = str(Path(arguments.weights).resolve()) if Path(arguments.weights).exists() else arguments.weights
    options = {name: getattr(arguments, name) for name in ("batch_size", "workers", "max_pixels")}
    index = ImageIndex.build(clip, arguments.folder, arguments.out, weights=weights, progress=True, **options)
    print(index.last_update)
    for path, reason in index.unreadable[:10]:
        print(f"  {printable(path)}: {reason}")
    following = next_steps(typed("ssl-clip", "search", arguments.out, "a dog"))
    counts = dataclasses.asdict(index.last_update) if index.last_update else {}
    return {"index": arguments.out, **counts, "next": following}
