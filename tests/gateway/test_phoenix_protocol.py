"""The obligations of a Phoenix Channels server, one by one, over raw frames of both versions."""

from __future__ import annotations

import ast
import inspect
import json
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from chatx.gateway.wire import actions, envelope, frames, payloads, phoenix
from chatx.gateway.wire.actions import Action, Close, Join, Leave, Push, Superseded, Write
from chatx.gateway.wire.bounds import MAX_WAITING_BYTES, MAX_WAITING_FRAMES
from chatx.gateway.wire.frames import Version, encode_broadcast
from chatx.gateway.wire.phoenix import PhoenixProtocol
from chatx.gateway.wire.topics import room_topic
from chatx.gateway.wire.transitions import TRANSITIONS, Effect, Input, State
from tests.gateway.phoenix_peer import EXCESS, UNMATCHED, Peer, Received, raw_frame, read

ROOM = "room:lobby"


@pytest.fixture(params=[1, 2], ids=["v1", "v2"])
def peer(request: pytest.FixtureRequest) -> Peer:
    return Peer(request.param)


def only_join(actions: list[Any]) -> Join:
    assert isinstance(actions[-1], Join)
    return actions[-1]


def only_leave(actions: list[Any]) -> Leave:
    (leave,) = actions
    assert isinstance(leave, Leave)
    return leave


def binary_push(join_ref: str, ref: str, topic: str, event: str, payload: bytes = b"\x01\x02") -> bytes:
    parts = [part.encode() for part in (join_ref, ref, topic, event)]
    return bytes([0, *map(len, parts)]) + b"".join(parts) + payload


# Joining, leaving, replies


def test_a_join_reaches_the_shell_and_its_reply_echoes_both_refs(peer: Peer) -> None:
    join = peer.ask("11", "1", ROOM, {"epoch": "e", "offset": 3})
    assert (join.topic, join.room_id, join.join_ref, join.ref) == (ROOM, "lobby", "11", "1")
    assert payloads.parse(join.payload, payloads.Resume).offset == 3
    assert peer.read(peer.protocol.join_ok(join, {"epoch": "e"})) == [
        peer.replied("11", "1", ROOM, "ok", {"epoch": "e"})
    ]
    assert peer.protocol.state(ROOM) is State.JOINED


def test_a_refused_join_is_an_error_reply_and_the_topic_stays_unjoined(peer: Peer) -> None:
    join = peer.ask("11", "1", ROOM)
    refused = {"code": "unauthorized", "reason": "no", "retryable": False}
    assert peer.read(peer.protocol.join_error(join, refused)) == [peer.replied("11", "1", ROOM, "error", refused)]
    assert peer.protocol.state(ROOM) is State.ABSENT
    assert peer.send("11", "2", ROOM, "new_message") == [peer.replied(None, "2", ROOM, "error", UNMATCHED)]


def test_join_push_leave_and_then_nothing_matches(peer: Peer) -> None:
    peer.join("11", "1", ROOM)
    push = peer.pushed("11", "2", ROOM, "new_message", {"content": "hi!"})
    assert (push.room_id, push.join_ref, push.ref, push.event) == ("lobby", "11", "2", "new_message")
    assert payloads.parse(push.payload, payloads.NewMessage).content == "hi!"
    assert peer.read(peer.protocol.reply(push, "ok", {"offset": 1})) == [
        peer.replied("11", "2", ROOM, "ok", {"offset": 1})
    ]
    leave = only_leave(peer.send("11", "3", ROOM, "phx_leave"))
    assert (leave.topic, leave.room_id, leave.join_ref, leave.ref) == (ROOM, "lobby", "11", "3")
    assert peer.read(peer.protocol.left(leave)) == [
        peer.replied("11", "3", ROOM, "ok", {}),
        peer.expected("11", "11", ROOM, "phx_close", {}),
    ]
    for ref in ("4", "5"):
        assert peer.send("11", ref, ROOM, "new_message") == [peer.replied(None, ref, ROOM, "error", UNMATCHED)]


def test_leaving_a_topic_that_is_not_joined_is_confirmed(peer: Peer) -> None:
    assert peer.send("11", "1", ROOM, "phx_leave") == [peer.replied("11", "1", ROOM, "ok", {})]
    assert peer.send(None, "2", "nope", "phx_leave") == [peer.replied(None, "2", "nope", "ok", {})]


def test_a_push_to_a_topic_not_joined_is_unmatched(peer: Peer) -> None:
    assert peer.send(None, "1", ROOM, "new_message", {"content": "hi!"}) == [
        peer.replied(None, "1", ROOM, "error", UNMATCHED)
    ]


@pytest.mark.parametrize("topic", ["unmatched-topic", "room", "room:", "Room:x", "phoenix", "", "room:" + "x" * 251])
def test_a_join_of_no_room_is_unmatched_and_has_no_join_ref(peer: Peer, topic: str) -> None:
    assert peer.send("11", "1", topic, "phx_join") == [peer.replied(None, "1", topic, "error", UNMATCHED)]
    assert peer.protocol.state(topic) is State.ABSENT


@pytest.mark.parametrize("room_id", ["a", "room:a", "ü", "a b", "x" * 250])
def test_the_room_id_is_what_follows_the_prefix(peer: Peer, room_id: str) -> None:
    assert peer.ask("1", "1", room_topic(room_id)).room_id == room_id


def test_the_protocol_events_of_a_server_are_pushes_from_a_client(peer: Peer) -> None:
    peer.join("11", "1", ROOM)
    for event in ("phx_reply", "phx_close", "phx_error", "heartbeat", ""):
        assert peer.pushed("11", "2", ROOM, event).event == event


def test_a_push_without_ref_is_answered_without_ref(peer: Peer) -> None:
    peer.join("11", "1", ROOM)
    push = peer.pushed("11", None, ROOM, "new_message")
    assert peer.read(peer.protocol.reply(push, "ok", {})) == [peer.replied("11", None, ROOM, "ok", {})]


# Heartbeats


def test_a_heartbeat_is_answered_without_the_shell(peer: Peer) -> None:
    bodies: list[Any] = [{}, [], "x", None]
    for payload in bodies:
        assert peer.send(None, "1", "phoenix", "heartbeat", payload) == [peer.replied(None, "1", "phoenix", "ok", {})]


def test_another_event_on_topic_phoenix_is_unmatched(peer: Peer) -> None:
    assert peer.send(None, "1", "phoenix", "beat") == [peer.replied(None, "1", "phoenix", "error", UNMATCHED)]


# join_ref


@pytest.mark.parametrize("event", ["new_message", "phx_leave"])
@pytest.mark.parametrize("stale", ["10", "", 11])
def test_a_stale_join_ref_is_dropped(peer: Peer, event: str, stale: Any) -> None:
    peer.join("11", "1", ROOM)
    assert peer.send(stale, "2", ROOM, event) == []
    assert peer.protocol.state(ROOM) is State.JOINED


def test_a_null_join_ref_is_accepted_on_pushes_and_leaves(peer: Peer) -> None:
    peer.join("11", "1", ROOM)
    push = peer.pushed(None, "2", ROOM, "new_message")
    assert push.join_ref == "11"
    leave = only_leave(peer.send(None, "3", ROOM, "phx_leave"))
    assert peer.read(peer.protocol.left(leave))[-1] == peer.expected("11", "11", ROOM, "phx_close", {})


def test_a_join_without_join_ref_is_named_by_its_ref(peer: Peer) -> None:
    assert peer.ask(None, "1", ROOM).join_ref == "1"
    peer.protocol = PhoenixProtocol(peer.version)
    peer.join(None, "1", ROOM)
    assert isinstance(peer.send("1", "2", ROOM, "new_message")[0], Push)
    assert peer.send("2", "3", ROOM, "new_message") == []
    assert peer.read(peer.protocol.channel_closed(ROOM)) == [peer.expected("1", "1", ROOM, "phx_close", {})]


def test_a_membership_without_any_ref_takes_no_other_for_its_own(peer: Peer) -> None:
    peer.join(None, None, ROOM)
    assert isinstance(peer.send(None, "1", ROOM, "new_message")[0], Push)
    assert peer.send("1", "2", ROOM, "new_message") == []


def test_refs_that_are_numbers_are_echoed_as_numbers(peer: Peer) -> None:
    join = peer.ask(11, 1, ROOM)
    assert peer.read(peer.protocol.join_ok(join, {})) == [peer.replied(11, 1, ROOM, "ok", {})]
    assert isinstance(peer.send(11, 2, ROOM, "new_message")[0], Push)


# A second join


def test_a_second_join_closes_the_first_with_the_old_join_ref(peer: Peer) -> None:
    peer.join("11", "1", ROOM)
    superseded, closed, join = peer.send("12", "2", ROOM, "phx_join")
    assert superseded == Superseded(ROOM, "lobby", "11")
    assert closed == peer.expected("11", "11", ROOM, "phx_close", {})
    assert isinstance(join, Join)
    assert peer.read(peer.protocol.join_ok(join, {})) == [peer.replied("12", "2", ROOM, "ok", {})]
    assert peer.send("11", "3", ROOM, "new_message") == []
    assert peer.pushed("12", "4", ROOM, "new_message").join_ref == "12"


def test_a_second_join_while_the_first_is_pending_waits_for_it_and_then_closes_it(peer: Peer) -> None:
    first = peer.ask("11", "1", ROOM)
    assert peer.send("12", "2", ROOM, "phx_join") == []
    replied, superseded, closed, second = peer.read(peer.protocol.join_ok(first, {}))
    assert replied == peer.replied("11", "1", ROOM, "ok", {})
    assert superseded == Superseded(ROOM, "lobby", "11")
    assert closed == peer.expected("11", "11", ROOM, "phx_close", {})
    assert isinstance(second, Join)
    assert second.join_ref == "12"


def test_a_second_join_after_the_first_was_refused_supersedes_nothing(peer: Peer) -> None:
    first = peer.ask("11", "1", ROOM)
    assert peer.send("12", "2", ROOM, "phx_join") == []
    replied, second = peer.read(peer.protocol.join_error(first, {}))
    assert replied == peer.replied("11", "1", ROOM, "error", {})
    assert isinstance(second, Join)


def test_a_reply_to_a_push_of_a_superseded_membership_still_goes_out(peer: Peer) -> None:
    peer.join("11", "1", ROOM)
    push = peer.pushed("11", "2", ROOM, "new_message")
    only_join(peer.send("12", "3", ROOM, "phx_join"))
    assert peer.read(peer.protocol.reply(push, "ok", {})) == [peer.replied("11", "2", ROOM, "ok", {})]


# The bound on joins


def test_the_join_after_the_hundredth_is_refused(peer: Peer) -> None:
    for index in range(100):
        peer.join(str(index), str(index), f"room:{index}")
    assert peer.send("100", "100", "room:100", "phx_join") == [peer.replied("100", "100", "room:100", "error", EXCESS)]


def test_max_joins_counts_pending_joins_and_leaves_and_frees_what_ended(peer: Peer) -> None:
    peer.protocol = PhoenixProtocol(peer.version, max_joins=2)
    pending = peer.ask("1", "1", "room:a")
    peer.join("2", "2", "room:b")
    leave = only_leave(peer.send("2", "3", "room:b", "phx_leave"))
    assert peer.send("4", "4", "room:c", "phx_join") == [peer.replied("4", "4", "room:c", "error", EXCESS)]
    peer.protocol.left(leave)
    peer.ask("5", "5", "room:c")
    peer.protocol.join_error(pending, {})
    peer.ask("6", "6", "room:d")


def test_joining_a_joined_topic_anew_is_within_the_bound(peer: Peer) -> None:
    peer.protocol = PhoenixProtocol(peer.version, max_joins=1)
    peer.join("1", "1", ROOM)
    only_join(peer.send("2", "2", ROOM, "phx_join"))


# What comes while a join or a leave is under way


def test_frames_to_a_joining_topic_wait_and_follow_the_reply_in_order(peer: Peer) -> None:
    join = peer.ask("11", "1", ROOM)
    assert peer.send("11", "2", ROOM, "new_message") == []
    assert peer.send("10", "3", ROOM, "new_message") == []
    assert peer.send("11", "4", ROOM, "new_message") == []
    replied, second, fourth = peer.read(peer.protocol.join_ok(join, {}))
    assert replied == peer.replied("11", "1", ROOM, "ok", {})
    assert isinstance(second, Push)
    assert isinstance(fourth, Push)
    assert (second.ref, fourth.ref) == ("2", "4")


def test_frames_that_waited_for_a_refused_join_are_unmatched(peer: Peer) -> None:
    join = peer.ask("11", "1", ROOM)
    peer.send("11", "2", ROOM, "new_message")
    peer.send("11", "3", ROOM, "phx_leave")
    assert peer.read(peer.protocol.join_error(join, {})) == [
        peer.replied("11", "1", ROOM, "error", {}),
        peer.replied(None, "2", ROOM, "error", UNMATCHED),
        peer.replied("11", "3", ROOM, "ok", {}),
    ]


def test_a_client_that_gave_a_join_up_leaves_and_joins_anew(peer: Peer) -> None:
    first = peer.ask("11", "1", ROOM)
    assert peer.send("11", "2", ROOM, "phx_leave") == []
    assert peer.send("13", "3", ROOM, "phx_join") == []
    replied, leave = peer.read(peer.protocol.join_ok(first, {}))
    assert replied == peer.replied("11", "1", ROOM, "ok", {})
    assert isinstance(leave, Leave)
    confirmed, closed, second = peer.read(peer.protocol.left(leave))
    assert confirmed == peer.replied("11", "2", ROOM, "ok", {})
    assert closed == peer.expected("11", "11", ROOM, "phx_close", {})
    assert isinstance(second, Join)
    assert second.join_ref == "13"


def test_frames_to_a_leaving_topic_wait_and_are_each_answered(peer: Peer) -> None:
    peer.join("11", "1", ROOM)
    leave = only_leave(peer.send("11", "2", ROOM, "phx_leave"))
    assert peer.send("11", "3", ROOM, "new_message") == []
    assert peer.send("11", "4", ROOM, "phx_leave") == []
    assert peer.read(peer.protocol.left(leave)) == [
        peer.replied("11", "2", ROOM, "ok", {}),
        peer.expected("11", "11", ROOM, "phx_close", {}),
        peer.replied(None, "3", ROOM, "error", UNMATCHED),
        peer.replied("11", "4", ROOM, "ok", {}),
    ]


def test_other_topics_and_heartbeats_do_not_wait(peer: Peer) -> None:
    peer.join("1", "1", "room:b")
    peer.ask("2", "2", "room:a")
    assert isinstance(peer.send("1", "3", "room:b", "new_message")[0], Push)
    assert peer.send(None, "4", "phoenix", "heartbeat") == [peer.replied(None, "4", "phoenix", "ok", {})]


def test_too_many_waiting_frames_close_the_connection(peer: Peer) -> None:
    peer.ask("11", "1", ROOM)
    for _ in range(MAX_WAITING_FRAMES):
        assert peer.send("11", "2", ROOM, "new_message") == []
    (close,) = peer.send("11", "3", ROOM, "new_message")
    assert isinstance(close, Close)
    assert close.code == 1008
    assert "join or leave is under way" in close.reason


def test_the_bytes_that_wait_are_bounded_over_all_topics(peer: Peer) -> None:
    large = {"content": "x" * 60_000}
    for index in range(2):
        peer.ask("1", "1", f"room:{index}")
    for index in range(MAX_WAITING_BYTES // 60_100):
        assert peer.send(None, "2", f"room:{index % 2}", "new_message", large) == []
    (close,) = peer.send(None, "3", "room:0", "new_message", large)
    assert isinstance(close, Close)
    assert close.code == 1008


def test_bytes_that_have_waited_count_no_more(peer: Peer) -> None:
    large = {"content": "x" * 60_000}
    peer.join("1", "1", ROOM)
    for round_ in range(4):
        join = only_join(peer.send("1", "1", ROOM, "phx_join"))
        for _ in range(3):
            assert peer.send(None, str(round_), ROOM, "new_message", large) == []
        assert len(peer.protocol.join_ok(join, {})) == 4
    assert not peer.protocol.closed


# What the server starts


def test_a_push_of_the_server_carries_the_membership(peer: Peer) -> None:
    peer.join("11", "1", ROOM)
    assert peer.read(peer.protocol.push(ROOM, "presence_state", {"a": {"metas": []}})) == [
        peer.expected("11", None, ROOM, "presence_state", {"a": {"metas": []}})
    ]


def test_a_push_of_the_server_goes_to_joined_topics_only(peer: Peer) -> None:
    assert peer.protocol.push(ROOM, "e", {}) == []
    join = peer.ask("11", "1", ROOM)
    assert peer.protocol.push(ROOM, "e", {}) == []
    peer.protocol.join_ok(join, {})
    only_leave(peer.send("11", "2", ROOM, "phx_leave"))
    assert peer.protocol.push(ROOM, "e", {}) == []


def test_a_channel_closed_by_the_server_is_gone(peer: Peer) -> None:
    peer.join("11", "1", ROOM)
    assert peer.read(peer.protocol.channel_closed(ROOM)) == [peer.expected("11", "11", ROOM, "phx_close", {})]
    assert peer.send("11", "2", ROOM, "new_message") == [peer.replied(None, "2", ROOM, "error", UNMATCHED)]


@pytest.mark.parametrize("reason", [None, {"code": "room_unavailable"}])
def test_a_channel_that_failed_sends_phx_error_and_can_be_joined_again(
    peer: Peer, reason: dict[str, str] | None
) -> None:
    peer.join("11", "1", ROOM)
    assert peer.read(peer.protocol.channel_error(ROOM, reason)) == [
        peer.expected("11", "11", ROOM, "phx_error", reason or {"reason": "channel_crash"})
    ]
    peer.ask("12", "2", ROOM)


@pytest.mark.parametrize("call", [PhoenixProtocol.channel_closed, PhoenixProtocol.channel_error])
def test_ending_a_topic_that_is_not_joined_does_nothing(
    peer: Peer, call: Callable[[PhoenixProtocol, str], list[Action]]
) -> None:
    assert call(peer.protocol, ROOM) == []
    join = peer.ask("11", "1", ROOM)
    assert call(peer.protocol, ROOM) == []
    peer.protocol.join_ok(join, {})
    leave = only_leave(peer.send("11", "2", ROOM, "phx_leave"))
    assert call(peer.protocol, ROOM) == []
    assert len(peer.protocol.left(leave)) == 2


def test_a_broadcast_is_one_text_for_all_connections_of_a_version(peer: Peer) -> None:
    text = encode_broadcast(peer.version, ROOM, "new_message", {"content": "hi"})
    assert read(peer.version, text) == peer.expected(None, None, ROOM, "new_message", {"content": "hi"})


# A shell that answers what does not wait


def test_answering_twice_is_the_shells_mistake(peer: Peer) -> None:
    join = peer.ask("11", "1", ROOM)
    peer.protocol.join_ok(join, {})
    for answer in (peer.protocol.join_ok, peer.protocol.join_error):
        with pytest.raises(RuntimeError, match="Answer each Join and each Leave exactly once"):
            answer(join, {})
    leave = only_leave(peer.send("11", "2", ROOM, "phx_leave"))
    peer.protocol.left(leave)
    with pytest.raises(RuntimeError, match="exactly once"):
        peer.protocol.left(leave)


def test_an_answer_to_an_older_join_is_the_shells_mistake(peer: Peer) -> None:
    old = peer.ask("11", "1", ROOM)
    peer.protocol.join_error(old, {})
    new = peer.ask("11", "1", ROOM)
    with pytest.raises(RuntimeError, match="does not wait"):
        peer.protocol.join_ok(old, {})
    assert len(peer.protocol.join_ok(new, {})) == 1


def test_an_answer_that_cannot_be_encoded_leaves_the_join_waiting(peer: Peer) -> None:
    join = peer.ask("11", "1", ROOM)
    with pytest.raises(UnicodeEncodeError):
        peer.protocol.join_ok(join, {"epoch": "\ud800"})
    assert peer.read(peer.protocol.join_error(join, {})) == [peer.replied("11", "1", ROOM, "error", {})]


# What is no frame


@pytest.mark.parametrize(
    "data",
    [
        "",
        "null",
        "[]",
        "{}",
        "x",
        '[null,"1","t","e"]',
        "[" * 60_000,
        '[null,1.5,"t","e",{}]',
        "\ud800",
        "é\ud800",
        '["1","2","t","e"',
        '[null,null,5,"e",{}]',
    ],
)
def test_a_malformed_frame_closes_with_1007(peer: Peer, data: str) -> None:
    (close,) = peer.protocol.receive(data)
    assert isinstance(close, Close)
    assert close.code == 1007
    assert close.reason.startswith("malformed frame: ")
    assert len(close.reason.encode()) <= 123


def frame_of(version: Version, size: int, letter: str) -> str:
    empty = raw_frame(version, None, "1", "phoenix", "heartbeat", {"x": ""})
    room = size - len(empty)
    assert room % len(letter.encode()) == 0
    return empty.replace('""', '"' + letter * (room // len(letter.encode())) + '"')


@pytest.mark.parametrize("letter", ["x", "é"])
def test_a_frame_may_have_as_many_bytes_as_the_bound(peer: Peer, letter: str) -> None:
    bound = len(raw_frame(peer.version, None, "1", "phoenix", "heartbeat", {"x": ""})) + 60
    peer.protocol = PhoenixProtocol(peer.version, max_frame_bytes=bound)
    (reply,) = peer.protocol.receive(frame_of(peer.version, bound, letter))
    assert isinstance(reply, Write)
    (close,) = peer.protocol.receive(frame_of(peer.version, bound + 2, letter))
    assert close == Close(1009, f"frame of {bound + 2} bytes; expected at most {bound}")


def test_the_default_bound_of_a_frame_is_64_kib(peer: Peer) -> None:
    (close,) = peer.protocol.receive(b"\x00" * (65_536 + 1))
    assert close == Close(1009, "frame of 65537 bytes; expected at most 65536")


def test_after_a_close_nothing_more_comes_out(peer: Peer) -> None:
    peer.join("1", "1", "room:a")
    push = peer.pushed("1", "2", "room:a", "new_message")
    join = peer.ask("3", "3", "room:b")
    assert not peer.protocol.closed
    peer.protocol.receive("")
    assert peer.protocol.closed
    assert peer.send(None, "4", "phoenix", "heartbeat") == []
    assert peer.protocol.join_ok(join, {}) == []
    assert peer.protocol.reply(push, "ok", {}) == []
    assert peer.protocol.push("room:a", "e", {}) == []
    assert peer.protocol.channel_closed("room:a") == []
    assert peer.protocol.channel_error("room:a") == []


# Binary pushes


def v2_response(actions: list[Action]) -> tuple[Any, Any, dict[str, Any]]:
    (send,) = actions
    assert isinstance(send, Write)
    join_ref, ref, _, event, payload = json.loads(send.text)
    assert (event, payload["status"]) == ("phx_reply", "error")
    return join_ref, ref, payload["response"]


def test_a_binary_push_is_refused_and_the_channel_stays_up() -> None:
    peer = Peer(2)
    peer.join("11", "1", ROOM)
    join_ref, ref, response = v2_response(peer.protocol.receive(binary_push("11", "2", ROOM, "new_message")))
    assert (join_ref, ref, response["code"]) == ("11", "2", "invalid_message")
    assert "text frame" in response["reason"]
    assert isinstance(peer.send("11", "3", ROOM, "new_message")[0], Push)


def test_a_binary_join_is_refused() -> None:
    peer = Peer(2)
    join_ref, ref, response = v2_response(peer.protocol.receive(binary_push("11", "1", ROOM, "phx_join")))
    assert (join_ref, ref, response["code"]) == ("11", "1", "invalid_message")
    assert peer.protocol.state(ROOM) is State.ABSENT
    peer.join("12", "2", ROOM)
    v2_response(peer.protocol.receive(binary_push("13", "3", ROOM, "phx_join")))
    assert peer.protocol.state(ROOM) is State.JOINED


def test_a_binary_push_is_judged_by_its_join_ref_and_topic_first() -> None:
    peer = Peer(2)
    _, _, response = v2_response(peer.protocol.receive(binary_push("11", "1", ROOM, "new_message")))
    assert response == UNMATCHED
    peer.join("11", "2", ROOM)
    assert peer.protocol.receive(binary_push("10", "3", ROOM, "new_message")) == []


def test_a_binary_leave_leaves_and_a_binary_heartbeat_is_answered() -> None:
    peer = Peer(2)
    peer.join("11", "1", ROOM)
    only_leave(peer.protocol.receive(binary_push("11", "2", ROOM, "phx_leave")))
    assert peer.read(peer.protocol.receive(binary_push("", "3", "phoenix", "heartbeat"))) == [
        peer.replied(None, "3", "phoenix", "ok", {})
    ]


# The table


def test_every_effect_of_the_table_is_carried_out_and_no_other() -> None:
    named = {row.effect for rows in TRANSITIONS.values() for row in rows.values()}
    carried_out = [*PhoenixProtocol._ON_FRAME, *PhoenixProtocol._ON_CALL]
    assert named == set(Effect) == set(carried_out)
    assert len(carried_out) == len(set(carried_out))


def test_every_state_takes_every_frame_that_can_come_in_it() -> None:
    readable = {Input.JOIN, Input.LEAVE, Input.PUSH}
    anywhere = readable | {Input.JOIN_UNREADABLE, Input.LEAVE_UNREADABLE, Input.PUSH_UNREADABLE}
    assert set(TRANSITIONS) == set(State)
    for rows in TRANSITIONS.values():
        assert anywhere | {Input.CLOSED, Input.FAILED} <= set(rows)
    assert Input.STALE in TRANSITIONS[State.JOINED]
    assert {Input.JOIN_UNMATCHED, Input.JOIN_EXCESS} <= set(TRANSITIONS[State.ABSENT])


# Payloads that cannot be read


def unreadable(peer: Peer, join_ref: Any, ref: Any, topic: str, event: str) -> list[Action | Received]:
    text = raw_frame(peer.version, join_ref, ref, topic, event, {"x": 1})
    return peer.read(peer.protocol.receive(text.replace('"x":1', '"content":"cut \\ud83d"')))


def assert_refused(answer: list[Action | Received], ref: str, topic: str, join_ref: str | None) -> None:
    (reply,) = answer
    assert isinstance(reply, Received)
    assert (reply.join_ref, reply.ref, reply.topic, reply.event) == (join_ref, ref, topic, "phx_reply")
    assert (reply.payload["status"], reply.payload["response"]["code"]) == ("error", "invalid_message")
    assert "half a surrogate pair" in reply.payload["response"]["reason"]


@pytest.mark.parametrize("event", ["new_message", "history", "access_token", "phx_join", "phx_leave", "whatever"])
def test_an_unreadable_payload_is_refused_and_the_membership_stays(peer: Peer, event: str) -> None:
    named = "1" if peer.version == 2 else None
    peer.join("1", "1", ROOM)
    assert_refused(unreadable(peer, "1", "2", ROOM, event), "2", ROOM, named)
    assert peer.protocol.state(ROOM) is State.JOINED
    assert isinstance(peer.send("1", "3", ROOM, "new_message")[0], Push)


def test_an_unreadable_join_begins_nothing_and_an_unreadable_heartbeat_is_refused(peer: Peer) -> None:
    named = "1" if peer.version == 2 else None
    assert_refused(unreadable(peer, "1", "1", ROOM, "phx_join"), "1", ROOM, named)
    assert peer.protocol.state(ROOM) is State.ABSENT
    assert_refused(unreadable(peer, None, "2", "phoenix", "heartbeat"), "2", "phoenix", None)
    assert not peer.protocol.closed


def test_an_unreadable_payload_is_judged_by_its_join_ref_and_topic_first(peer: Peer) -> None:
    assert unreadable(peer, "1", "1", ROOM, "new_message") == [peer.replied(None, "1", ROOM, "error", UNMATCHED)]
    peer.join("2", "2", ROOM)
    assert unreadable(peer, "1", "3", ROOM, "new_message") == []


def test_an_unreadable_payload_waits_for_its_turn(peer: Peer) -> None:
    named = "1" if peer.version == 2 else None
    join = peer.ask("1", "1", ROOM)
    assert unreadable(peer, "1", "2", ROOM, "new_message") == []
    ok, refused = peer.read(peer.protocol.join_ok(join, {}))
    assert isinstance(ok, Received)
    assert ok.ref == "1"
    assert_refused([refused], "2", ROOM, named)


def test_a_frame_with_no_topic_that_can_be_read_is_answered_on_the_topic_of_the_socket(peer: Peer) -> None:
    peer.join("1", "1", ROOM)
    text = raw_frame(peer.version, "1", "2", "x", "new_message").replace('"x"', "5")
    (reply,) = peer.read(peer.protocol.receive(text))
    assert isinstance(reply, Received)
    assert (reply.ref, reply.topic, reply.payload["status"]) == ("2", "phoenix", "error")
    assert reply.payload["response"]["code"] == "invalid_message"
    assert peer.protocol.state(ROOM) is State.JOINED


@pytest.mark.parametrize("module", [actions, envelope, frames, payloads, phoenix])
def test_the_machine_has_no_clock_no_loop_and_no_randomness(module: Any) -> None:
    imported = set()
    for node in ast.walk(ast.parse(inspect.getsource(module))):
        if isinstance(node, ast.Import):
            imported |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            imported.add((node.module or "").split(".")[0])
    assert imported <= {
        "__future__",
        "chatx",
        "collections",
        "enum",
        "itertools",
        "math",
        "msgspec",
        "re",
        "typing",
    }


# Hostile input

json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=6) | st.dictionaries(st.text(max_size=5), inner, max_size=4),
    max_leaves=12,
)
topics = st.sampled_from([ROOM, "room:b", "phoenix", "nope"])
events = st.sampled_from(["phx_join", "phx_leave", "heartbeat", "new_message"])
near_frames = st.one_of(
    st.tuples(json_values, json_values, topics, events, json_values).map(json.dumps),
    st.fixed_dictionaries(
        {"topic": topics, "event": events, "payload": json_values, "ref": json_values},
        optional={"join_ref": json_values, "x": json_values},
    ).map(json.dumps),
    st.builds(binary_push, st.text(max_size=9), st.text(max_size=9), topics, events, st.binary()),
    st.binary(max_size=40).map(lambda tail: b"\x00" + tail),
)
anything = st.text(alphabet=st.characters()) | st.binary() | json_values.map(json.dumps) | near_frames


@given(version=st.sampled_from([1, 2]), inputs=st.lists(anything, max_size=20))
@example(version=2, inputs=["\ud800"])
@example(version=1, inputs=[b"\xff"])
def test_no_input_raises_and_only_the_last_action_closes(version: Version, inputs: list[str | bytes]) -> None:
    protocol = PhoenixProtocol(version, max_joins=1)
    for data in inputs:
        was_closed = protocol.closed
        given_out = protocol.receive(data)
        assert not (was_closed and given_out)
        for action in given_out:
            if isinstance(action, Close):
                assert protocol.closed
                assert given_out == [action]
                assert action.code in {1007, 1008, 1009}
                assert len(action.reason.encode()) <= 123
            elif isinstance(action, Write):
                read(version, action.text)
