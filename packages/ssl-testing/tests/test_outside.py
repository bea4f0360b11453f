"""Anyone's method: a package outside this repository inherits the suite and passes it."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

PACKAGE = Path(__file__).parent / "outside"
SUITE = """
from denoising.config import RECIPES, DenoisingConfig
from ssl_testing.conformance import Conformance


class TestDenoising(Conformance):
    recipe = RECIPES["denoising"]
    config = DenoisingConfig(image_size=8, width=8)
    noiseless = {"noise": 0.0}
    folders = ()
"""


def test_a_package_outside_the_repository_passes_the_suite(tmp_path):
    shutil.copytree(PACKAGE, tmp_path, dirs_exist_ok=True, ignore=shutil.ignore_patterns("__pycache__"))
    (tmp_path / "test_conformance.py").write_text(SUITE)
    # our packages are found where this process has them; the working directory holds nothing of
    # ours
    env = {**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), *filter(None, sys.path)])}
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-W", "error"]
    done = subprocess.run(command, cwd=tmp_path, env=env, text=True, capture_output=True, timeout=250)
    assert done.returncode == 0, done.stdout + done.stderr
    assert " passed" in done.stdout
