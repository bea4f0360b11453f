"""A folder of images that can be searched: the embeddings of its files, kept up to date.

    my.index/index.json        which model, which folder, and the names of the two files below
    my.index/vectors-3.f16     one row of the embedding's width for each image, appended
    my.index/files-3.jsonl     a line for each file seen, appended after its row: path, size, time, row or what is wrong

A killed update leaves at most a torn last line and rows without one, which the next update cuts off. Rows of files that
changed or are gone are left behind until they are a quarter of all; then both files are written anew under the next
number, and index.json is replaced.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from ssl_core.config import TrainConfig, to_dict
from ssl_core.device import autocast, pick_device, pick_precision
from ssl_core.errors import BadSample, DataError, InputError
from ssl_core.hub.weights_file import write_whole
from ssl_train.data.views import eval_view

if TYPE_CHECKING:
    from ssl_clip.clip import CLIP
    from ssl_clip.verbs import Index

FORMAT = 1
EXACT = 200_000
"""Images up to which a query is compared with every one of them."""
CHUNK = 8192
"""Rows of an exact search that are held in fp32 at a time."""
STALE = 0.25
"""Share of rows left behind at which the files are written anew."""
RECIPE_FIELDS = ("loss", "tokenizer", "truncate", "crop_scale", "init_image", "lock_image")
"""Fields of a `CLIPConfig` that say how it is trained, beside those of `TrainConfig`."""


class IndexMismatch(InputError, ValueError):
    """An index and a model, or an index and its own files, that do not belong together."""


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

    def __init__(self, clip: CLIP, folder: Path, meta: dict[str, Any]) -> None:
        self.clip, self.folder, self.meta = clip, folder, meta
        self.files: dict[str, dict[str, Any]] = {}
        self.rows = 0
        self._found: tuple[dict[int, str], np.ndarray] | None = None
        self._opened: tuple[Path, Any] | None = None
        self._load()

    @classmethod
    def build(
        cls,
        clip: CLIP,
        images: str | Path,
        out: str | Path,
        *,
        weights: str | None = None,
        batch_size: int = 64,
        workers: int = 0,
        progress: bool = False,
    ) -> ImageIndex:
        """Index every image below `images` into the folder `out`, or bring the index there up to date.

        `weights` is noted for `ssl-clip search`. What happened is in `last_update`. Raises DataError when `images` is no
        folder, and IndexMismatch when `out` holds an index of another model or of another folder, or something else.
        """  # fmt: skip
        root, out = Path(images), Path(out)
        if not root.is_dir():
            raise DataError(f"{root} is no folder of images")
        if (out / "index.json").is_file():
            index = cls.open(clip, out)
            if index.meta["root"] != str(root.resolve()):
                raise IndexMismatch(f"{out} indexes {index.meta['root']}, not {root}: give another --out")
        else:
            if out.exists() and any(out.iterdir()):
                raise IndexMismatch(f"{out} is not empty and holds no index: give another --out")
            out.mkdir(parents=True, exist_ok=True)
            meta = {
                "format": FORMAT, "model": fingerprint(clip), "dim": clip.config.embed_dim, "root": str(root.resolve()),
                "weights": weights, "number": 1,
            }  # fmt: skip
            _write_meta(out, meta)
            index = cls(clip, out, meta)
        index.last_update = index.update(batch_size=batch_size, workers=workers, progress=progress)
        return index

    @classmethod
    def open(cls, clip: CLIP, folder: str | Path) -> Self:
        """The index in `folder`. Raises IndexMismatch for one that another model made, and for damaged files."""
        folder = Path(folder)
        meta = read_meta(folder)
        if meta["model"] != fingerprint(clip):
            raise IndexMismatch(
                f"{folder} was made by another model ({meta['weights'] or meta['model']}): search it with that one, or "
                "index the folder again"
            )
        return cls(clip, folder, meta)

    last_update: Update | None = None

    def __len__(self) -> int:
        return sum("row" in entry for entry in self.files.values())

    @property
    def unreadable(self) -> list[tuple[str, str]]:
        return [(path, entry["error"]) for path, entry in self.files.items() if "error" in entry]

    def update(self, *, batch_size: int = 64, workers: int = 0, progress: bool = False) -> Update:
        """Encode files that are new or changed, forget those that are gone. Killed, it goes on where it stopped."""
        known, now = dict(self.files), dict(_scan(Path(self.meta["root"]), skip=self.folder.resolve()))
        todo = [path for path, stamp in now.items() if path not in known or known[path]["stamp"] != list(stamp)]
        gone = [path for path in known if path not in now]
        lists, before = self._lists(), self.rows
        if todo or gone:
            self._ivf.unlink(missing_ok=True)  # killed before it is written again, search is exact
        self._cut_torn()
        with self._files.open("a", encoding="utf-8") as lines, self._vectors.open("ab") as vectors:
            for path in gone:
                self._note(lines, {"path": path, "gone": True})
            for batch in self._encoded(todo, batch_size, workers, progress):
                for path, vector, error in batch:
                    entry: dict[str, Any] = {"path": path, "stamp": list(now[path])}
                    if vector is None:
                        self._note(lines, {**entry, "error": error})
                        continue
                    vectors.write(vector.tobytes())
                    self._note(lines, {**entry, "row": self.rows})
                    self.rows += 1
                vectors.flush()  # rows before the lines that name them
                lines.flush()
            for stream in (vectors, lines):
                os.fsync(stream.fileno())
        dead = [known[path]["row"] for path in (*todo, *gone) if "row" in known.get(path, {})]
        if self.rows and 1 - len(self) / self.rows > STALE:
            self._rewrite()
            lists = None
        if not self._ivf.is_file():
            self._write_lists(lists, np.arange(before, self.rows), np.array(dead, dtype=np.int64))
        added = sum(path not in known for path in todo)
        return Update(added, len(todo) - added, len(gone), self.unreadable, len(self))

    def search(self, query: str | Tensor, top_k: int = 5, *, exact: bool = False) -> list[tuple[str, float]]:
        """[(path, cosine)] of the best images for a text, or for an image (c, h, w), best first.

        Compared with every image up to EXACT of them, and with faiss's lists beyond, unless `exact`. Paths start with
        the folder that was indexed. Raises InputError when nothing is indexed or top_k is not positive.
        """
        if top_k < 1:
            raise InputError(f"top_k = {top_k}: ask for at least one image")
        if not len(self):
            raise InputError(f"{self.folder} holds no image that can be searched")
        with torch.inference_mode():
            vector = self.clip.encode_text(query) if isinstance(query, str) else self._encode_image(query)
        rows, scores = self.nearest(vector.float().cpu().numpy(), top_k, exact=exact)
        names, _ = self._searchable()
        return [
            (os.path.join(self.meta["root"], names[row]), float(score))
            for row, score in zip(rows[0], scores[0], strict=True)
        ]

    def nearest(self, queries: np.ndarray, top_k: int, *, exact: bool = False) -> tuple[np.ndarray, np.ndarray]:
        """(rows, cosines), both (q, up to top_k), of the best images for queries (q, d) of length 1."""
        _, live = self._searchable()
        if not exact and (lists := self._lists()) is not None:
            scores, rows = lists.search(np.ascontiguousarray(queries, dtype=np.float32), min(top_k, len(live)))
            return rows, scores
        return exact_search(self._matrix(), queries, top_k, live)

    def _encode_image(self, image: Tensor) -> Tensor:
        view = eval_view(self.clip.config)({"image": image})["views"][0]
        return self.clip.encode_image(view[None].to(self.clip.logit_scale.device))

    def _encoded(
        self, paths: Sequence[str], batch_size: int, workers: int, progress: bool
    ) -> Iterator[list[tuple[str, np.ndarray | None, str]]]:
        """(path, fp16 vector or None, what is wrong) of `paths`, a batch at a time, in the machine's fast precision."""
        files = _Files(self.meta["root"], paths, self.clip.config)
        loader: Any = DataLoader(
            files, batch_size=batch_size, num_workers=workers, collate_fn=list, generator=torch.Generator(),  # type: ignore[arg-type]
        )  # fmt: skip
        if progress:
            from tqdm import tqdm

            loader = tqdm(loader, desc="index", unit="batch", leave=False)
        device = self.clip.logit_scale.device
        precision = pick_precision("auto", device)
        items: list[tuple[int, Tensor | str]]
        for items in loader:
            good = [image for _, image in items if isinstance(image, Tensor)]
            vectors: Iterator[np.ndarray] = iter(())
            if good:
                with torch.inference_mode(), autocast(precision, device):
                    encoded = self.clip.encode_image(torch.stack(good).to(device))
                vectors = iter(torch.nn.functional.normalize(encoded.float(), dim=1).half().cpu().numpy())
            yield [
                (paths[i], next(vectors), "") if isinstance(image, Tensor) else (paths[i], None, image)
                for i, image in items
            ]

    # ---- files

    @property
    def _vectors(self) -> Path:
        return self.folder / f"vectors-{self.meta['number']}.f16"

    @property
    def _files(self) -> Path:
        return self.folder / f"files-{self.meta['number']}.jsonl"

    @property
    def _ivf(self) -> Path:
        return self.folder / f"lists-{self.meta['number']}.faiss"

    def _searchable(self) -> tuple[dict[int, str], np.ndarray]:
        """Row -> path of every image that can be searched, and the rows in order."""
        if self._found is None:
            names = {entry["row"]: path for path, entry in self.files.items() if "row" in entry}
            self._found = names, np.array(sorted(names), dtype=np.int64)
        return self._found

    def _note(self, lines: Any, entry: dict[str, Any]) -> None:
        lines.write(json.dumps(entry) + "\n")
        self._take(entry)

    def _take(self, entry: dict[str, Any]) -> None:
        self._found = None
        if entry.get("gone"):
            self.files.pop(entry["path"], None)
        else:
            self.files[entry["path"]] = {key: value for key, value in entry.items() if key != "path"}

    def _load(self) -> None:
        """The files' lines; a torn last one is left out, rows without a line do not count."""
        self.files, self.rows, self._found = {}, 0, None
        lines = self._files.read_text(encoding="utf-8").split("\n") if self._files.is_file() else []
        for number, line in enumerate(lines):
            if number == len(lines) - 1:  # empty, or torn by a kill
                break
            try:
                entry = json.loads(line)
                self._take(entry)
                self.rows = max(self.rows, entry.get("row", -1) + 1)
            except (ValueError, KeyError, TypeError, AttributeError) as error:
                raise IndexMismatch(f"{self._files}, line {number + 1} is damaged: delete {self.folder}") from error
        size = self._vectors.stat().st_size if self._vectors.is_file() else 0
        if size < self.rows * self._width:
            raise IndexMismatch(f"{self._vectors} is cut off: delete {self.folder} and index again")

    @property
    def _width(self) -> int:
        return 2 * self.meta["dim"]

    def _cut_torn(self) -> None:
        for path, keep in ((self._files, None), (self._vectors, self.rows * self._width)):
            if path.is_file():
                if keep is None:
                    content = path.read_bytes()
                    keep = content.rfind(b"\n") + 1
                os.truncate(path, keep)

    def _matrix(self) -> np.ndarray:
        """(rows, d) fp16, mapped from the disk."""
        return np.memmap(self._vectors, dtype=np.float16, mode="r", shape=(self.rows, self.meta["dim"]))

    def _rewrite(self) -> None:
        """Both files without what was left behind, under the next number; index.json last."""
        old = (self._vectors, self._files, self._ivf)
        (_, kept), matrix = self._searchable(), self._matrix()
        meta = {**self.meta, "number": self.meta["number"] + 1}
        position = {row: i for i, row in enumerate(kept.tolist())}
        files = {
            path: {**entry, "row": position[entry["row"]]} if "row" in entry else entry
            for path, entry in self.files.items()
        }
        copied = matrix[kept]
        self.meta = meta
        copied.tofile(self._vectors)
        lines = "".join(json.dumps({"path": path, **entry}) + "\n" for path, entry in files.items())
        self._files.write_text(lines, encoding="utf-8")
        _write_meta(self.folder, meta)
        self._load()
        for path in old:
            path.unlink(missing_ok=True)

    # ---- beyond exact search

    def _write_lists(self, lists: Any, added: np.ndarray, dead: np.ndarray) -> None:
        """faiss's lists over all rows, where there are more than EXACT: `lists` with what changed, or new ones after a
        quarter changed. Without faiss search stays exact."""
        self._opened = None
        if len(self) <= EXACT:
            return
        if find_spec("faiss") is None:
            return
        import faiss

        _, live = self._searchable()
        if lists is None or lists.ntotal + len(added) - len(dead) != len(live) or len(added) > STALE * len(live):
            lists = build_lists(self._matrix(), live)
        else:
            lists.remove_ids(dead)
            _add(lists, self._matrix(), added)
        write_whole(self._ivf, lambda path: faiss.write_index(lists, str(path)))

    def _lists(self) -> Any:
        """faiss's lists, where they were written and faiss is there; they are read once."""
        if not self._ivf.is_file() or find_spec("faiss") is None:
            return None
        if self._opened is None or self._opened[0] != self._ivf:
            import faiss

            self._opened = self._ivf, faiss.read_index(str(self._ivf))
        return self._opened[1]


def build_lists(matrix: np.ndarray, rows: np.ndarray, probes: int = 32) -> Any:
    """faiss's inverted lists, vectors in fp16, over `rows` of `matrix` (n, d); 4 √n lists, of which a query reads
    `probes`."""
    import faiss

    count, d = len(rows), matrix.shape[1]
    lists = max(1, int(4 * count**0.5))
    index = faiss.IndexIVFScalarQuantizer(
        faiss.IndexFlatIP(d), d, lists, faiss.ScalarQuantizer.QT_fp16, faiss.METRIC_INNER_PRODUCT
    )
    sample = np.random.default_rng(0).permutation(count)[: 40 * lists]
    index.cp.niter = 8
    index.train(matrix[rows[np.sort(sample)]].astype(np.float32))  # type: ignore[call-arg]
    _add(index, matrix, rows)
    index.nprobe = min(probes, lists)
    return index


def _add(lists: Any, matrix: np.ndarray, rows: np.ndarray) -> None:
    for start in range(0, len(rows), CHUNK):
        part = rows[start : start + CHUNK]
        lists.add_with_ids(matrix[part].astype(np.float32), part)


def exact_search(
    matrix: np.ndarray, queries: np.ndarray, top_k: int, rows: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """(rows, scores) of the `top_k` largest products of queries (q, d) with `rows` of `matrix` (n, d), best first; a
    chunk at a time, of which only the best are kept."""
    asked = torch.from_numpy(np.ascontiguousarray(queries, dtype=np.float32))
    best = torch.empty(len(asked), 0)
    found = torch.empty(len(asked), 0, dtype=torch.int64)
    for start in range(0, len(rows), CHUNK):
        part = rows[start : start + CHUNK]
        scores = asked @ torch.from_numpy(matrix[part].astype(np.float32)).T
        best = torch.cat([best, scores], 1)
        found = torch.cat([found, torch.from_numpy(part).expand(len(asked), -1)], 1)
        best, order = best.topk(min(top_k, best.shape[1]), 1)
        found = found.gather(1, order)
    return found.numpy(), best.numpy()


def fingerprint(clip: CLIP) -> str:
    """Sixteen hex digits of what decides an embedding: weights, every field of the config that is not of the training
    recipe, tokenizer."""
    total = hashlib.sha256()
    for name, tensor in sorted(clip.state_dict().items()):
        total.update(name.encode())
        total.update(tensor.detach().float().cpu().contiguous().numpy().tobytes())
    trained = {*(field.name for field in dataclasses.fields(TrainConfig)), *RECIPE_FIELDS}
    network = {name: value for name, value in to_dict(clip.config).items() if name not in trained}
    total.update(json.dumps(network, sort_keys=True).encode())
    total.update((clip.tokenizer.fingerprint() if clip.tokenizer is not None else "").encode())
    return total.hexdigest()[:16]


def read_meta(folder: Path) -> dict[str, Any]:
    """index.json of an index. Raises IndexMismatch when it is not there or says something else."""
    try:
        meta = json.loads((folder / "index.json").read_text(encoding="utf-8"))
        if meta["format"] != FORMAT or not {"model", "dim", "root", "weights", "number"} <= meta.keys():
            raise ValueError(f"format {meta['format']}")
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise IndexMismatch(f"{folder} is no index: make one with `ssl-clip index FOLDER --out {folder}`") from error
    return meta


def _write_meta(folder: Path, meta: dict[str, Any]) -> None:
    write_whole(folder / "index.json", lambda path: path.write_text(json.dumps(meta, indent=1), encoding="utf-8"))


def _scan(root: Path, skip: Path) -> Iterator[tuple[str, tuple[int, int]]]:
    """(path below root, (bytes, time in ns)) of every image, hidden folders left out."""
    from ssl_train.data.listing import EXTENSIONS

    for folder, names, files in os.walk(root):
        names[:] = sorted(name for name in names if not name.startswith(".") and Path(folder, name).resolve() != skip)
        for name in sorted(files):
            if name.lower().endswith(EXTENSIONS) and not name.startswith("."):
                path = os.path.join(folder, name)
                try:
                    status = os.stat(path)
                except OSError:  # a broken link, or gone since: as if it were not there
                    continue
                yield os.path.relpath(path, root), (status.st_size, status.st_mtime_ns)


class _Files(torch.utils.data.Dataset):
    """(number, view of the image or what is wrong with it) of each file."""

    def __init__(self, root: str, paths: Sequence[str], config: Any) -> None:
        self.root, self.paths, self.channels, self.view = root, paths, config.in_channels, eval_view(config)

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> tuple[int, Tensor | str]:
        from ssl_train.data.images import read_image

        try:
            image = read_image(os.path.join(self.root, self.paths[index]), self.channels)
            return index, self.view({"image": image})["views"][0]
        except BadSample as error:
            return index, str(error)


def run(recipe: Any, args: Index) -> None:
    """The command `index`."""
    from ssl_clip.clip import CLIP

    clip = CLIP.from_pretrained(args.weights, device=pick_device(args.device))
    weights = str(Path(args.weights).resolve()) if Path(args.weights).exists() else args.weights
    index = ImageIndex.build(
        clip, args.folder, args.out, weights=weights, batch_size=args.batch_size, workers=args.workers, progress=True
    )
    print(index.last_update)
    for path, reason in index.unreadable[:10]:
        print(f"  {path}: {reason}")
    print(f'next     ssl-clip search {args.out} "what you look for"')
