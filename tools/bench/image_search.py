"""Image search by text.

Measures images indexed per second (ViT-B/32, JPEG files) beside a loop with transformers, and
milliseconds and recall of a query among many clustered vectors.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import measure
import numpy as np
import torch
from measure import Case, Work
from PIL import Image

from ssl_clip.clip import CLIP
from ssl_clip.config import vit_b32
from ssl_clip.index import ImageIndex
from ssl_clip.nearest import build_lists, exact_search


def main() -> None:
    flags = measure.parser(__doc__)
    flags.add_argument("--images", type=int, default=32, help="files that are indexed in a round")
    flags.add_argument("--vectors", type=int, default=1_000_000)
    flags.add_argument("--width", type=int, default=128)
    args = flags.parse_args()
    chosen = measure.settings(args)
    cases = [
        Case("ours", ours, (args.images,)),
        Case("transformers, one image a call", transformers_loop, (args.images,), ("transformers",)),
    ]
    results = measure.race(cases, chosen)
    measure.report(f"Index {args.images} JPEG files of 500 x 375", results, chosen)
    if find_spec("faiss") is None:
        raise SystemExit("the search over many vectors needs faiss-cpu")
    print(queries(args.vectors, args.width))


def ours(images: int) -> Work:
    kept = _files(images)
    torch.manual_seed(0)
    clip, number = CLIP(vit_b32()).eval(), iter(range(10**6))

    def run() -> Iterator[str]:
        ImageIndex.build(clip, Path(kept.name) / "photos", Path(kept.name) / f"{next(number)}.index", batch_size=16)
        yield "index"

    return Work(run)


def transformers_loop(images: int) -> Work:
    import transformers

    kept = _files(images)
    torch.manual_seed(0)
    CLIP(vit_b32()).save_pretrained(Path(kept.name) / "model")
    model = transformers.CLIPModel.from_pretrained(Path(kept.name) / "model").eval()
    processor = transformers.CLIPImageProcessor()

    @torch.inference_mode()
    def run() -> Iterator[str]:
        found = []
        for path in sorted((Path(kept.name) / "photos").iterdir()):
            inputs = processor(images=Image.open(path).convert("RGB"), return_tensors="pt")
            feature = model.get_image_features(**inputs).pooler_output
            found.append(feature / feature.norm(dim=-1, keepdim=True))
        torch.cat(found)
        yield "index"

    return Work(run)


def queries(count: int, width: int) -> str:
    """Exact search and faiss's lists, for a thousand queries near clustered vectors of length 1."""
    rng = np.random.default_rng(0)
    centres = rng.normal(size=(max(1, count // 100), width)).astype(np.float32)
    parts = []
    for start in range(0, count, 65_536):
        n = min(65_536, count - start)
        part = centres[rng.integers(len(centres), size=n)] + 0.7 * rng.standard_normal((n, width), dtype=np.float32)
        parts.append((part / np.linalg.norm(part, axis=1, keepdims=True)).astype(np.float16))
    matrix, rows = np.concatenate(parts), np.arange(count)
    asked = matrix[rng.integers(count, size=100)].astype(np.float32) + 0.02 * rng.standard_normal(
        (100, width), dtype=np.float32
    )
    start = time.perf_counter()
    lists = build_lists(matrix, rows)
    lines = [f"{count:,} vectors of width {width}: lists built in {time.perf_counter() - start:.0f} s", ""]
    exact = _timed(lambda q: exact_search(matrix, q, 10, rows)[0], asked[:10])
    truth = exact_search(matrix, asked, 10, rows)[0]
    lines += ["| search | ms a query | recall@10 |", "| --- | --- | --- |", f"| exact | {exact:.1f} | 1 |"]
    for probes in (8, 32, 128):
        lists.nprobe = probes
        found = lists.search(asked, 10)[1]
        recall = np.mean([len(set(a) & set(b)) / 10 for a, b in zip(found, truth, strict=True)])
        lines.append(f"| lists, {probes} probes | {_timed(lambda q: lists.search(q, 10), asked):.2f} | {recall:.3f} |")
    return "\n".join(lines)


def _timed(search, asked: np.ndarray) -> float:
    """Median milliseconds of one query."""
    times = []
    for query in asked:
        start = time.perf_counter()
        search(query[None])
        times.append(1000 * (time.perf_counter() - start))
    return statistics.median(times)


def _files(images: int) -> tempfile.TemporaryDirectory[str]:
    """A temporary folder with JPEG files in `photos`; it is removed with the returned object."""
    kept = tempfile.TemporaryDirectory()
    folder = Path(kept.name)
    (folder / "photos").mkdir()
    rng = np.random.default_rng(0)
    for i in range(images):
        coarse = rng.integers(0, 256, (12, 16, 3), dtype=np.uint8)
        picture = Image.fromarray(coarse).resize((500, 375), Image.Resampling.BICUBIC)
        noisy = np.clip(np.asarray(picture) + rng.normal(0, 12, (375, 500, 3)), 0, 255).astype(np.uint8)
        Image.fromarray(noisy).save(folder / "photos" / f"{i:04d}.jpg", quality=90)
    return kept


if __name__ == "__main__":
    main()
