"""A real browser for pages on disk, and what they do there."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

NAMES = ("chromium", "chromium-browser", "google-chrome", "chrome")
FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--no-first-run",
)
DRAWN = "#frontier svg"


@contextmanager
def started() -> Iterator["Browser"]:
    """Debian's chromium, with a profile of its own; skips where something is missing."""
    playwright = pytest.importorskip(
        "playwright.sync_api", reason="playwright is not installed: pip install 'mpq[test]'"
    )
    path = next(filter(None, map(shutil.which, NAMES)), None)
    if path is None:
        pytest.skip(f"no browser is installed (looked for {', '.join(NAMES)})")
    with playwright.sync_playwright() as running:
        browser = running.chromium.launch(executable_path=path, args=list(FLAGS))
        yield browser
        browser.close()


@dataclass
class Opened:
    """A page, and what it said and asked for since it was opened."""

    page: "Page"
    said: list[str] = field(default_factory=list)
    asked: list[str] = field(default_factory=list)

    def text(self, query: str) -> str:
        """What is read there."""
        return str(self.page.locator(query).first.inner_text()).strip()

    def number(self, script: str) -> float:
        """The value of an expression."""
        return float(self.page.evaluate(script))


@contextmanager
def opened(browser: "Browser", file: Path, drawn: str = DRAWN, **context: Any) -> Iterator[Opened]:
    """A page from disk, once its pictures are there."""
    own = browser.new_context(**{"viewport": {"width": 1400, "height": 900}, **context})
    # Far more than is needed, unless many others work on the machine.
    own.set_default_timeout(180_000)
    found = Opened(own.new_page())
    found.page.on("console", lambda message: found.said.append(f"{message.type}: {message.text}"))
    found.page.on("pageerror", lambda error: found.said.append(str(error)))
    found.page.on("dialog", lambda dialog: found.said.append(f"dialog: {dialog.message}"))
    found.page.on("request", lambda request: found.asked.append(request.url))
    found.page.goto(file.as_uri())
    if drawn:
        found.page.wait_for_selector(drawn, state="attached")
    yield found
    own.close()


def cut_on_paper(found: Opened) -> list[str]:
    """Captions of the tables that are wider than A4 within the margins that a browser leaves."""
    found.page.set_viewport_size({"width": 717, "height": 1000})
    found.page.emulate_media(media="print")
    cut = "[...document.querySelectorAll('table')].filter(x => x.scrollWidth > 717)"
    return list(found.page.evaluate(f"{cut}.map(x => x.caption.innerText)"))


def serious(found: Opened) -> list[tuple[str, str]]:
    """What axe-core calls a serious or critical fault, with the first element that has it."""
    axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="no axe-core")
    violations = axe.Axe().run(found.page).response["violations"]
    return [
        (fault["id"], fault["nodes"][0]["html"][:200])
        for fault in violations
        if fault["impact"] in ("serious", "critical")
    ]
