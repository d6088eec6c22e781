"""The token of a room: safe in subjects, and the room's own."""

import re
from base64 import b32decode

import pytest
from hypothesis import given
from hypothesis import strategies as st

from chatx.cluster.tokens import room_token
from chatx.core.validation import valid_id
from chatx.errors import InvalidMessage


def _accepted(room_id: str) -> bool:
    try:
        valid_id(room_id, "room_id")
    except InvalidMessage:
        return False
    return True


PLAIN = st.from_regex(re.compile(r"[A-Za-z0-9_-]{1,128}"), fullmatch=True)
ROOM_IDS = st.one_of(
    PLAIN,
    st.text(st.sampled_from("ab. *>é🙂$-_="), min_size=1, max_size=128),
    st.text(min_size=1, max_size=128),
).filter(_accepted)


def room_of(token: str) -> str | None:
    """The room that a token spells out, None for a digest."""
    kind, rest = token[0], token[1:]
    if kind == "p":
        return rest
    if kind == "x":
        return b32decode(rest.upper() + "=" * (-len(rest) % 8)).decode()
    assert kind == "h"
    return None


@given(ROOM_IDS)
def test_token_is_one_part_of_a_subject(room_id: str) -> None:
    assert re.fullmatch(r"[pxh][A-Za-z0-9_-]{1,77}", room_token(room_id))


@given(ROOM_IDS)
def test_token_spells_out_the_room_where_it_is_short(room_id: str) -> None:
    token = room_token(room_id)
    if len(room_id.encode()) <= 48 or re.fullmatch(r"[A-Za-z0-9_-]{1,64}", room_id):
        assert room_of(token) == room_id
    else:
        assert re.fullmatch(r"h[a-z2-7]{32}", token)


@given(ROOM_IDS, ROOM_IDS)
def test_two_rooms_have_two_tokens(one: str, other: str) -> None:
    assert (room_token(one) == room_token(other)) == (one == other)


@pytest.mark.parametrize(
    "room_id, token",
    [
        ("general", "pgeneral"),
        ("a.b", "xmexge"),
        ("café", "xmnqwnq5j"),
        ("general\n", "xm5sw4zlsmfwau"),
        ("x" * 64, "p" + "x" * 64),
        ("x" * 65, "hyzomd6z5lis4rjmuksbr6efzdtl76hdu"),
    ],
)
def test_token_never_changes(room_id: str, token: str) -> None:
    assert room_token(room_id) == token
