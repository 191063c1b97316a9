"""The browser of the tests sees what a page does: its truth are small pages written by hand."""

from __future__ import annotations

import shutil
import socket
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from tests.reporting.report import browser as harness
from tests.reporting.report.browser import Browser, wait_until

Write = Callable[[str], Path]
PIXEL = "data:image/gif;base64,R0lGODlhAQABAIAAAP8AAP///ywAAAAAAQABAAACAkQBADs="


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """Makes a page of this body."""

    def to_file(body: str) -> Path:
        path = tmp_path / "a page #1.html"  # addresses quote both
        path.write_text(f"<!doctype html><meta charset=utf-8><title>t</title>{body}", "utf-8")
        return path

    return to_file


def test_a_silent_page_has_no_errors_and_no_requests(browser: Browser, write: Write) -> None:
    page = write(
        f"<img id=data src='{PIXEL}'><img id=blob><script>"
        "console.log('a word'); console.warn('a warning');"
        "document.getElementById('blob').src ="
        " URL.createObjectURL(new Blob(['<svg xmlns=\"http://www.w3.org/2000/svg\"/>'],"
        " {type: 'image/svg+xml'}));</script>"
    )
    browser.open(page, fragment="pair")
    browser.wait_for("return document.getElementById('data').naturalWidth === 1")
    browser.wait_for("return document.getElementById('blob').complete")
    assert browser.run("return location.hash") == "#pair"
    assert browser.console_errors() == []
    assert browser.requests() == []


@pytest.mark.parametrize(
    ("script", "said"),
    [
        ("console.error('wrong', 7)", "wrong"),
        ("nowhere.to.be.found", "nowhere is not defined"),
        ("Promise.reject(new Error('broken word'))", "broken word"),
        ("setTimeout(() => { throw new Error('later') })", "later"),
    ],
)
def test_errors_are_seen(browser: Browser, write: Write, script: str, said: str) -> None:
    browser.open(write(f"<script>{script}</script>"))
    (error,) = wait_until(browser.console_errors, lambda: "no error is seen")
    assert said in error
    assert browser.console_errors() == [error], "asking again forgets nothing"
    browser.open(write("<p>quiet</p>"))
    assert browser.console_errors() == []


@pytest.mark.parametrize(
    ("body", "address"),
    [
        ("<img src='http://example.invalid/a.png'>", "http://example.invalid/a.png"),
        ("<img src='https://127.0.0.1:1/a.png'>", "https://127.0.0.1:1/a.png"),
        (
            "<style>@import 'http://example.invalid/s.css';</style>",
            "http://example.invalid/s.css",
        ),
        ("<script>fetch('http://example.invalid/f')</script>", "http://example.invalid/f"),
        ("<script>new WebSocket('ws://example.invalid/')</script>", "ws://example.invalid/"),
    ],
)
def test_requests_are_seen(browser: Browser, write: Write, body: str, address: str) -> None:
    browser.open(write(body))
    wait_until(browser.console_errors, lambda: "the network is on")
    assert browser.requests() == [address]
    browser.open(write("<p>quiet</p>"))
    assert browser.requests() == []


def test_the_network_is_off(browser: Browser, write: Write) -> None:
    """Not even this machine is reached; the same address answers the test itself."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(0.2)
        host, port = server.getsockname()
        with socket.create_connection((host, port)):
            server.accept()[0].close()
        browser.open(write(f"<img src='http://{host}:{port}/a.png'>"))
        assert browser.requests() == [f"http://{host}:{port}/a.png"]
        with pytest.raises(TimeoutError):
            server.accept()


def test_a_neighbouring_file_is_a_request(browser: Browser, write: Write) -> None:
    page = write("<script src='beside.js'></script>")
    (page.parent / "beside.js").write_text("window.beside = 1")
    browser.open(page)
    assert browser.run("return window.beside") == 1
    assert browser.requests() == [(page.parent / "beside.js").as_uri()]


@pytest.mark.parametrize("dark", [True, False])
@pytest.mark.parametrize("width", [360, 1440])
def test_colours_and_width_are_the_readers(
    browser: Browser, write: Write, tmp_path: Path, dark: bool, width: int
) -> None:
    page = write(
        "<style>body {margin: 0; background: white; height: 2000px}"
        "@media (prefers-color-scheme: dark) {body {background: black}}</style>"
    )
    browser.open(page, width=width, height=500, dark=dark)
    assert browser.run("return matchMedia('(prefers-color-scheme: dark)').matches") is dark
    assert browser.run("return innerWidth") == width
    browser.screenshot(tmp_path / "view.png")
    browser.screenshot(tmp_path / "page.png", whole_page=True)
    with Image.open(tmp_path / "view.png") as view, Image.open(tmp_path / "page.png") as whole:
        assert view.size == (width, 500)
        assert whole.size[1] == 2000
        assert view.convert("L").getpixel((5, 5)) == (0 if dark else 255)


def test_a_page_is_seen_as_printed(browser: Browser, write: Write) -> None:
    page = write("<style>@media print {p {display: none}}</style><p>on a screen</p>")
    browser.open(page)
    assert browser.find("p").is_displayed()
    browser.open(page, media="print")
    assert not browser.find("p").is_displayed()


def test_the_mouse_hovers_and_clicks_elements_and_points(browser: Browser, write: Write) -> None:
    page = write(
        "<style>button {position: absolute; left: 40px; width: 90px; height: 30px}"
        "#far {top: 3000px} #near {top: 20px} #far:hover {color: rgb(1, 2, 3)}</style>"
        "<button id=near>a</button><button id=far>b</button><script>seen = [];"
        "for (const kind of ['mouseenter', 'click']) for (const id of ['near', 'far'])"
        " document.getElementById(id).addEventListener(kind, () => seen.push(`${kind} ${id}`));"
        "</script>"
    )
    browser.open(page)
    browser.hover((60, 30))
    assert browser.run("return seen") == ["mouseenter near"]
    browser.hover(browser.find("#far"))
    assert browser.run("return seen.at(-1)") == "mouseenter far"
    assert browser.find("#far").value_of_css_property("color") == "rgba(1, 2, 3, 1)"
    browser.click(browser.find("#near"))
    assert browser.run("return seen.at(-1)") == "click near"
    browser.open(page)
    assert browser.run("return seen") == [], "the mouse lies where it did not touch the page"


def test_the_mouse_drags(browser: Browser, write: Write) -> None:
    browser.open(
        write(
            "<body style='height: 600px'><script>path = [];"
            "for (const kind of ['down', 'move', 'up'])"
            " document.addEventListener(`pointer${kind}`, e =>"
            "  e.buttons || kind === 'up' ? path.push(`${kind} ${e.clientX},${e.clientY}`) : 0);"
            "</script>"
        )
    )
    browser.drag([(10, 10), (50.4, 20), (30, 60)])
    assert browser.run("return path") == ["down 10,10", "move 50,20", "move 30,60", "up 30,60"]


def test_keys_are_pressed(browser: Browser, write: Write) -> None:
    browser.open(
        write(
            "<input id=a><input id=b><script>keys = [];document.addEventListener('keydown',"
            " e => e.key === 'Control' || keys.push((e.ctrlKey ? 'Control+' : '') + e.key));"
            "</script>"
        )
    )
    browser.press("Tab", "x", "+", "Tab", "Shift+Tab", "ArrowLeft", "Control+k", "Escape")
    assert browser.run("return document.activeElement.id") == "a"
    assert browser.find("#a").get_property("value") == "x+"
    assert browser.run("return keys") == [
        *("Tab", "x", "+", "Tab", "Shift", "Tab", "ArrowLeft", "Control+k", "Escape")
    ]
    with pytest.raises(AttributeError, match="NO_SUCH_KEY"):
        browser.press("no_such_key")


def test_a_download_of_the_same_name_comes_twice(browser: Browser, write: Write) -> None:
    page = write(
        "<button>save</button><script>let n = 0;document.querySelector('button').onclick = () => {"
        "const a = document.createElement('a'); a.download = 'overrides.csv';"
        "a.href = URL.createObjectURL(new Blob([`id,say\\n${n++},keep\\n`]));a.click(); };</script>"
    )
    browser.open(page)
    for number in range(2):
        browser.click(browser.find("button"))
        file = browser.wait_for_download("overrides.csv")
        assert file.read_text() == f"id,say\n{number},keep\n"
    assert browser.requests() == []


def test_what_does_not_come_is_said(
    browser: Browser, write: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(browser, "patience", 0.1)
    browser.open(write("<p>nothing</p>"))
    with pytest.raises(TimeoutError, match=r"no download 'a\.csv', but \[\]"):
        browser.wait_for_download("a.csv")
    with pytest.raises(TimeoutError, match="never true: return false"):
        browser.wait_for("return false")


def test_what_a_page_stores_lasts_until_it_is_opened_anew(browser: Browser, write: Write) -> None:
    page = write("<p>nothing</p>")
    browser.open(page)
    browser.run("localStorage.n = 1")
    browser.reload()
    assert browser.run("return localStorage.n") == "1"
    browser.open(page)
    assert browser.run("return localStorage.n ?? null") is None


def test_without_a_browser_the_way_out_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", {"chromium": "/usr/bin/chromium"}.get)
    missing = harness.missing_programs()
    assert missing == "chromedriver not found: apt-get install chromium chromium-driver"
    monkeypatch.setattr(shutil, "which", lambda name: name)
    assert harness.missing_programs() == ""
