"""The log that the nodes of a `horde` share, in place of each node's persistence; or `pg`, where there is none.

Rules:
1. It is asked for once, when a node starts, and a node that has it never does without: while it is away sends are
   refused.
2. Only an answer says that it is not there. Then the node is one of `pg`, and says so; whoever cannot be asked has not
   answered, and the start fails.
"""

from __future__ import annotations

import copy
import logging
from dataclasses import replace

from chatx.adapters.room_log import RoomLog
from chatx.config import ChatConfig

logger: logging.Logger = logging.getLogger("chatx")


def over_log(config: ChatConfig, log: RoomLog) -> ChatConfig:
    """Return the options of a node with the log that all of them share: everything is stored, and it is there."""
    # Not by `replace`, which checks them: such a log is nobody's option.
    options = copy.copy(config)
    object.__setattr__(options, "cluster_strategy", "horde")
    object.__setattr__(options, "persistence", log)
    object.__setattr__(options, "durability", "stored")
    return options


def without_log(config: ChatConfig, reason: str) -> ChatConfig:
    """Return the options of a node of `horde` where the broker has no log: those of `pg`.

    Raises:
        ConfigError: They ask for what `pg` cannot do without one, as `durability="stored"` without a store.
    """
    logger.error(
        "cluster_strategy is 'horde', and this chat runs as 'pg': %s What was acknowledged may be lost with the owner "
        "of its room. Enable JetStream, as with nats-server -js, and start all nodes anew.",
        reason,
        extra={"code": "no_jetstream"},
    )
    if config.store is None and config.persistence is None:  # nothing is kept
        return replace(config, cluster_strategy="pg", retention_days=0, retention_messages=0)
    return replace(config, cluster_strategy="pg")
