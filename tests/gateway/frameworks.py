"""The applications on the page about frameworks, each as a process of its own under one of the servers."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from socket import create_connection

import pytest

from tests.docs.markdown import ROOT, blocks
from tests.process import ENVIRONMENT, free_port

PAGE = ROOT / "docs" / "frameworks.md"

APPLICATIONS = ("fastapi_app", "starlette_app", "litestar_app", "without_lifespan")
"""What the page shows, in its order, but for the Django site; each block is a module of this name."""

COMMANDS: dict[str, tuple[str, ...]] = {
    "uvicorn": ("uvicorn", "{app}:application", "--port", "{port}", "--ws", "websockets-sansio"),
    "uvicorn wsproto": ("uvicorn", "{app}:application", "--port", "{port}", "--ws", "wsproto"),
    "hypercorn": ("hypercorn", "{app}:application", "--bind", "127.0.0.1:{port}"),
    "granian": ("granian", "--interface", "asgi", "--port", "{port}", "{app}:application"),
    "daphne": ("daphne", "--port", "{port}", "{app}:application"),
}


def write(folder: Path) -> None:
    """Write what the page shows into a folder; a block that begins with a path is a file of the Django site."""
    names = iter(APPLICATIONS)
    (folder / "mysite").mkdir()
    for block in blocks(PAGE, "py"):
        first = block.code.partition("\n")[0]
        path = first.removeprefix("# ") if first.startswith("# mysite/") else f"{next(names)}.py"
        (folder / path).write_text(block.code, encoding="utf-8")
    assert list(names) == []


def environment(folder: Path) -> dict[str, str]:
    """Return the environment of a process that imports what is in the folder."""
    return ENVIRONMENT | {"PYTHONPATH": os.pathsep.join((str(folder), str(ROOT / "src")))}


@contextmanager
def running(server: str, app: str, folder: Path, *, log: Path | None = None) -> Iterator[int]:
    """Serve one of the applications in the folder; the value is the port. A log gets what it writes."""
    port = free_port()
    with (log or Path(os.devnull)).open("w", encoding="utf-8") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", *(each.format(app=app, port=port) for each in COMMANDS[server])],
            stdout=output if log is not None else subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            cwd=folder,
            env=environment(folder),
        )
    try:
        deadline = time.monotonic() + 30
        while True:
            try:
                create_connection(("127.0.0.1", port), timeout=1).close()
                break
            except OSError:
                if process.poll() is not None or time.monotonic() > deadline:
                    process.kill()
                    pytest.fail(f"{server} does not serve {app}: {process.communicate()[0]}")
                time.sleep(0.05)
        yield port
    finally:
        process.terminate()
        try:
            process.communicate(timeout=10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.communicate()
