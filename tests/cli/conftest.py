"""What the tests of the command share: a clean environment, a certificate."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import trustme


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in os.environ:
        if name.startswith("CHATX_"):
            monkeypatch.delenv(name)


@pytest.fixture
def certificate(tmp_path: Path) -> tuple[Path, Path]:
    """A chain for localhost that ends in its authority, and its key; each in a file."""
    authority = trustme.CA()
    issued = authority.issue_cert("localhost")
    chain, key = tmp_path / "cert.pem", tmp_path / "key.pem"
    for pem in (*issued.cert_chain_pems, authority.cert_pem):
        pem.write_to_path(str(chain), append=True)
    issued.private_key_pem.write_to_path(str(key))
    return chain, key


@contextmanager
def imported_anew(*names: str) -> Iterator[None]:
    """Have modules whose names begin so imported again within the block, and be as they were after it."""
    before = {name: module for name, module in sys.modules.items() if name.startswith(names)}
    for name in before:
        del sys.modules[name]
    try:
        yield
    finally:
        for name in [each for each in sys.modules if each.startswith(names)]:
            del sys.modules[name]
            package, _, last = name.rpartition(".")
            if hasattr(sys.modules.get(package), last):
                delattr(sys.modules[package], last)
        for name, module in before.items():
            sys.modules[name] = module
        for name, module in before.items():
            package, _, last = name.rpartition(".")
            if package in sys.modules:
                setattr(sys.modules[package], last, module)
