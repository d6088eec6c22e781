"""The client for browsers and Node: what it does against a server in memory that fails, on a clock that is turned."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import pytest

from tests.clients.peers import NPM

HERE = Path(__file__).parent
CLIENT = HERE.parents[2] / "clients" / "js"

pytestmark = pytest.mark.process


async def run(*command: str | Path) -> tuple[int, str]:
    process = await asyncio.create_subprocess_exec(
        *command, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT
    )
    output, _ = await process.communicate()
    assert process.returncode is not None
    return process.returncode, output.decode()


@pytest.mark.parametrize("file", sorted(HERE.glob("*.test.mjs")), ids=lambda file: file.name)
async def test_the_client_against_a_server_that_fails(file: Path) -> None:
    status, output = await run("node", "--test", "--test-reporter=spec", file)
    assert status == 0, output


async def test_its_types_are_strict_and_made_from_the_file_itself(tmp_path: Path) -> None:
    tsc = NPM / "node_modules" / ".bin" / "tsc"
    assert await run(tsc, "--project", CLIENT, "--outDir", tmp_path) == (0, "")
    (tmp_path / "user.ts").write_text((HERE / "user.ts.txt").read_text())
    options = {"noEmit": True, "declaration": False, "emitDeclarationOnly": False}
    project = {"extends": str(CLIENT / "tsconfig.json"), "compilerOptions": options, "files": ["user.ts"]}
    (tmp_path / "tsconfig.json").write_text(json.dumps(project))
    assert await run(tsc, "--project", tmp_path) == (0, "")
