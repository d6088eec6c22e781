"""What the tests of the command share: a clean environment, a certificate."""

from __future__ import annotations

import os
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
