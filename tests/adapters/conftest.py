"""SQLite files of the tests' own."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from chatx.adapters.sqlite import SQLitePersistence
from tests.adapters.opening import Open


@pytest.fixture
def opened(tmp_path: Path) -> Iterator[Open]:
    """Opens the test's file, as often as it is called; closes all in the end."""
    with contextlib.ExitStack() as stack:

        def open_(path: str | os.PathLike[str] = tmp_path / "chat.db") -> SQLitePersistence:
            return stack.enter_context(contextlib.closing(SQLitePersistence(path)))

        yield open_
