"""Chromium, for the pages that the documentation builds."""

from tests.demo.conftest import browser

__all__ = ["browser"]
