"""One browser serves the tests of a file."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.reporting.report.browser import Browser, missing_programs, open_browser


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    """Chromium with the network off; skips, saying so, where it is not installed."""
    if missing := missing_programs():
        pytest.skip(f"no browser: {missing}")
    with open_browser(tmp_path_factory.mktemp("downloads")) as opened:
        yield opened
