"""Headless Chromium that opens a page from disk with the network off, and what it saw.

with open_browser(downloads) as browser:
    browser.open(page, width=800, dark=True)
    browser.hover(browser.find("img"))
    assert not browser.console_errors()
    assert not browser.requests()
"""

from __future__ import annotations

import base64
import json
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

from selenium.webdriver import Chrome, ChromeOptions, ChromeService
from selenium.webdriver.common.action_chains import ActionChains
from selenium.webdriver.common.actions.action_builder import ActionBuilder
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.remote.webelement import WebElement

PROGRAMS = ("chromium", "chromedriver")
PATIENCE = 30.0  # seconds that a page, a condition or a download may take
Target = WebElement | tuple[float, float]
Message = dict[str, Any]

FLAGS = (
    "--headless=new",
    "--no-sandbox",  # Chromium's own does not start as root
    "--disable-dev-shm-usage",  # containers have a small /dev/shm
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-default-apps",
    "--disable-extensions",
    "--disable-sync",
    # The network is off: no name and no address is reached, by a proxy neither.
    "--host-resolver-rules=MAP * ~NOTFOUND",
    "--no-proxy-server",
)


def missing_programs() -> str:
    """What is not installed, with the way out; empty if a browser can be started."""
    missing = [name for name in PROGRAMS if shutil.which(name) is None]
    if not missing:
        return ""
    return f"{' and '.join(missing)} not found: apt-get install chromium chromium-driver"


@contextmanager
def open_browser(downloads: Path, *, patience: float = PATIENCE) -> Iterator[Browser]:
    """A browser with a profile of its own, closed at the end; downloads go below the folder."""
    options = ChromeOptions()
    options.binary_location = shutil.which(PROGRAMS[0]) or PROGRAMS[0]
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    # A driver killed by a test's time limit leaves files open; what is left is no failure.
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        for flag in (*FLAGS, f"--user-data-dir={profile}"):
            options.add_argument(flag)
        # Both paths are given, so that selenium asks no server for a browser. The driver is on this
        # machine, where no proxy leads.
        with mock.patch.dict(os.environ, no_proxy="localhost"):
            driver = Chrome(options, ChromeService(shutil.which(PROGRAMS[1]) or PROGRAMS[1]))
        try:
            yield Browser(driver, downloads, patience)
        finally:
            driver.quit()


class Browser:
    """One window of Chromium; `driver` is selenium's, for what is not here."""

    def __init__(self, driver: Chrome, downloads: Path, patience: float = PATIENCE) -> None:
        self.driver, self.patience = driver, patience
        self._downloads, self._n_downloads = downloads, 0
        self._page = ""
        self._console: list[Message] = []
        self._network: list[Message] = []
        driver.set_page_load_timeout(patience)
        driver.set_script_timeout(patience)

    def open(
        self,
        page: Path,
        *,
        fragment: str = "",
        width: int = 1280,
        height: int = 800,
        dark: bool = False,
        media: str = "screen",
    ) -> None:
        """Open a file as if for the first time: nothing stored, logged or downloaded before.

        Args:
            page: the file.
            fragment: what follows `#` in the address, quoted as an address is.
            width: of the view, pixels; narrower than a window may be, if need be.
            height: of the view, pixels.
            dark: the system's colours are dark.
            media: "screen" or "print".
        """
        ActionChains(self.driver, duration=0).reset_actions()
        self._move(0, 0)  # the mouse does not lie on what the last test looked at
        self.driver.get("about:blank")
        scheme = "dark" if dark else "light"
        for command, parameters in (
            ("Storage.clearDataForOrigin", {"origin": "file://", "storageTypes": "all"}),
            (
                "Emulation.setDeviceMetricsOverride",
                {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False},
            ),
            (
                "Emulation.setEmulatedMedia",
                {
                    "media": media,
                    "features": [
                        {"name": "prefers-color-scheme", "value": scheme},
                        # Nothing glides away from under the mouse.
                        {"name": "prefers-reduced-motion", "value": "reduce"},
                    ],
                },
            ),
        ):
            self.driver.execute_cdp_cmd(command, parameters)
        self._next_downloads()
        self._read_logs()
        self._console, self._network = [], []
        self._page = page.resolve().as_uri()
        self.driver.get(f"{self._page}#{fragment}" if fragment else self._page)

    def reload(self) -> None:
        """Open the page again as a reader does who comes back: what it stored is still there."""
        self.driver.refresh()

    # --- What the page did ------------------------------------------------------------------------

    def console_errors(self) -> list[str]:
        """Errors since the page was opened: exceptions, `console.error`, what failed to load."""
        self._read_logs()
        return [entry["message"] for entry in self._console if entry["level"] == "SEVERE"]

    def requests(self) -> list[str]:
        """Addresses asked for since the page was opened, other than its file, data: and blob:."""
        self._read_logs()
        addresses = []
        for message in self._network:
            if message["method"] == "Network.requestWillBeSent":
                addresses.append(message["params"]["request"]["url"])
            elif message["method"] in ("Network.webSocketCreated", "Network.webTransportCreated"):
                addresses.append(message["params"]["url"])
        return [
            address
            for address in addresses
            if address.partition("#")[0] != self._page
            and not address.startswith(("data:", "blob:"))
        ]

    def _read_logs(self) -> None:
        """The driver forgets what it handed out."""
        self._console += self.driver.get_log("browser")
        for entry in self.driver.get_log("performance"):
            self._network.append(json.loads(entry["message"])["message"])

    def wait_for_download(self, name: str) -> Path:
        """The finished download of this name; the next one of the same name has its own folder.

        Raises:
            TimeoutError: it did not come; the message says what did.
        """
        folder = self._folder()
        wait_until(
            (folder / name).exists,
            lambda: f"no download {name!r}, but {sorted(p.name for p in folder.iterdir())}",
            self.patience,
        )
        self._next_downloads()
        return folder / name

    def _folder(self) -> Path:
        return self._downloads / str(self._n_downloads)

    def _next_downloads(self) -> None:
        self._n_downloads += 1
        self._folder().mkdir(parents=True)
        where = {"behavior": "allow", "downloadPath": str(self._folder())}
        self.driver.execute_cdp_cmd("Browser.setDownloadBehavior", where)

    # --- What a reader does -----------------------------------------------------------------------

    def find(self, selector: str) -> WebElement:
        """The first element of a CSS selector."""
        return self.driver.find_element(By.CSS_SELECTOR, selector)

    def find_all(self, selector: str) -> list[WebElement]:
        """Every element of a CSS selector."""
        return self.driver.find_elements(By.CSS_SELECTOR, selector)

    def run(self, script: str, *arguments: Any) -> Any:
        """What a script returns: `arguments[0]` is the first argument; promises are waited for."""
        return self.driver.execute_script(script, *arguments)

    def wait_for(self, script: str, *arguments: Any) -> Any:
        """What a script returns once that is true.

        Raises:
            TimeoutError: it stays false.
        """
        return wait_until(
            lambda: self.run(script, *arguments), lambda: f"never true: {script}", self.patience
        )

    def press(self, *keys: str) -> None:
        """Press keys one after another: `press("Tab", "Enter", "a", "Shift+Tab", "ArrowDown")`."""
        for key in keys:
            *held, last = key.split("+") if len(key) > 1 else [key]
            chain = ActionChains(self.driver, duration=0)
            for name in held:
                chain.key_down(_key(name))
            chain.send_keys(_key(last))
            for name in reversed(held):
                chain.key_up(_key(name))
            chain.perform()

    def hover(self, target: Target) -> None:
        """Move the mouse onto the middle of an element, scrolled into view, or to a point of it."""
        self._move(*self._point(target))

    def click(self, target: Target) -> None:
        """Click where `hover` goes, whatever lies on top there."""
        self.drag([self._point(target)])

    def drag(self, points: Sequence[tuple[float, float]]) -> None:
        """Press the mouse at the first point of the view, move along the others, let go."""
        actions = ActionBuilder(self.driver, duration=0)
        mouse = actions.pointer_action
        mouse.move_to_location(*map(round, points[0]))
        mouse.pointer_down()
        for x, y in points[1:]:
            mouse.move_to_location(round(x), round(y))
        mouse.pointer_up()
        actions.perform()

    def screenshot(self, path: Path, *, whole_page: bool = False) -> None:
        """Save a PNG of the view, or of all that can be scrolled to."""
        shot = self.driver.execute_cdp_cmd(
            "Page.captureScreenshot",
            {"format": "png", "captureBeyondViewport": whole_page}
            | ({"clip": self._whole_page()} if whole_page else {}),
        )
        path.write_bytes(base64.b64decode(shot["data"]))

    def _whole_page(self) -> dict[str, float]:
        size = self.driver.execute_cdp_cmd("Page.getLayoutMetrics", {})["cssContentSize"]
        return {"x": 0, "y": 0, "width": size["width"], "height": size["height"], "scale": 1}

    def _point(self, target: Target) -> tuple[float, float]:
        if isinstance(target, tuple):
            return target
        x, y = self.run(
            "arguments[0].scrollIntoView({block: 'center', behavior: 'instant'});"
            "const box = arguments[0].getBoundingClientRect();"
            "return [box.x + box.width / 2, box.y + box.height / 2];",
            target,
        )
        return x, y

    def _move(self, x: float, y: float) -> None:
        actions = ActionBuilder(self.driver, duration=0)
        actions.pointer_action.move_to_location(round(x), round(y))
        actions.perform()


def _key(name: str) -> str:
    """What selenium sends for a key that is named as the page's script names it."""
    if len(name) == 1:
        return name
    upper = {"ArrowDown": "ARROW_DOWN", "ArrowUp": "ARROW_UP", "ArrowLeft": "ARROW_LEFT"}
    upper |= {"ArrowRight": "ARROW_RIGHT", "PageDown": "PAGE_DOWN", "PageUp": "PAGE_UP"}
    return str(getattr(Keys, upper.get(name, name.upper())))


def wait_until(
    condition: Callable[[], Any], complaint: Callable[[], str], patience: float = PATIENCE
) -> Any:
    """What a condition returns once that is true.

    Raises:
        TimeoutError: it stays false; the complaint is the message.
    """
    until = time.monotonic() + patience
    while not (result := condition()):
        if time.monotonic() > until:
            raise TimeoutError(complaint())
        time.sleep(0.02)
    return result
