"""Rehearse the release of every distribution, up to the upload.

    tox -e rehearsal                  all of them
    tox -e rehearsal -- ssl-mae       one of them, after its core and its engine

In a clone, `tools/release.py` releases each distribution (a stand-in answers its call of tox), and
`tools/package.py` builds it from its tag. The files lie on an index at 127.0.0.1. From there each
package is installed into an empty environment and does its main job. Third parties come from the
usual index.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from projects import ROOT, projects
from wheels import CONSTRAINTS, METHOD, SHORT, run

ORDER = sorted(projects(), key=lambda name: ["core", "engine", "suite", "method"].index(projects()[name].kind))
"""Each distribution after those that it depends on."""
TOX = "#!/bin/sh\necho 'a rehearsal runs no suite: tox' \"$@\"\n"


class Index(ThreadingHTTPServer):
    """A package index at 127.0.0.1 (PEP 503). It shows the folder `simple` below `root`."""

    def __init__(self, root: Path) -> None:
        super().__init__(("127.0.0.1", 0), partial(Quiet, directory=root))
        self.simple = root / "simple"
        self.url = f"http://127.0.0.1:{self.server_port}/simple"
        threading.Thread(target=self.serve_forever, daemon=True).start()

    def take(self, name: str, files: Path) -> None:
        """Put the sdist and the wheel of a distribution on the index."""
        shutil.copytree(files, self.simple / name)
        links = "".join(f'<a href="{path.name}">{path.name}</a><br>' for path in sorted(files.iterdir()))
        (self.simple / name / "index.html").write_text(f"<!DOCTYPE html><title>{name}</title>{links}", "utf-8")


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, format: str, *args: object) -> None:
        """Requests are not listed."""


def release(name: str, clone: Path, env: dict[str, str]) -> Path:
    """Release and build one distribution of the clone; returns the folder of its two files."""
    version, out = projects(clone)[name].table["project"]["version"], clone.with_name("dist") / name
    for line in (("release.py", name, version), ("package.py", f"{name}-v{version}", "--out", out)):
        print("$", *line, flush=True)
        subprocess.run((sys.executable, f"tools/{line[0]}", *line[1:]), cwd=clone, env=env, check=True)
    return out / "packages"


def use(name: str, index: Index, folder: Path) -> None:
    """Install a package from the index into an empty environment in a new `folder`, and use it."""
    folder.mkdir()
    venv, module = folder / "venv", name.replace("-", "_")
    run("uv", "venv", "--quiet", "--python", sys.executable, venv, cwd=folder)
    python = venv / "bin" / "python"
    # uv asks no other index for a name that it found here
    command = ("uv", "pip", "install", "--quiet", "--refresh", "--python", python)
    run(*command, "-c", CONSTRAINTS, "--index", index.url, name, cwd=folder)
    run(python, "-c", f"import {module}; print({module}.__version__, {module}.__file__)", cwd=folder)
    for script in projects()[name].table["project"].get("scripts", {}):
        run(venv / "bin" / script, "train", *METHOD.get(name, ()), *SHORT, "--out", folder / "run", cwd=folder)
        run(venv / "bin" / script, "info", folder / "run", cwd=folder)
    shutil.rmtree(folder)


def main() -> None:
    """Command line of the rehearsal."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", help="distributions, such as ssl-mae; all by default")
    names = parser.parse_args().names
    if unknown := set(names) - set(projects()):
        parser.error(f"there is no {', '.join(sorted(unknown))}, only {', '.join(projects())}")
    with tempfile.TemporaryDirectory(prefix="rehearsal-") as temporary:
        folder = Path(temporary)
        clone, stand_in = folder / "clone", folder / "bin" / "tox"
        subprocess.run(("git", "clone", "--quiet", ROOT, clone), check=True)
        subprocess.run(("git", "remote", "set-url", "origin", "https://example.com/us/ssl"), cwd=clone, check=True)
        stand_in.parent.mkdir()
        stand_in.write_text(TOX, "utf-8")
        stand_in.chmod(0o755)
        env = {**os.environ, "PATH": f"{stand_in.parent}{os.pathsep}{os.environ['PATH']}"}
        index = Index(folder)
        for name in ORDER:
            index.take(name, release(name, clone, env))
        for name in names or ORDER:
            use(name, index, folder / name)
    print(f"released to an index and used from there: {', '.join(names or ORDER)}")


if __name__ == "__main__":
    main()
