"""`chatx cluster status`: the nodes and what is between them, as they say it themselves."""

from __future__ import annotations

import asyncio
import json
import time
from typing import Any

from chatx.cli.onlooker import Heard, Onlooker
from chatx.cluster.membership import SUSPECT_S
from chatx.cluster.operating import Look, Looked
from chatx.config import ChatConfig
from chatx.config_checks import without_passwords

_COLUMNS = ("node", "state", "rooms", "followed", "clients", "lag", "heard")

_WIDEST = 26
"""Characters of a name in the table; all of it is in the JSON."""

ASKED_AT_ONCE = 32
"""Nodes that are asked at a time."""


async def look(config: ChatConfig, onlooker: Onlooker) -> dict[str, Any]:
    """Return what is seen of the nodes now.

    Raises:
        BackplaneAway: The broker is away.
    """
    broker = await onlooker.link.broker()
    heard = onlooker.nodes()
    looked: list[Looked | None] = []
    for first in range(0, len(heard), ASKED_AT_ONCE):
        asked = (onlooker.try_asking(each.heartbeat, Look()) for each in heard[first : first + ASKED_AT_ONCE])
        looked += [each if isinstance(each, Looked) else None for each in await asyncio.gather(*asked)]
    up = [each.heartbeat for each in heard if each.heartbeat.state == "up"]
    return {
        "cluster": config.cluster_name,
        "broker": {
            "url": without_passwords(config.cluster_url or ""),
            "name": broker.name,
            "version": broker.version,
            "jetstream": broker.keeps,
            "round_trip_ms": round(broker.round_trip_s * 1000, 2),
        },
        "agree": len({(each.view, each.config) for each in up}) <= 1,
        "nodes": [_node(each, told) for each, told in zip(heard, looked, strict=True)],
    }


def _node(heard: Heard, looked: Looked | None) -> dict[str, Any]:
    heartbeat, silent_s = heard.heartbeat, time.monotonic() - heard.at
    state = heartbeat.state if looked is None else looked.state
    node: dict[str, Any] = {
        "node": heartbeat.node,
        "boot": heartbeat.boot,
        "state": "silent" if silent_s >= SUSPECT_S else state,
        "strategy": heartbeat.strategy,
        "version": heartbeat.version,
        "view": heartbeat.view,
        "config": heartbeat.config,
        "weight": heartbeat.weight,
        "rooms": heartbeat.rooms if looked is None else looked.rooms,
        "heard_ms": round(silent_s * 1000),
        "answers": looked is not None,
    }
    if looked is not None:
        names = ("followed", "behind", "lag_ms", "left", "clients", "isolations")
        node |= {name: getattr(looked, name) for name in names}
        node["suspects"] = list(looked.suspects)
    return node


def shown(status: dict[str, Any], *, as_json: bool, one_line: bool) -> str:
    """Return what was seen as text: JSON, or a table of at most 80 columns where numbers are not enormous."""
    if as_json:
        return json.dumps(status, indent=None if one_line else 2)
    nodes, broker = status["nodes"], status["broker"]
    rows = [_COLUMNS, *(_row(each) for each in nodes)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(_COLUMNS))]
    strategies = "/".join(sorted({each["strategy"] for each in nodes})) or "no strategy"
    jetstream = "with" if broker["jetstream"] else "without"
    away = f"{broker['round_trip_ms']:g} ms away"
    lines = [
        f"{status['cluster']} at {broker['url']}: {len(nodes)} nodes, {strategies}",
        f"broker {_short(broker['name'])} {broker['version']}, {jetstream} JetStream, {away}",
        *("  ".join(text.ljust(width) for text, width in zip(row, widths, strict=True)).rstrip() for row in rows),
        *_remarks(status),
    ]
    return "\n".join(lines)


def _short(name: str) -> str:
    return name if len(name) <= _WIDEST else name[: _WIDEST - 3] + "..."


def _row(node: dict[str, Any]) -> tuple[str, ...]:
    numbers = [str(node.get(each, "-")) for each in ("rooms", "followed", "clients")]
    lag = "-" if "lag_ms" not in node else f"{node['lag_ms'] / 1000:.1f}s"
    return (_short(node["node"]), node["state"], *numbers, lag, f"{node['heard_ms'] / 1000:.1f}s")


def _remarks(status: dict[str, Any]) -> list[str]:
    """Return what is not as it should be."""
    remarks = []
    if not status["agree"]:
        remarks.append("the nodes do not see the same nodes, or have other options; their logs say which")
    for each in status["nodes"]:
        name = each["node"]
        if not each["answers"]:
            remarks.append(f"{name} does not answer")
            continue
        if each["suspects"]:
            remarks.append(f"{name} does not hear {', '.join(each['suspects'])}")
        if each["behind"]:
            remarks.append(f"{name} is behind in {each['behind']} of the rooms that it follows")
        if each["left"]:
            remarks.append(f"{name} has {each['left']} rooms that nobody has taken over yet")
    return remarks
