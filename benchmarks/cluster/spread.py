"""What a delivery costs where the readers of a room are on one node, and where they are spread over three."""

from __future__ import annotations

import json
import subprocess
import sys
import time

from websockets.sync.client import connect

from benchmarks.cluster.nodes import ROOT, Cluster
from benchmarks.fanout import CONTENT

PACE = 10
"""Messages a second: few enough for one node to write each by itself, or what it costs is that of several together."""

UNDER_WAY = 256
"""Messages that are not answered yet, where they are sent as fast as they are answered."""

SETTLES_S = 3.0
"""Seconds in which nodes that are at rest take less than a tenth of a core each."""

COMES_IN_S = 300
"""Seconds for all readers to come in, and to say what they saw."""


def measure(running: Cluster, readers: int, seconds: float, *, hurried: bool = False) -> dict[str, float]:
    """Return the CPU of a delivery at the nodes, in µs, and the broker's of a message, without what both take at rest.

    Args:
        running: The nodes.
        readers: How many there are on each of them.
        seconds: How long messages are sent for.
        hurried: Whether they are sent as fast as they are answered, in place of `PACE`.
    """
    room_id = "hurried" if hurried else "lobby"
    ports = [str(node.port) for node in running.nodes]
    command = [sys.executable, "-m", "benchmarks.cluster.readers", room_id, str(readers), *ports]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT) as process:
        assert process.stdout is not None
        if process.stdout.readline() != "ready\n":
            sys.exit("benchmarks: the readers did not come in; what they said is above.")
        _settle(running)  # what is told of who came in is no part of it
        idle = _Used(running)
        time.sleep(seconds)
        idle.end()
        busy = _Used(running)
        sent = _send(running.nodes[0].port, room_id, seconds, hurried=hurried)
        time.sleep(1)
        busy.end()
        # Heartbeats and the like are there without any message.
        share = busy.seconds / idle.seconds
        used, broker_s = busy.nodes_s - share * idle.nodes_s, busy.broker_s - share * idle.broker_s
        told, _ = process.communicate(timeout=COMES_IN_S)
    expected, received = sent * readers * len(running.nodes), json.loads(told)["received"]
    if received != expected:
        sys.exit(f"benchmarks: {received} of {expected} deliveries have come.")
    return {
        "cpu_us": used / received * 1e6,
        "message_us": used / sent * 1e6,
        "broker_us": broker_s / sent * 1e6,
        "per_second": sent / seconds,
    }


class _Used:
    """The CPU that the nodes and their broker take from here on, until `end`, in seconds."""

    def __init__(self, running: Cluster) -> None:
        self._running = running
        self._began = time.monotonic()
        self._nodes_s = sum(node.cpu_s for node in running.nodes)
        self._broker_s = running.broker_cpu_s

    def end(self) -> None:
        """Measure no further."""
        self.seconds = time.monotonic() - self._began
        self.nodes_s = sum(node.cpu_s for node in self._running.nodes) - self._nodes_s
        self.broker_s = self._running.broker_cpu_s - self._broker_s


def _settle(running: Cluster) -> None:
    """Wait until the nodes have next to nothing to do."""
    end = time.monotonic() + COMES_IN_S
    while time.monotonic() < end:
        before = sum(node.cpu_s for node in running.nodes)
        time.sleep(SETTLES_S)
        if sum(node.cpu_s for node in running.nodes) - before < SETTLES_S * 0.1 * len(running.nodes):
            return
    sys.exit("benchmarks: the nodes do not come to rest when all readers are in.")


def _send(port: int, room_id: str, seconds: float, *, hurried: bool) -> int:
    """Send as somebody who does not read in the room, and return how many were sent."""
    sent, answered, end = 0, 0, time.monotonic() + seconds
    with connect(f"ws://127.0.0.1:{port}/socket/websocket?vsn=2.0.0&user_id=sender", max_queue=None) as socket:

        def hear() -> None:
            # The sender hears the messages as well, beside the readers.
            nonlocal answered
            _, ref, _, event, _ = json.loads(socket.recv(timeout=COMES_IN_S))
            if event == "phx_reply" and ref != "1":
                answered = int(ref) - 1

        socket.send(json.dumps(["1", "1", f"room:{room_id}", "phx_join", {}]))
        while time.monotonic() < end:
            sent += 1
            socket.send(json.dumps(["1", str(sent + 1), f"room:{room_id}", "new_message", {"content": CONTENT}]))
            if not hurried:
                time.sleep(1 / PACE)
            while hurried and sent - answered >= UNDER_WAY:
                hear()
        while answered < sent:
            hear()
    return sent
