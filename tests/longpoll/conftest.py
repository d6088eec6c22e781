"""Chromium."""

from __future__ import annotations

import shutil
from collections.abc import Iterator

import pytest
from playwright.sync_api import Browser, sync_playwright

from tests.demo.browsing import CHROMIUM_OPTIONS


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """Chromium. Not for longer than a module: its event loop would be in the way of asynchronous tests."""
    chromium = shutil.which("chromium")
    if chromium is None:
        pytest.fail("There is no chromium on the PATH; these tests drive it. On Debian: apt-get install chromium")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=CHROMIUM_OPTIONS)
        yield browser
        browser.close()
