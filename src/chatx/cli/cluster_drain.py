"""`chatx cluster drain`: a node is asked to drain, and watched until it is gone."""

from __future__ import annotations

import asyncio
import json
import time
from typing import Any

from chatx.cli.command import fail
from chatx.cli.onlooker import Heard, Onlooker
from chatx.cluster.backplane import BackplaneError, NobodyThere
from chatx.cluster.membership import DOWN_S
from chatx.cluster.operating import Drain, Look, Looked
from chatx.cluster.rpc import Done, Refused

LOOKED_S = 0.2
"""Seconds between two looks at what is left."""


async def drained(onlooker: Onlooker, name: str, timeout_s: float, *, as_json: bool) -> int:
    """Have the node of a name drained, wait until it is gone, and return the exit status."""
    began = time.monotonic()
    nodes = onlooker.nodes()
    named = [each for each in nodes if each.heartbeat.node == name]
    if not named:
        there = ", ".join(dict.fromkeys(each.heartbeat.node for each in nodes))
        return fail(f"No node {name!r} is there; {f'these are: {there}.' if there else 'is cluster_name theirs?'}", 1)
    # Of two lives the newer one: the other is gone already, or about to go.
    node = named[-1]
    refusal = await _asked(onlooker, node)
    if refusal is not None:
        return fail(f"Node {name!r} was not drained: {refusal}", 1)
    left, gone = None, False
    while not gone and time.monotonic() - began < timeout_s:
        await asyncio.sleep(LOOKED_S)
        gone = onlooker.gone(node.heartbeat.boot)
        if not gone:
            left, gone = await _left(onlooker, node, left)
    seconds = round(time.monotonic() - began, 1)
    if as_json:
        print(json.dumps(_told(node, left, gone=gone, seconds=seconds)))
    elif gone:
        print(f"{name} is gone, after {seconds:g} s.")
    if gone:
        return 0
    return fail(f"Node {name!r} is not gone after {timeout_s:g} s, and goes on draining; {_said(left)}.", 1)


async def _asked(onlooker: Onlooker, node: Heard) -> str | None:
    """Ask a node to drain, and return why it does not, or None."""
    try:
        answer = await onlooker.ask(node.heartbeat, Drain())
    except NobodyThere:
        return "it has just gone, or its process does not answer; look again in a moment."
    except BackplaneError as error:
        return f"it does not answer, and may drain nevertheless: {error}"
    if isinstance(answer, Refused):
        return answer.reason
    return None if isinstance(answer, Done) else f"it answered with {type(answer).__name__}."


async def _left(onlooker: Onlooker, node: Heard, before: Looked | None) -> tuple[Looked | None, bool]:
    """Return what is left there, as far as is known, and whether it is gone."""
    try:
        answer = await onlooker.ask(node.heartbeat, Look())
    except NobodyThere:
        return before, True
    except BackplaneError:
        boot = node.heartbeat.boot
        heard = next((each for each in onlooker.nodes() if each.heartbeat.boot == boot), None)
        return before, heard is None or time.monotonic() - heard.at >= DOWN_S
    return answer if isinstance(answer, Looked) else before, False


def _said(left: Looked | None) -> str:
    if left is None:
        return "it has not said what is left"
    return f"left are {left.rooms + left.left} rooms and {left.clients} clients"


def _told(node: Heard, left: Looked | None, *, gone: bool, seconds: float) -> dict[str, Any]:
    told: dict[str, Any] = {"node": node.heartbeat.node, "boot": node.heartbeat.boot, "gone": gone, "seconds": seconds}
    if not gone and left is not None:
        told |= {"rooms": left.rooms + left.left, "clients": left.clients}
    return told
