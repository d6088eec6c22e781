"""What nodes say to each other: whole and in bounds, or one error."""

from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from msgspec import msgpack

from chatx.adapters.room_log import APPENDED_AT_ONCE
from chatx.cluster.entries import ENTRIES_AT_ONCE, EntryRow, Placed
from chatx.cluster.fields import RECORD_BYTES, Part, Place
from chatx.cluster.log_record import Logged
from chatx.cluster.memberships import Membership
from chatx.cluster.operating import Drain, List, Listed, Look, Looked, RoomSummary, Show, Shown
from chatx.cluster.polling import POSTED_BYTES, Poll, Polled, PollEnded, Post, Posted, Woken
from chatx.cluster.records import VERSION, BadRecord, Heartbeat, Record, Records, UnknownVersion
from chatx.cluster.rpc import (
    Answer,
    Ask,
    Attach,
    Attached,
    Detach,
    Differ,
    Done,
    Follow,
    Found,
    HandedOff,
    HandOff,
    Join,
    Leave,
    Members,
    Moved,
    Presence,
    Present,
    Read,
    Refused,
    Revoke,
    Sent,
    Submit,
    Told,
)
from chatx.core.data import Data
from chatx.core.message import Entry, Message, UnknownEntry

BOOT = "0193a5c0b7d47c0e"
NODE = "web-1"

MESSAGE = Message(
    "m1", "general", "alice", "Hi 🙂\n", 5, "e", 8, False, True, Data.of({"a": [1, {"b": 2.5}], "é": None})
)
REACTION = UnknownEntry("m2", "general", "bob", "", 6, "e", 9, "reaction", "m1", Data.of({}))
ROW, OTHER_ROW = EntryRow.of(MESSAGE, "key"), EntryRow.of(REACTION)

MEMBER = Membership("alice", "r1", 5)

ASKS: list[Ask] = [
    Submit("general", "alice", "Hi", '{"a":1}', "key", True, False),
    Submit("general", "alice", "Hi", None, "key", False, False, "5f3ad2c0"),
    Submit("general", "alice", "Hi", None, None, False, True),
    Attach("general", BOOT, Place("e", 3), 256, (MEMBER,), True),
    Attach("general", BOOT, None, 256, (), False),
    Members("general", BOOT, (MEMBER,), (MEMBER,), False),
    Follow(BOOT, {"general": 7}),
    Detach("general", BOOT),
    Read("general", Place("e", 3), True, 256),
    Read("general", None, False, 1),
    Join("general", "alice"),
    Leave("general", "alice"),
    Present("general", "r1"),
    Revoke("alice"),
    HandOff("general", BOOT, "take-1"),
    HandOff("general", BOOT, "take-1", 7),
    Drain(),
    Look(),
    List("", 100),
    Show("general"),
    Poll("s" * 43, BOOT, 1, 7),
    PollEnded("s" * 43, BOOT, 1, True),
    Woken(1, True),
    Post("s" * 43, "application/x-ndjson", b"[]\xff"),
]
ANSWERS: list[Answer] = [
    Done(),
    Moved(),
    Refused("rate_limited", "Slow down.", 0.5),
    Refused("blocked", ""),
    Sent(Placed.of(MESSAGE), True),
    Attached(Place("e", 9), 17, (Placed.of(MESSAGE),), True, (MEMBER,), False),
    Differ(("general",)),
    Found((Placed.of(MESSAGE), Placed.of(REACTION)), Place("e", 1)),
    Found((), None),
    Presence((MEMBER,), True),
    HandedOff(Place("e", 9), (Placed.of(MESSAGE, "key"),)),
    HandedOff(None, ()),
    Looked(NODE, "up", 1, 2, 3, 4, 5, 6, 7, ("web-2",)),
    Listed(9, (RoomSummary("general", 1, 2, "e", 3, 4, 5),), "general"),
    Listed(0, (), None),
    Shown(RoomSummary("general", 1, 2, "e", 3, 4, 5), (MEMBER,)),
    Shown(None),
    Polled(200, 8, ("[]",)),
    Posted(413),
]
EXAMPLES: list[Record] = [
    Heartbeat(NODE, BOOT, 3, "up", "horde", VERSION, "ab12", "cd34", 2, 5, 6, 7),
    Logged("general", BOOT, 4, None, True, None, (), (), ()),
    Logged("general", BOOT, 4, Place("e", 7), False, Place("d", 2), (Place("d", 3),), (16, 1), (9,), (ROW, OTHER_ROW)),
    Told("general", BOOT, 3, (Placed.of(MESSAGE),), (MEMBER,), (MEMBER,)),
    *ASKS,
    *ANSWERS,
]
RECORDS = Records()


def raw(*fields: Any, version: int = VERSION) -> bytes:
    return bytes((version,)) + msgpack.encode(fields)


@pytest.mark.parametrize("record", EXAMPLES, ids=lambda record: type(record).__name__)
def test_record_comes_out_as_it_went_in(record: Record) -> None:
    content = RECORDS.encode(record)
    assert RECORDS.decode(content) == record
    assert content[0] == VERSION


def test_every_kind_has_an_example() -> None:
    kinds = {kind for kind in _leaves(Part) if kind.__struct_config__.tag is not None}
    shown = {type(each) for each in EXAMPLES}
    assert kinds == shown


def _leaves(kind: type[Part]) -> set[type[Part]]:
    return {kind}.union(*(_leaves(each) for each in kind.__subclasses__()))


@pytest.mark.parametrize("entry", [MESSAGE, REACTION])
def test_entry_of_any_kind_comes_out_equal(entry: Entry) -> None:
    head = Place(entry.epoch, entry.offset - 1)
    read = RECORDS.decode(
        RECORDS.encode(Logged("general", BOOT, 4, head, True, None, (), (), (), (EntryRow.of(entry),)))
    )
    assert isinstance(read, Logged)
    assert read.placed() == [entry]
    assert Placed.of(entry).entry("general") == entry


def test_entries_of_a_record_stand_behind_its_head() -> None:
    record = Logged("general", BOOT, 4, Place("e", 7), True, None, (), (), (), (ROW, OTHER_ROW))
    assert [entry.offset for entry in record.placed()] == [8, 9]


def test_membership_is_a_meta() -> None:
    meta = Membership("alice", "r1", 5).meta
    assert (meta.ref, meta.online_at) == ("r1", 5)


def test_record_takes_what_an_append_has() -> None:
    assert ENTRIES_AT_ONCE == APPENDED_AT_ONCE


# Versions


def test_node_reads_its_own_version_and_the_one_before() -> None:
    old, new = Records(4), Records(5)
    for record in EXAMPLES:
        assert new.decode(old.encode(record)) == record
        assert old.decode(new.encode(record, 4)) == record


def test_newer_version_is_refused_with_both() -> None:
    with pytest.raises(UnknownVersion, match=r"has version 6; this node reads versions 4 and 5: upgrade this node\."):
        Records(5).decode(Records(6).encode(EXAMPLES[0]))


def test_version_before_the_one_before_is_refused_with_both() -> None:
    with pytest.raises(UnknownVersion, match=r"has version 3; this node reads versions 4 and 5: upgrade the node that"):
        Records(5).decode(Records(3).encode(EXAMPLES[0]))


@pytest.mark.parametrize("version", [0, 2, 128, 255])
def test_first_version_reads_no_other(version: int) -> None:
    with pytest.raises(UnknownVersion, match=rf"has version {version}; this node reads version 1"):
        Records(1).decode(bytes((version,)))


@pytest.mark.parametrize("version", [0, 3, 6])
def test_version_that_nobody_writes_is_not_written(version: int) -> None:
    with pytest.raises(ValueError, match=rf"version {version} was asked for; this node reads versions 4 and 5"):
        Records(5).encode(EXAMPLES[0], version)


# Bad input


def check_bad(content: bytes) -> None:
    """Bytes are a record, or `BadRecord` and nothing else."""
    try:
        record: object = RECORDS.decode(content)
    except BadRecord as error:
        record = error
    assert isinstance(record, (Record, BadRecord))
    if isinstance(record, BadRecord):
        assert 20 < len(str(record)) < 500
        assert str(record).isprintable()


@given(st.binary(max_size=200))
@example(b"")
@example(b"\x01")
def test_any_bytes_are_a_record_or_one_error(content: bytes) -> None:
    check_bad(content)
    check_bad(bytes((VERSION,)) + content)


@given(st.sampled_from(EXAMPLES), st.data())
def test_record_that_was_damaged_is_a_record_or_one_error(record: Record, data: st.DataObject) -> None:
    content = bytearray(RECORDS.encode(record))
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    check_bad(bytes(content))


@pytest.mark.parametrize("record", EXAMPLES, ids=lambda record: type(record).__name__)
def test_record_that_was_cut_off_or_goes_on_is_refused(record: Record) -> None:
    content = RECORDS.encode(record)
    for length in range(len(content)):
        with pytest.raises(BadRecord):
            RECORDS.decode(content[:length])
    with pytest.raises(BadRecord):
        RECORDS.decode(content + b"\x00")


JSON: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.floats() | st.text() | st.binary(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=5,
)


@given(st.sampled_from(EXAMPLES), JSON, st.data())
def test_field_of_another_type_is_the_same_record_or_one_error(record: Record, value: Any, data: st.DataObject) -> None:
    fields = msgpack.decode(RECORDS.encode(record)[1:])
    fields[data.draw(st.integers(0, len(fields) - 1))] = value
    check_bad(raw(*fields))


@pytest.mark.parametrize("depth", [50, 100_000])
@pytest.mark.parametrize("opening", [b"\x91", b"\x81\xa1a"])
def test_too_deep_is_refused(depth: int, opening: bytes) -> None:
    with pytest.raises(BadRecord):
        RECORDS.decode(b"\x01" + opening * depth + b"\xc0")
    fields = msgpack.encode(("told", "general", BOOT, 5))[1:]
    with pytest.raises(BadRecord):
        RECORDS.decode(b"\x01\x97" + fields + opening * depth + b"\xc0")


@pytest.mark.parametrize(
    "size", [b"\xdd\xff\xff\xff\xff", b"\xdc\xff\xff", b"\xdf\xff\xff\xff\xff", b"\xdb\xff\xff\xff\xff"]
)
def test_size_that_is_not_there_is_refused_without_room_being_made_for_it(size: bytes) -> None:
    with pytest.raises(BadRecord):
        RECORDS.decode(b"\x01" + size)
    with pytest.raises(BadRecord):
        RECORDS.decode(b"\x01\x9a" + msgpack.encode(("log", "general", BOOT, 4, None, True, None, (), ()))[1:] + size)


def row(**changes: Any) -> list[Any]:
    fields: dict[str, Any] = {"id": "m1", "user_id": "alice", "content": "Hi", "inserted_at": 5, "kind": "message"}
    fields |= {"target": None, "data": None, "stored": True, "key": None}
    return list((fields | changes).values())


def live(*rows: Any, room_id: Any = "general", boot: Any = BOOT, offset: Any = 8) -> bytes:
    return raw("told", room_id, boot, 3, [(("e", offset), each) for each in rows], (), ())


def logged(*rows: Any, after: Any = ("e", 7), trail: Any = (16, 1)) -> bytes:
    return raw("log", "general", BOOT, 4, after, True, None, (), trail, (), rows)


def heartbeat(**changes: Any) -> bytes:
    fields: dict[str, Any] = {"node": NODE, "boot": BOOT, "number": 3, "state": "up", "strategy": "pg"}
    fields |= {"version": 1, "view": "a", "config": "b", "weight": 1}
    return raw("hb", *(fields | changes).values())


def told(joins: Any = (), leaves: Any = ()) -> bytes:
    return raw("told", "general", BOOT, 3, (), joins, leaves)


PLACED_BY_NOBODY = (("e", 8), row(user_id="\n"))

BAD = {
    "unknown kind": raw("nonsense", 1),
    "no kind": raw(),
    "kind of another type": raw(7),
    "not an array": b"\x01" + msgpack.encode({"type": "hb"}),
    "more fields than there are": raw("join", "general", "alice", 1),
    "unknown ask": raw("explode", "general"),
    "room id with a control character": live(room_id="gen\neral"),
    "room id that is too long": live(room_id="x" * 129),
    "room id that is too long in bytes": live(room_id="é" * 65),
    "no room id": live(room_id=""),
    "user id with a blank at its end": live(row(user_id="alice ")),
    "user id that shows nothing": live(row(user_id="a\u200bb")),
    "key that is empty": live(row(key="")),
    "content with a control character": live(row(content="\x00")),
    "content of bytes": live(row(content=b"Hi")),
    "data that is no JSON": live(row(data="{")),
    "data that is no object": live(row(data="[]")),
    "data that is null": live(row(data="null")),
    "data that is too deep": live(row(data='{"a":' * 40 + "1" + "}" * 40)),
    "data that is much too deep": live(row(data='{"a":' * 100_000 + "1" + "}" * 100_000)),
    "data with a number that clients round": live(row(data='{"a":9007199254740993}')),
    "data with a control character": live(row(data='{"a":"\\u0000"}')),
    "kind of an entry that breaks a line": live(row(kind="a\nb")),
    "row without its end": live(row()[:4]),
    "more entries than an append has": live(*[row()] * (ENTRIES_AT_ONCE + 1)),
    "offset below 0": live(row(), offset=-1),
    "offset of 64 bits": live(row(), offset=2**64 - 1),
    "offset that is a float": live(row(), offset=7.5),
    "entries of a log without a place": logged(row(), after=None),
    "entries of a log of no epoch": logged(row(), after=("", 7)),
    "more entries than a log has in a record": logged(*[row()] * (ENTRIES_AT_ONCE + 1)),
    "trail of a log that is too long": logged(row(), trail=tuple(range(33, 0, -1))),
    "number of a record below 0": logged(row(), trail=(-1,)),
    "boot that is no token": live(boot="0193a5c0.b7d47c0"),
    "boot that breaks a line": live(boot=BOOT + "\n"),
    "node with a blank": heartbeat(node="web 1"),
    "unknown state": heartbeat(state="asleep"),
    "strategy that has no nodes": heartbeat(strategy="local"),
    "weight of 0": heartbeat(weight=0),
    "weight that is too large": heartbeat(weight=17),
    "version of 0": heartbeat(version=0),
    "view that breaks a line": heartbeat(view="a\nb"),
    "secret of a session that is too short": raw("poll", "s" * 42, BOOT, 1, 7),
    "secret of a session that is none": raw("poll", "s" * 42 + ".", BOOT, 1, 7),
    "status of a poll that is none": raw("polled", 500, 1, ()),
    "post that is too large": raw("post", "s" * 43, "", b"x" * (POSTED_BYTES + 1)),
    "trust that is no bool": raw("submit", "general", "alice", "Hi", None, "key", 1, False),
    "limit of 0": raw("read", "general", None, False, 0),
    "limit that is too large": raw("read", "general", None, False, 257),
    "user of no name": raw("join", "general", "\n"),
    "nobody revoked": raw("revoke", "\n"),
    "room of no name that is followed": raw("follow", BOOT, {"\n": 1}),
    "more rooms than are followed at once": raw("follow", BOOT, {f"room-{each}": 1 for each in range(1_001)}),
    "negative pause": raw("refused", "blocked", "", -1.0),
    "endless pause": raw("refused", "blocked", "", float("inf")),
    "pause that is no number": raw("refused", "blocked", "", float("nan")),
    "more members than are said at once": told([("alice", "r", 1)] * 1_001),
    "member of no name": told((), [("\n", "r", 1)]),
    "signal of nobody": raw("live", "general", NODE, BOOT, 4, "e", 7, 16, 15, (), [("", "typing", None)]),
    "signal with data that is none": raw(
        "live", "general", NODE, BOOT, 4, "e", 7, 16, 15, (), [("bob", "typing", "1")]
    ),
    "message that nobody could send": raw("submit", "general", "alice", "\x00", None, "key", False, True),
    "message with data that is none": raw("submit", "general", "alice", "Hi", "7", "key", False, True),
    "message with a key that is none": raw("submit", "general", "alice", "Hi", None, "\n", False, True),
    "answer with a message of nobody": raw("sent", PLACED_BY_NOBODY, False),
    "answer with an entry of nobody": raw("found", [PLACED_BY_NOBODY], None),
    "replica's entry of nobody": raw("attached", ("e", 8), 1, [PLACED_BY_NOBODY], True, (), False),
    "replica's member of no name": raw("attached", ("e", 8), 1, (), True, [("\n", "r", 1)], False),
    "entry of nobody that is handed off": raw("handedoff", None, [PLACED_BY_NOBODY]),
    "entry of nobody that is told": raw("told", "general", BOOT, 3, [PLACED_BY_NOBODY], (), ()),
    "answer with a member of no name": raw("presence", [("\n", "r", 1)], False),
    "follower with a member of no name": raw("attach", "general", BOOT, None, 1, [("\n", "r", 1)], False),
    "member of no name that begins": raw("members", "general", BOOT, [("\n", "r", 1)], (), False),
    "room of no name that differs": raw("differ", ["\n"]),
    "text that is not UTF-8": b"\x01\x92\xa6detach\xa2\xff\xfe",
    "an extension": b"\x01\xc7\x01\x05\x00",
}


@pytest.mark.parametrize("content", BAD.values(), ids=BAD.keys())
def test_bad_record_is_refused(content: bytes) -> None:
    with pytest.raises(BadRecord) as refused:
        RECORDS.decode(content)
    assert 20 < len(str(refused.value)) < 500


def test_what_the_bad_ones_are_made_of_is_good() -> None:
    found = raw("found", [(("e", 8), row())], None)
    for content in (live(row()), heartbeat(), told([("alice", "r", 1)]), found):
        RECORDS.decode(content)


def test_record_that_is_too_long_is_refused_unread() -> None:
    with pytest.raises(BadRecord, match=f"has {RECORD_BYTES + 1} bytes"):
        RECORDS.decode(b"\x01" * (RECORD_BYTES + 1))


def test_record_that_is_too_large_is_not_written() -> None:
    row = EntryRow("m", "alice", "x" * RECORD_BYTES, 5, "message", None, None, True)
    large = Sent(Placed(Place("e", 1), row), False)
    with pytest.raises(BadRecord, match=r"Sent has 10486\d\d bytes, and 1048576 are allowed"):
        RECORDS.encode(large)
