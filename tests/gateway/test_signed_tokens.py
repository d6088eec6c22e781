"""Signed tokens: what lets somebody in, and everything that does not."""

from __future__ import annotations

import json
import time
from typing import Any

import jwt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from chatx import ConfigError, Identity, InvalidMessage
from chatx.gateway.entry.handshake import Handshake
from chatx.gateway.entry.tokens import LEEWAY_S, SignedTokens, sign

SECRET = "0123456789abcdef0123456789abcdef"
LATER = int(time.time()) + 3600
who = SignedTokens(SECRET)


def shown(token: str | None = None, *, header: str | None = None, param: str | None = None) -> Handshake:
    headers = {} if header is None else {"authorization": header}
    return Handshake({} if param is None else {"token": param}, headers, {}, token, (), {})


def signed(claims: object, secret: str = SECRET, algorithm: str = "HS256") -> str:
    """Return a token with any claims, as somebody else's software may make it."""
    return jwt.api_jws.encode(json.dumps(claims).encode(), secret, algorithm)


@given(
    st.from_regex(r"[a-z]{1,20}", fullmatch=True),
    st.none() | st.integers(LATER, 2**40),
    st.none() | st.lists(st.sampled_from(["a", "b*", "*", "x,y", "ü"]), max_size=5).map(tuple),
)
def test_what_was_signed_is_what_is_read(user_id: str, expires_at: int | None, rooms: tuple[str, ...] | None) -> None:
    identity = Identity(user_id, expires_at, rooms)

    assert who(shown(sign(SECRET, identity))) == identity


def test_a_token_comes_by_the_subprotocol_the_header_or_the_parameter_in_this_order() -> None:
    tokens = [sign(SECRET, Identity(name)) for name in ("first", "second", "third")]

    def user(handshake: Handshake) -> str | None:
        identity = who(handshake)
        return identity.user_id if identity else None

    assert user(shown(param=tokens[2])) == "third"
    assert user(shown(header=f"Bearer {tokens[1]}", param=tokens[2])) == "second"
    assert user(shown(header=f"bearer  {tokens[1]} ")) == "second"
    assert user(shown(tokens[0], header=f"Bearer {tokens[1]}", param=tokens[2])) == "first"
    # The first that is there counts: a bad one is not helped by a good one behind it.
    assert user(shown("bad", header=f"Bearer {tokens[1]}")) is None
    assert user(shown(header=f"Basic {tokens[1]}")) is None
    assert user(shown()) is None


@pytest.mark.parametrize(
    "claims",
    [
        {},
        {"sub": None},
        {"sub": ""},
        {"sub": 1},
        {"sub": ["alice"]},
        {"sub": "a\u0000b"},
        {"sub": "x" * 129},
        {"user_id": "alice"},
        {"sub": "alice", "exp": int(time.time()) - 1},
        {"sub": "alice", "exp": None},
        {"sub": "alice", "exp": True},
        {"sub": "alice", "exp": str(LATER)},
        {"sub": "alice", "exp": [LATER]},
        {"sub": "alice", "exp": float("inf")},
        {"sub": "alice", "exp": float("nan")},
        {"sub": "alice", "exp": 10**400},
        {"sub": "alice", "nbf": LATER},
        {"sub": "alice", "nbf": None},
        {"sub": "alice", "nbf": "0"},
        {"sub": "alice", "nbf": True},
        {"sub": "alice", "nbf": float("nan")},
        {"sub": "alice", "nbf": float("inf")},
        {"sub": "alice", "nbf": 10**400},
        {"sub": "alice", "nbf": -(10**400)},
        {"sub": "alice", "aud": "another-server"},
        {"sub": "alice", "rooms": "a"},
        {"sub": "alice", "rooms": {"a": 1}},
        {"sub": "alice", "rooms": ["a", 1]},
        {"sub": "alice", "rooms": [None]},
        {"sub": "alice", "rooms": 0},
        {"sub": "alice", "rooms": False},
        [],
        "alice",
        None,
    ],
)
def test_claims_that_are_not_understood_let_nobody_in(claims: Any) -> None:
    assert who(shown(signed(claims))) is None


@pytest.mark.parametrize(
    "claims",
    [
        {"iat": LATER},
        {"iat": "yesterday"},
        {"nbf": int(time.time()) - 1},
        {"nbf": time.time() + LEEWAY_S / 2},
    ],
)
def test_a_signer_whose_clock_is_a_little_ahead_lets_in(claims: Any) -> None:
    assert who(shown(signed({"sub": "alice", **claims}))) == Identity("alice")


def test_only_this_secret_and_this_algorithm_count() -> None:
    claims = {"sub": "alice", "exp": LATER}
    token = signed(claims)
    head, body, signature = token.split(".")

    assert who(shown(token)) == Identity("alice", LATER)
    assert who(shown(signed(claims, "another secret of thirty-two bytes"))) is None
    assert who(shown(signed(claims, SECRET * 2, "HS512"))) is None
    assert who(shown(jwt.encode(claims, None, "none"))) is None  # type: ignore[arg-type]  # what an attacker tries
    assert who(shown(f"{head}.{body}.")) is None
    assert who(shown(f"{head}.{signed({'sub': 'eve'}).split('.')[1]}.{signature}")) is None


@given(st.text() | st.binary().map(lambda data: data.decode("latin-1")))
def test_no_text_raises(text: str) -> None:
    assert who(shown(text)) is None


@pytest.mark.parametrize("body", [b"[" * 100_000, b'{"sub":' * 50_000, b"\xff", b'{"sub":"\\ud800"}', b"1" * 5000])
def test_no_body_raises_even_where_it_is_signed(body: bytes) -> None:
    assert who(shown(jwt.api_jws.encode(body, SECRET, "HS256"))) is None


@pytest.mark.parametrize(
    "secret, named",
    [("\udcff" * 32, "UTF-8"), ("-----BEGIN PUBLIC KEY-----\nMFkw\n-----END PUBLIC KEY-----\n", "key")],
    ids=["no UTF-8", "a key"],
)
def test_a_secret_that_can_be_none_is_refused_at_once(secret: str, named: str) -> None:
    for use in (SignedTokens, lambda given: sign(given, Identity("alice"))):
        with pytest.raises(ConfigError, match=named) as refused:
            use(secret)
        assert "MFkw" not in str(refused.value)


def test_without_a_secret_there_is_nothing_to_trust() -> None:
    for secret in ("", None):
        with pytest.raises(ConfigError, match="secret"):
            SignedTokens(secret)  # type: ignore[arg-type]
        with pytest.raises(ConfigError, match="secret"):
            sign(secret, Identity("alice"))  # type: ignore[arg-type]


def test_a_room_that_is_none_is_not_signed() -> None:
    with pytest.raises(InvalidMessage, match="room"):
        sign(SECRET, Identity("alice", rooms=("",)))


@pytest.mark.parametrize(
    "token, told",
    [
        (
            signed({"sub": "alice", "nbf": time.time() + 1e6}),
            ("too early", "nbf is ", " s ahead", "10 s are allowed"),
        ),
        (signed({"sub": "alice", "exp": 1}), ("expired",)),
        (signed({"sub": "alice"}, "another secret of thirty-two bytes"), ("another secret",)),
        (signed({"sub": "alice", "rooms": 7}), ("`rooms`",)),
        ("nonsense", ("none that is understood",)),
        (None, ("without a token", "authToken")),
    ],
)
def test_a_token_that_is_refused_says_why_once_a_minute_and_is_not_in_the_log(
    token: str | None, told: tuple[str, ...], caplog: pytest.LogCaptureFixture
) -> None:
    tokens = SignedTokens(SECRET)
    for _ in range(3):
        assert tokens(shown(token)) is None
    (record,) = caplog.records
    assert record.levelname == "WARNING"
    assert all(each in record.getMessage() for each in told), record.getMessage()
    assert token is None or token not in record.getMessage()
