"""The linter and the type checker of the house, over what a page shows."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from tests.docs.markdown import ROOT


def assert_both_pass(folder: Path, name: str, ignored: str, target: str = ".") -> None:
    """Fail unless both pass over a folder's file, or all of it; `name` is that of the type checker's cache."""
    config = str(ROOT / "pyproject.toml")
    lint = ["ruff", "check", "--no-cache", "--config", config, "--extend-ignore", ignored, target]
    types = ["mypy", "--config-file", config, "--cache-dir", str(ROOT / ".mypy_cache" / name), target]
    for command in (lint, types):
        run = subprocess.run(
            [sys.executable, "-m", *command],
            cwd=folder,
            env=os.environ | {"MYPYPATH": str(ROOT / "src")},
            capture_output=True,
            text=True,
            check=False,
        )
        assert run.returncode == 0, run.stdout + run.stderr
