"""What a node answers to the others: it does what its own engine does, for the rooms that are its own."""

from __future__ import annotations

import logging
import time

from chatx.cluster import rpc
from chatx.cluster.entries import Placed
from chatx.cluster.fields import Place
from chatx.cluster.memberships import MEMBERSHIPS_AT_ONCE
from chatx.core.data import Data
from chatx.core.message import Position
from chatx.errors import ChatError, RoomUnavailable
from chatx.runtime.engine import Engine
from chatx.runtime.nodes.abroad import Abroad
from chatx.runtime.nodes.fitting import newest_that_fit, oldest_that_fit
from chatx.runtime.nodes.own_entries import own_entries
from chatx.runtime.nodes.owned import Owned, in_order
from chatx.runtime.nodes.refusals import refused
from chatx.runtime.plain_members import begin_plain, leave_plain

logger: logging.Logger = logging.getLogger("chatx")


class Answering:
    """Answers the other nodes.

    Args:
        engine: This node's engine.
        abroad: What it follows of the others.
        owned: What they follow of it.
    """

    def __init__(self, engine: Engine, abroad: Abroad, owned: Owned) -> None:
        self._engine = engine
        self._abroad = abroad
        self._owned = owned

    async def answer(self, ask: rpc.RoomsAsk) -> rpc.Answer:
        """Return the answer to what another node asks; whatever fails is one too."""
        try:
            return await self._answered(ask)
        except ChatError as error:
            return refused(error)
        except Exception:
            logger.exception("What another node asked failed.", extra={"code": "internal"})
            return refused(RoomUnavailable("The node that has the room failed on this; try again later."))

    async def _answered(self, ask: rpc.RoomsAsk) -> rpc.Answer:
        engine = self._engine
        match ask:
            case rpc.Revoke():
                engine.cut_off(ask.user_id)
                return rpc.Done()
            case rpc.Follow():
                return self._owned.follow(ask, engine.loop.time())
            case rpc.Detach():
                return self._owned.detach(ask)
            case rpc.Members():
                return self._owned.members(ask)
            case rpc.HandOff():
                return await self._abroad.handing_over.hand_off(ask, engine.rooms.find(ask.room_id))
        if not self._abroad.owns(ask.room_id):
            return rpc.Moved()
        match ask:
            case rpc.Submit():
                return await self._submit(ask)
            case rpc.Attach():
                process = await engine.room(ask.room_id)
                # It may have moved while it was opened.
                return rpc.Moved() if process.replica else self._owned.attach(process, ask, engine.loop.time())
            case rpc.Read():
                return await self._read(ask)
            case rpc.Join():
                await begin_plain(engine, ask.room_id, ask.user_id, time.time_ns() // 1_000_000)
            case rpc.Leave():
                await leave_plain(engine, ask.room_id, ask.user_id)
            case rpc.Present():
                present = [each for each in in_order(await engine.presences(ask.room_id)) if each.ref > ask.behind]
                return rpc.Presence(tuple(present[:MEMBERSHIPS_AT_ONCE]), len(present) > MEMBERSHIPS_AT_ONCE)
        return rpc.Done()

    async def _submit(self, ask: rpc.Submit) -> rpc.Answer:
        data = None if ask.data is None else Data.from_text(ask.data)
        durability = "stored" if ask.stored else "sequenced"
        said = (ask.content, ask.key, ask.trusted, durability, data, ask.epoch)
        message = await self._engine.send(ask.room_id, ask.user_id, *said)
        return rpc.Sent(Placed.of(message), message.duplicate)

    async def _read(self, ask: rpc.Read) -> rpc.Answer:
        place = None if ask.place is None else Position(ask.place.epoch, ask.place.offset)
        entries, oldest = await own_entries(self._engine, ask.room_id, place, behind=ask.behind, limit=ask.limit)
        found = oldest_that_fit(entries) if ask.behind else newest_that_fit(entries)
        return rpc.Found(tuple(Placed.of(each) for each in found), None if oldest is None else Place(*oldest))
