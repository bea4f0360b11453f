"""Start a method package: `python tools/new_package.py ssl-x`.

Copies `tools/template`, a small method that trains, to `packages/ssl-x` under the new name. Adds
the package to tox.ini and to the import contracts of pyproject.toml.
"""

from __future__ import annotations

import argparse
import configparser
import re
import shutil
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
TEMPLATE = ROOT / "tools" / "template"


def check_name(name: str) -> None:
    """Raises ValueError unless a package of this name can be made."""
    if not re.fullmatch(r"ssl-[a-z][a-z0-9]*", name):
        raise ValueError(f"{name!r} is no package name: write ssl- and one word of small letters and digits")
    if (ROOT / "packages" / name).exists():
        raise ValueError(f"packages/{name} exists already")
    tox = configparser.ConfigParser(interpolation=None)
    tox.read(ROOT / "tox.ini")
    word = name.removeprefix("ssl-")
    if f"testenv:{word}" in tox or word == "template":
        raise ValueError(f"{word!r} is taken: `tox -e {word}` means something else")


def copy_template(name: str) -> Path:
    """Copy the template under a new name; returns the new folder."""
    module = name.replace("-", "_")
    folder = ROOT / "packages" / name
    shutil.copytree(TEMPLATE, folder, ignore=shutil.ignore_patterns("__pycache__"))
    (folder / "src" / "ssl_template").rename(folder / "src" / module)
    for path in folder.rglob("*"):
        if path.is_file():
            text = path.read_text("utf-8")
            path.write_text(text.replace("ssl-template", name).replace("ssl_template", module), "utf-8")
    return folder


def replace_once(file: str, pattern: str, replacement: str) -> None:
    """Edit a file of the root in one place. Raises ValueError unless exactly one place matches."""
    path = ROOT / file
    text, count = re.subn(pattern, replacement, path.read_text("utf-8"), flags=re.MULTILINE)
    if count != 1:
        raise ValueError(f"{file} has {count} places that match {pattern!r}, expected one")
    path.write_text(text, "utf-8")


def register(name: str) -> None:
    """Add a package to tox.ini and to the import contracts."""
    word, module = name.removeprefix("ssl-"), name.replace("-", "_")
    replace_once("tox.ini", r"^(env_list = .*), cross,", rf"\1, {word}, cross,")
    replace_once("tox.ini", r"^(all =\n(?:    .*\n)+)", rf"\1    -e ./packages/{name}\n")
    replace_once("pyproject.toml", r"^(root_packages = \[.*)\]$", rf'\1, "{module}"]')
    replace_once("pyproject.toml", r'^(layers = \["[^"]*)"', rf'\1 | {module}"')
    replace_once("pyproject.toml", r'^(    "\*\.config", .*\n(?:    .*\n)+)', rf'\1    "{module}.rotation",\n')
    replace_once("pyproject.toml", r'^(source_modules = \["ssl_core", "ssl_train", "ssl_.*)\]$', rf'\1, "{module}"]')


def main() -> None:
    """Command line of the scaffold."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("name", help="ssl- and one word, such as ssl-dino")
    name = parser.parse_args().name
    try:
        check_name(name)
    except ValueError as error:
        sys.exit(str(error))
    folder = copy_template(name)
    register(name)
    word = name.removeprefix("ssl-")
    print(f"{folder.relative_to(ROOT)} is there; try: tox -e format,{word},cross,imports")


if __name__ == "__main__":
    main()
