"""Made pictures that look a little like chest X-rays, with findings, patients and their signature.

They are drawings, not X-rays: nothing that is measured on them says anything about patients. They
are for trying out what medical data ask for: 16-bit grey files, findings
that occur together, a table with a column for each, and several pictures of each patient that look
alike, by body and by exposure. So a split by picture flatters, and one by patient does not.
"""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
from PIL import Image

FINDINGS = ("nodule", "effusion", "cardiomegaly")
TOP = 65535
"""The brightest value, of 16 bits."""


def xray(patient: int, picture: int, *, size: int = 64, seed: int = 0) -> tuple[np.ndarray, list[int]]:
    """(uint16 (size, size) of 0..65535, a 1 or 0 for each of FINDINGS). A patient has the same body
    and the same findings in all pictures; position and noise differ."""
    body = np.random.default_rng((seed, patient, 0))
    shot = np.random.default_rng((seed, patient, 1 + picture))
    width, height, tilt, exposure, rib, phase = body.uniform(
        [0.13, 0.25, -0.15, 0.75, 0.06, 0.0], [0.19, 0.33, 0.15, 1.15, 0.1, 6.3]
    )
    found = (body.random(3) < (0.3, 0.25, 0.3)).astype(int).tolist()
    side, where = body.choice([-1, 1]), body.uniform([-0.08, -0.18], [0.08, 0.12])
    y, x = np.mgrid[0:size, 0:size] / size - 0.5 + shot.uniform(-0.03, 0.03, (2, 1, 1))
    x = x + tilt * y

    # soft tissue is bright, lungs are dark, ribs are stripes over both, spine and heart are bright
    image = 0.75 * np.exp(-((x / 0.55) ** 4) - (y / 0.7) ** 6)
    for lung in (-1, 1):
        image -= 0.45 * _blob(x - 0.2 * lung, y, width, height, 4)
    image += 0.06 * np.sin(y / rib * 6.3 + phase + 3 * np.abs(x)) * (np.abs(x) < 0.42)
    image += 0.25 * _blob(x, y, 0.05, 0.6, 2)
    image += 0.3 * _blob(x - 0.06, y - 0.16, 0.12 + 0.09 * found[2], 0.12 + 0.03 * found[2], 2)
    if found[1]:  # fluid below a lung, its surface level
        image += 0.4 * _blob(x - 0.2 * side, y - height, width, 0.16, 4)
    if found[0]:
        image += 0.3 * _blob(x - 0.2 * side - where[0], y - where[1], 0.035, 0.035, 2)
    image = exposure * image + shot.normal(0, 0.02, image.shape)
    return np.rint(np.clip(image, 0, 1) * TOP).astype(np.uint16), found


def write_xrays(folder: str | Path, patients: int = 100, pictures: int = 4, *, size: int = 64, seed: int = 0) -> Path:
    """Write `pictures` of each of `patients` as PNG of 16 bits and `findings.csv`, with the columns
    path, patient and FINDINGS; returns the path of that table."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "findings.csv").open("w", encoding="utf-8", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["path", "patient", *FINDINGS])
        for patient in range(patients):
            for picture in range(pictures):
                image, found = xray(patient, picture, size=size, seed=seed)
                name = f"p{patient:04d}-{picture}.png"
                Image.fromarray(image).save(folder / name)
                rows.writerow([name, f"p{patient:04d}", *found])
    return folder / "findings.csv"


def _blob(x: np.ndarray, y: np.ndarray, width: float, height: float, sharpness: int) -> np.ndarray:
    """1 within an ellipse of these half axes, falling to 0 outside it."""
    return np.exp(-(((x / width) ** 2 + (y / height) ** 2) ** (sharpness / 2)))
