"""The page as a person sees it: Chromium, driven by Playwright.

`browser` starts the system's Chromium; Playwright brings none. `Tab` is one tab that shows the page. It collects what
the page complains about: errors in the console, and scripts that fail.
"""

import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Literal, Self

from playwright.sync_api import Browser, ConsoleMessage, Page, sync_playwright

ANSWER_S = 60.0  # a browser on a loaded machine is slow
_POLL_MS = 20.0
SECTIONS = ("well", "learning", "layers", "mistakes", "try")
Scheme = Literal["light", "dark"]
_COMMANDS = ("chromium", "chromium-browser", "google-chrome")
_OPTIONS = ("--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage")


def find_chromium() -> str | None:
    """The path of the system's Chromium, if it has one."""
    return next(filter(None, map(shutil.which, _COMMANDS)), None)


@contextmanager
def browser() -> Iterator[Browser]:
    """A browser without a window. For one thread."""
    with sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=find_chromium(), args=_OPTIONS)
        try:
            yield started
        finally:
            started.close()


class Tab:
    """One tab, which is closed at the end of a `with` block."""

    def __init__(
        self, browser: Browser, url: str, *, scheme: Scheme = "light", width: int = 1280, height: int = 900
    ) -> None:
        self._context = browser.new_context(
            color_scheme=scheme, viewport={"width": width, "height": height}, has_touch=width < 600
        )
        self._context.set_default_timeout(1000 * ANSWER_S)
        self.complaints: list[str] = []
        self.page: Page = self._context.new_page()
        self.page.on("console", self._hear)
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.page.goto(url)

    def _hear(self, message: ConsoleMessage) -> None:
        if message.type in ("error", "warning", "trace"):
            self.complaints.append(message.text)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self._context.close()

    def text(self, selector: str) -> str:
        """What an element says."""
        return self.page.locator(selector).inner_text()

    def evaluate(self, expression: str) -> Any:
        """The value of a JavaScript expression in the page."""
        return self.page.evaluate(expression)

    def wait_for(self, expression: str, timeout_s: float = ANSWER_S) -> None:
        """Waits until a JavaScript expression is true. Raises TimeoutError."""
        # Not `wait_for_function`: it uses `eval` within the page, which the content security policy forbids.
        self.wait_until(lambda: self.evaluate(expression), expression, timeout_s)

    def wait_until(self, condition: Callable[[], Any], what: str, timeout_s: float = ANSWER_S) -> None:
        """Waits for a condition; what the browser reports is heard meanwhile. Raises TimeoutError."""
        deadline = time.monotonic() + timeout_s
        while not condition():
            if time.monotonic() > deadline:
                raise TimeoutError(f"not true after {timeout_s:g} s: {what}")
            self.page.wait_for_timeout(_POLL_MS)

    def wait_for_state(self, name: str, timeout_s: float = ANSWER_S) -> None:
        """Waits until the page shows this state of the daemon."""
        self.wait_for(f"document.getElementById('pill').dataset.state === '{name}'", timeout_s)

    def look_at(self, section: str) -> None:
        """Scrolls to a section."""
        self.evaluate(f"document.getElementById('{section}').scrollIntoView({{behavior: 'instant'}})")

    def wait_for_charts(self, section: str) -> None:
        """Scrolls to a section and waits until the charts that are on the screen are drawn."""
        self.look_at(section)
        self.wait_for(
            f"""[...document.querySelectorAll('#{section} .plot')].every(plot => {{
                const box = plot.getBoundingClientRect();
                return box.bottom < 0 || box.top > innerHeight || plot.querySelector('.main-svg');
            }})"""
        )
