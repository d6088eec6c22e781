"""A server that only pretends: rooms, keys, history and resume, without I/O and at the pace of a play."""

from __future__ import annotations

from collections import deque
from typing import Any

from msgspec import json

from tests.seeds import Chance

KEPT_S = 300.0
"""How long it remembers a key."""


class PretendRoom:
    """A room's stream.

    Attributes:
        epoch: The present stream.
        said: All that was ever said: every epoch's, with keys.
        messages: What is said in the present stream.
        kept_from: The offset of the oldest that is kept.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self.lives = 0
        self.epoch = f"{name} 0"
        self.said: list[dict[str, Any]] = []
        self.messages: list[dict[str, Any]] = []
        self.kept_from = 1
        self.holes: set[int] = set()
        self.keys: dict[str, tuple[dict[str, Any], float]] = {}

    @property
    def head(self) -> int:
        return len(self.messages)

    def say(self, user: str, content: str, key: str | None, now: float, **more: Any) -> dict[str, Any]:
        message = {
            "id": f"{self.epoch} {self.head + 1}",
            "room_id": self.name,
            "user_id": user,
            "content": content,
            "inserted_at": int(now * 1000),
            "epoch": self.epoch,
            "offset": self.head + 1,
        } | more
        self.messages.append(message)
        self.said.append(message | {"key": key})
        if key is not None:
            self.keys[key] = message, now
        return message

    def begin_anew(self) -> None:
        """Lose everything: another epoch."""
        self.lives += 1
        self.epoch = f"{self.name} {self.lives}"
        self.messages = []
        self.kept_from = 1
        self.holes = set()
        self.keys = {}

    def lose_one(self, chance: Chance) -> None:
        """Forget one message."""
        if self.head:
            self.holes.add(chance.upto(self.head))

    def trim(self, keep: int) -> None:
        self.kept_from = max(self.kept_from, self.head - keep + 1)


class Pretend:
    """The server, with at most one connection, that of the client.

    Attributes:
        to_server: Frames that it has not read.
        to_client: Frames that it has written, and that are on their way.
        answered: How many answers it has written.
        refuses: Once in how many pushes it says no for a while; 0 is never.
    """

    def __init__(self, chance: Chance, rooms: list[str]) -> None:
        self.chance = chance
        self.rooms = {name: PretendRoom(name) for name in rooms}
        self.to_server: deque[str] = deque()
        self.to_client: deque[str] = deque()
        self.answered = 0
        self.refuses = 0
        self._joined: dict[str, str] = {}

    def cut(self) -> None:
        """Lose the connection, and what is on its way."""
        self.to_server.clear()
        self.to_client.clear()
        self._joined.clear()

    def forget(self) -> None:
        """Know of no membership any more, and not say so."""
        self._joined.clear()

    def tell(self, room: str, event: str, payload: Any) -> None:
        """Tell something else of a room."""
        self._write(None, None, room, event, payload)

    def fail(self, room: str) -> None:
        """End a membership."""
        if room in self._joined:
            self._write(self._joined.pop(room), None, room, "phx_error", {"reason": "it failed"})

    def say(self, room: str, user: str, content: str, key: str | None, now: float) -> dict[str, Any]:
        message = self.rooms[room].say(user, content, key, now)
        if room in self._joined:
            self._write(None, None, room, "new_message", message)
        return message

    def read(self, now: float) -> None:
        """Take one frame."""
        join_ref, ref, topic, event, payload = json.decode(self.to_server.popleft())
        if event == "heartbeat":
            self._answer(None, ref, "phoenix", {}, ok=True)
            return
        name = topic.removeprefix("room:")
        if event == "phx_join":
            self._join(name, ref, payload)
        elif self._joined.get(name) != join_ref:
            self._refuse(join_ref, ref, topic, "unmatched_topic", retryable=False)
        elif event == "phx_leave":
            del self._joined[name]
        elif event == "history":
            self._history(self.rooms[name], join_ref, ref, topic, payload)
        else:
            self._new_message(self.rooms[name], join_ref, ref, topic, payload, now)

    def _join(self, name: str, ref: str, place: dict[str, Any]) -> None:
        room = self.rooms[name]
        topic = f"room:{name}"
        if self._says_no():
            self._refuse(ref, ref, topic, "rate_limited", retryable=True, retry_after_ms=500)
            return
        self._joined[name] = ref
        reply: dict[str, Any] = {"epoch": room.epoch, "offset": room.head, "recovered": False}
        missed: list[dict[str, Any]] = []
        if place:
            if place["epoch"] != room.epoch or place["offset"] > room.head:
                reply["reason"] = "epoch_changed"
            elif place["offset"] + 1 < room.kept_from or any(hole > place["offset"] for hole in room.holes):
                reply["reason"] = "too_old"
            else:
                reply["recovered"] = True
                missed = room.messages[place["offset"] :]
        self._answer(ref, ref, topic, reply, ok=True)
        for message in missed:
            self._write(None, None, name, "new_message", message)

    def _history(self, room: PretendRoom, join_ref: str, ref: str, topic: str, asked: dict[str, Any]) -> None:
        if self._says_no():
            self._refuse(join_ref, ref, topic, "adapter_error", retryable=True)
            return
        kept = [each for each in room.messages if each["offset"] >= room.kept_from and each["offset"] not in room.holes]
        limit = min(asked["limit"], self.chance.upto(asked["limit"]) if self.chance.once_in(4) else 200)
        if "after" in asked:
            place = asked["after"]
            if place["epoch"] != room.epoch:
                self._refuse(join_ref, ref, topic, "epoch_changed", retryable=False)
                return
            if place["offset"] + 1 < room.kept_from:
                self._refuse(join_ref, ref, topic, "too_old", retryable=False)
                return
            behind = [each for each in kept if each["offset"] > place["offset"]]
            found, more = behind[:limit], len(behind) > limit
        else:
            place = asked.get("before", {"epoch": room.epoch, "offset": room.head + 1})
            ahead = [each for each in kept if each["offset"] < place["offset"] or place["epoch"] != room.epoch]
            found, more = ahead[-limit:], len(ahead) > limit
        self._answer(join_ref, ref, topic, {"messages": found, "more": more}, ok=True)

    def _new_message(
        self, room: PretendRoom, join_ref: str, ref: str, topic: str, payload: dict[str, Any], now: float
    ) -> None:
        key = payload["key"]
        if self._says_no():  # ahead of any look at the key
            if self.chance.once_in(2):
                self._refuse(join_ref, ref, topic, "closed", retryable=False)
            else:
                self._refuse(join_ref, ref, topic, "rate_limited", retryable=True, retry_after_ms=300)
            return
        known = room.keys.get(key)
        if known is not None and now < known[1] + KEPT_S:
            self._sent(join_ref, ref, topic, known[0], duplicate=True)
            return
        if payload.get("epoch", room.epoch) != room.epoch:
            self._refuse(join_ref, ref, topic, "epoch_changed", retryable=False)
            return
        if payload["content"].startswith("bad"):
            self._refuse(join_ref, ref, topic, "blocked", retryable=False)
            return
        if self._says_no():
            code = self.chance.pick(["rate_limited", "room_overloaded", "adapter_error", "room_unavailable"])
            if code == "room_unavailable" and self.chance.once_in(2):
                self.say(room.name, "ada", payload["content"], key, now)
            after = {"retry_after_ms": self.chance.upto(2000)} if self.chance.once_in(2) else {}
            self._refuse(join_ref, ref, topic, code, retryable=True, **after)
            return
        answered_first = self.chance.once_in(2)
        more = {"data": payload["data"]} if "data" in payload else {}
        message = room.say("ada", payload["content"], key, now, **more)
        if answered_first:
            self._sent(join_ref, ref, topic, message, duplicate=False)
        self._write(None, None, room.name, "new_message", message)
        if not answered_first:
            self._sent(join_ref, ref, topic, message, duplicate=False)

    def _says_no(self) -> bool:
        return self.refuses > 0 and self.chance.once_in(self.refuses)

    def _sent(self, join_ref: str, ref: str, topic: str, message: dict[str, Any], *, duplicate: bool) -> None:
        response = {name: message[name] for name in ("id", "epoch", "offset", "inserted_at")}
        self._answer(join_ref, ref, topic, response | ({"duplicate": True} if duplicate else {}), ok=True)

    def _refuse(self, join_ref: str, ref: str, topic: str, code: str, *, retryable: bool, **more: Any) -> None:
        refusal = {"code": code, "reason": f"because of {code}", "retryable": retryable} | more
        self._answer(join_ref, ref, topic, refusal, ok=False)

    def _answer(self, join_ref: str | None, ref: str, topic: str, response: Any, *, ok: bool) -> None:
        self.answered += 1
        payload = {"status": "ok" if ok else "error", "response": response}
        self.to_client.append(json.encode([join_ref, ref, topic, "phx_reply", payload]).decode())

    def _write(self, join_ref: str | None, ref: str | None, room: str, event: str, payload: Any) -> None:
        self.to_client.append(json.encode([join_ref, ref, f"room:{room}", event, payload]).decode())
