"""Deliveries a second of `chatx serve` with one worker, and with several: one room, clients spread by the kernel."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
import urllib.request
from contextlib import suppress
from pathlib import Path

from benchmarks.cluster.nodes import ENDS_S, ROOT
from benchmarks.wire.servers import TIMEOUT_S, Bench, Seen

SHAPE = ("--clients", "1000")
OUTSTANDING = 16
STARTS_S = 60


def per_second(folder: Path, workers: int, seconds: float) -> float:
    """Return the deliveries a second of so many workers."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "chatx", "serve", "--port", str(port), "--insecure-user-param"]
    command += ["--log-level", "error"]
    if workers > 1:
        command += ["--workers", str(workers), "--data", str(folder / "workers")]
    environment = {**os.environ, "CHATX_RATE_LIMIT": "{ messages_per_sec = 1e9, burst = 1000000000 }"}
    with subprocess.Popen(command, cwd=ROOT, env=environment) as process:
        try:
            _wait(port, process)
            seen = _load(folder, port, process.pid, seconds)
        finally:
            process.terminate()
            try:
                process.wait(ENDS_S)
            except subprocess.TimeoutExpired:
                process.kill()
    if seen["incomplete"] or seen["lost"] or seen["disordered"]:
        sys.exit(f"benchmarks: with {workers} workers not everybody saw everything in order: {seen}")
    return float(seen["per_second"])


def _wait(port: int, process: subprocess.Popen[bytes]) -> None:
    end = time.monotonic() + STARTS_S
    while time.monotonic() < end and process.poll() is None:
        with suppress(OSError), urllib.request.urlopen(f"http://127.0.0.1:{port}/readyz", timeout=5):
            return
        time.sleep(0.1)
    sys.exit("benchmarks: chatx serve does not become ready; what it said is above.")


def _load(folder: Path, port: int, pid: int, seconds: float) -> Seen:
    Bench(folder)  # compiles it
    *_, core = sorted(os.sched_getaffinity(0))
    command = [str(folder / "load"), "--cpu", str(core), "--port", str(port), "--pid", str(pid), *SHAPE]
    done = subprocess.run(
        [*command, f"warm:{OUTSTANDING}:1", f"saturate:{OUTSTANDING}:{seconds}"],
        stdout=subprocess.PIPE, text=True, timeout=TIMEOUT_S, check=True,
    )  # fmt: skip
    seen: Seen = json.loads(done.stdout.splitlines()[-1])
    return seen
