"""Open every page of the built site in one headless Chromium, at 400 pixels.

The browser is driven by the DevTools protocol over a pipe: messages end with a zero byte.
"""

from __future__ import annotations

import itertools
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest

ROOT = Path(__file__).resolve().parents[1]
WIDTH = 400
MISSING = "chromium is not on PATH: install Debian's package `chromium` to look at the site's pages"

# What a reader would see as broken; `code` and `pre` may show backticks. Runs in the page.
LOOK = """(() => {
  const faults = [];
  const shown = document.querySelector("article").cloneNode(true);
  for (const code of shown.querySelectorAll("code, pre, script, style")) code.remove();
  for (const line of shown.textContent.split("\\n")) if (line.includes("`")) faults.push("backticks: " + line.trim());
  for (const picture of document.images) if (!picture.complete || !picture.naturalWidth) faults.push("picture: " + picture.src);
  const wide = document.documentElement.scrollWidth;
  if (wide > innerWidth) faults.push("overflow: " + wide + " pixels in " + innerWidth);
  const links = Array.from(document.querySelectorAll("a[href]"), a => a.href);
  const anchors = Array.from(document.querySelectorAll("[id]"), e => e.id);
  const foreign = performance.getEntriesByType("resource").map(r => r.name).filter(n => !/^(file|data):/.test(n));
  for (const name of foreign) faults.push("loaded from elsewhere: " + name);
  return JSON.stringify({faults, links, anchors});
})()"""


class Browser:
    """One Chromium with one tab; `ask` sends a DevTools command and returns its result."""

    def __init__(self, program: str, profile: Path) -> None:
        (command_r, self.command), (self.answer, answer_w) = os.pipe(), os.pipe()

        # Chromium reads commands from descriptor 3 and writes answers to 4
        def wire() -> None:
            high_r, high_w = os.dup(command_r), os.dup(answer_w)
            os.dup2(high_r, 3)
            os.dup2(high_w, 4)

        flags = ["--headless", "--no-sandbox", "--disable-gpu", "--remote-debugging-pipe", f"--user-data-dir={profile}"]
        self.process = subprocess.Popen(
            [program, *flags, "about:blank"], preexec_fn=wire, close_fds=False, stderr=subprocess.DEVNULL
        )
        os.close(command_r)
        os.close(answer_w)
        self.stream, self.numbers, self.session = os.fdopen(self.answer, "rb"), itertools.count(1), None
        self.rest = b""
        target = self.ask("Target.createTarget", url="about:blank")["targetId"]
        self.session = self.ask("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        self.ask("Page.enable")

    def message(self) -> dict:
        while b"\0" not in self.rest:
            part = os.read(self.answer, 1 << 16)
            if not part:
                raise EOFError("Chromium ended")
            self.rest += part
        first, self.rest = self.rest.split(b"\0", 1)
        return json.loads(first)

    def ask(self, method: str, **params: object) -> dict:
        number = next(self.numbers)
        body = {"id": number, "method": method, "params": params}
        if self.session:
            body["sessionId"] = self.session
        os.write(self.command, json.dumps(body).encode() + b"\0")
        while (message := self.message()).get("id") != number:
            pass
        if "error" in message:
            raise RuntimeError(f"{method}: {message['error']['message']}")
        return message["result"]

    def look(self, url: str, width: int = WIDTH) -> dict:
        """Faults, links and anchors of the page, once it has loaded."""
        self.ask("Emulation.setDeviceMetricsOverride", width=width, height=900, deviceScaleFactor=1, mobile=False)
        self.ask("Page.navigate", url=url)
        while self.message().get("method") != "Page.loadEventFired":
            pass
        return json.loads(self.ask("Runtime.evaluate", expression=LOOK)["result"]["value"])

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        os.close(self.command)
        self.stream.close()


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    program = shutil.which("chromium")
    if program is None:
        (pytest.fail if os.environ.get("CI") else pytest.skip)(MISSING)
    browser = Browser(program, tmp_path_factory.mktemp("profile"))
    yield browser
    browser.close()


def dead(pages: dict[Path, dict]) -> list[str]:
    """Links between pages of the site that lead to no file or to no anchor."""
    found = []
    for page, seen in pages.items():
        for link in set(seen["links"]):
            parts = urlsplit(link)
            if parts.scheme != "file":
                continue
            path = Path(unquote(parts.path))
            path = path / "index.html" if path.is_dir() else path
            anchor = unquote(parts.fragment)
            if not path.exists() or (anchor and path in pages and anchor not in pages[path]["anchors"]):
                found.append(f"{page}: dead link {link}")
    return found


@pytest.mark.timeout(180)
def test_every_page_of_the_site_is_whole_in_a_browser(browser):
    site = ROOT / "site"
    subprocess.run([Path(sys.executable).parent / "zensical", "build", "--clean", "--strict"], cwd=ROOT, check=True)
    pages = {path: browser.look(path.as_uri()) for path in sorted(site.rglob("*.html")) if path.name != "404.html"}
    faults = [f"{page.relative_to(site)}: {fault}" for page, seen in pages.items() for fault in seen["faults"]]
    assert len(pages) == len(list(ROOT.glob("docs/*.md")))
    assert not faults + dead(pages), "\n".join(faults + dead(pages))


@pytest.mark.parametrize(
    ("body", "fault"),
    [
        ("<p>```bash run</p>", "backticks"),
        ("<img src='none.png'>", "picture"),
        ("<div style='width: 900px'>wide</div>", "overflow"),
    ],
)
def test_a_broken_page_is_told(body, fault, browser, tmp_path):
    page = tmp_path / "page.html"
    page.write_text(f"<!doctype html><article>{body}</article>")
    assert [text.split(":")[0] for text in browser.look(page.as_uri())["faults"]] == [fault]


def test_a_link_to_no_file_and_to_no_anchor_is_dead(browser, tmp_path):
    page = tmp_path / "page.html"
    page.write_text("<!doctype html><article id=a><a href=none.html>x</a><a href=#b>y</a><a href=#a>z</a></article>")
    assert len(dead({page: browser.look(page.as_uri())})) == 2
