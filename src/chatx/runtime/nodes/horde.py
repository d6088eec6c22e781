"""What a node of `horde` keeps its rooms in: the log that all nodes share, or, where the broker has none, that of `pg`.

Rules:
1. It is looked for once, when a node starts, and a node that has it never does without: while it is away sends are
   refused.
2. Only an answer says that it is not there. Then the node is one of `pg`, and says so; a broker that does not answer
   has not said anything, and the start fails.
3. A store or a persistence adapter is behind the log (`log_over_store.py`).
"""

from __future__ import annotations

import copy
import logging
from dataclasses import replace

from chatx.adapters.boundary import Boundary
from chatx.adapters.room_log import RoomLog
from chatx.cluster.backplane import BackplaneAway, BackplaneError
from chatx.cluster.jetstream import NoJetStream
from chatx.cluster.jetstream_log import JetStreamLog
from chatx.config import ChatConfig
from chatx.errors import AdapterError
from chatx.runtime.nodes.link import Link, stream_of
from chatx.runtime.nodes.log_over_store import LogOverStore
from chatx.telemetry import Telemetry

logger: logging.Logger = logging.getLogger("chatx")


class Ground:
    """What one node's rooms are kept in, from `begin` to `end`.

    Args:
        config: The chat's options, with the store that was opened.
        link: The link to the other nodes.
        telemetry: The chat's.

    Attributes:
        config: The options in effect.
    """

    def __init__(self, config: ChatConfig, link: Link, telemetry: Telemetry) -> None:
        self.config: ChatConfig = config
        self._link = link
        self._telemetry = telemetry
        self._over: LogOverStore | None = None

    async def begin(self) -> None:
        """Reach the broker, and look whether it has a log where the options ask for one.

        Raises:
            AdapterError: It cannot be reached, or does not answer.
            ConfigError: Its log cannot be used; or it has none, and the options ask for what `pg` cannot do.
        """
        try:
            await self._link.connect()
            if self.config.cluster_strategy != "horde":
                return
            stream = stream_of(self.config, self._link)
            await stream.ensure()
        except NoJetStream as error:
            self.config = without_log(self.config, str(error))
        except BackplaneAway as error:
            raise AdapterError(f"The nodes' broker cannot be reached: {error}") from error
        except BackplaneError as error:
            raise AdapterError(
                f"The nodes' broker does not say whether it has a log: {error} If it is well, look at this user and "
                f"its permissions for cx.{self.config.cluster_name}.> and $JS.API."
            ) from error
        else:
            self.config = self._over_log(JetStreamLog(stream))

    def _over_log(self, log: RoomLog) -> ChatConfig:
        store = self.config.persistence
        if store is None:
            return over_log(self.config, log)
        boundary = Boundary(self.config.adapter_timeout_ms, self._telemetry)
        self._over = LogOverStore(log, store, boundary)
        self._over.handing_on.start()
        return over_log(self.config, self._over)

    async def end(self, within_s: float) -> None:
        """Hand on to the store what it lacks, within so many seconds; ahead of the end of the link."""
        if self._over is not None:
            await self._over.close(within_s)


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
    if config.persistence is None:  # nothing is kept
        return replace(config, cluster_strategy="pg", retention_days=0, retention_messages=0)
    return replace(config, cluster_strategy="pg")
