"""Who may open a socket: origins, cookies, tokens, and headers that nobody sane sends."""

from __future__ import annotations

import base64
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from chatx.errors import ChatError
from chatx.gateway.entry.handshake import (
    Handshake,
    Identity,
    check_origin,
    chosen_subprotocol,
    handshake_of,
    identity_of,
)
from chatx.gateway.entry.origins import origins_of
from chatx.gateway.entry.refusal import Refused
from chatx.gateway.wire.phoenix import BEARER


def scope_of(
    *,
    origin: str | None = None,
    host: str | None = "chat.example.org",
    cookie: str | None = None,
    scheme: str = "ws",
    query: str = "",
    subprotocols: tuple[str, ...] = (),
) -> dict[str, Any]:
    headers = {"origin": origin, "host": host, "cookie": cookie}
    return {
        "type": "websocket",
        "scheme": scheme,
        "query_string": query.encode(),
        "headers": [(name.encode(), value.encode()) for name, value in headers.items() if value is not None],
        "subprotocols": list(subprotocols),
    }


def allowed(*origins: str, **scope: Any) -> bool:
    return passes(handshake_of(scope_of(**scope)), *origins)


def passes(handshake: Handshake, *origins: str) -> bool:
    try:
        check_origin(handshake, origins_of(origins))
    except Refused:
        return False
    return True


@pytest.mark.parametrize(
    "origin, host, scheme",
    [
        ("http://chat.example.org", "chat.example.org", "ws"),
        ("https://chat.example.org", "chat.example.org", "wss"),
        ("http://chat.example.org", "CHAT.example.ORG", "ws"),
        ("http://localhost:4000", "localhost:4000", "ws"),
        ("http://127.0.0.1:4000", "127.0.0.1:4000", "ws"),
        ("http://[::1]:4000", "[::1]:4000", "ws"),
        ("http://[::1]", "[::1]", "ws"),
        ("http://chat.example.org", "chat.example.org:80", "ws"),
        ("https://chat.example.org", "chat.example.org:443", "wss"),
    ],
)
@pytest.mark.parametrize("cookie", [None, "session=1"])
def test_the_pages_own_origin_may_connect(origin: str, host: str, scheme: str, cookie: str | None) -> None:
    assert allowed(origin=origin, host=host, scheme=scheme, cookie=cookie)


@pytest.mark.parametrize(
    "origin, host, scheme",
    [
        ("http://evil.example.org", "chat.example.org", "ws"),
        ("http://chat.example.org.evil.net", "chat.example.org", "ws"),
        ("http://localhost:4001", "localhost:4000", "ws"),
        ("http://localhost", "localhost:4000", "ws"),
        ("http://127.0.0.1:4000", "localhost:4000", "ws"),
        ("http://[::2]:4000", "[::1]:4000", "ws"),
        ("http://chat.example.org", "chat.example.org", "wss"),
        ("https://chat.example.org", "chat.example.org", "ws"),
        ("http://chat.example.org:0", "chat.example.org", "ws"),
        ("ftp://chat.example.org", "chat.example.org", "ws"),
        ("chat.example.org", "chat.example.org", "ws"),
        ("//chat.example.org", "chat.example.org", "ws"),
        ("null", "null", "ws"),
        ("", "chat.example.org", "ws"),
        ("", "", "ws"),
        ("http://", "", "ws"),
        ("http://chat.example.org:x", "chat.example.org:x", "ws"),
        ("http://chat.example.org:99999", "chat.example.org:99999", "ws"),
        ("http://[::1", "[::1", "ws"),
        ("file://", "chat.example.org", "ws"),
    ],
)
@pytest.mark.parametrize("cookie", [None, "session=1"])
def test_another_origin_may_not_connect(origin: str, host: str, scheme: str, cookie: str | None) -> None:
    assert not allowed(origin=origin, host=host, scheme=scheme, cookie=cookie)


def test_a_listed_origin_may_connect_and_an_unlisted_one_may_not() -> None:
    listed = ("https://example.org", "https://example.net:8443")

    assert allowed(*listed, origin="https://example.org")
    assert allowed(*listed, origin="https://example.net:8443", cookie="session=1")
    assert not allowed(*listed, origin="https://example.net")
    assert not allowed(*listed, origin="http://example.org")
    assert not allowed(*listed, origin="https://example.org.evil.net")


def test_a_star_lets_every_origin_in() -> None:
    assert allowed("*", origin="https://anywhere.example", cookie="session=1")


def test_without_an_origin_only_a_client_without_cookies_may_connect() -> None:
    assert allowed(origin=None)
    assert not allowed(origin=None, cookie="session=1")
    assert not allowed("*", origin=None, cookie="session=1")


@pytest.mark.parametrize("cookie", ["session", "=", "a b=c", "\u00e9=1", ";;", "{}=1; session=2"])
def test_a_cookie_that_cannot_be_read_is_a_cookie_all_the_same(cookie: str) -> None:
    # The application may read what we cannot.
    assert not allowed(origin=None, cookie=cookie)


def test_cookies_are_read_by_name() -> None:
    handshake = handshake_of(scope_of(cookie='session=abc; theme="dark \\"blue\\" \\073"; empty='))

    assert handshake.cookies == {"session": "abc", "theme": 'dark "blue" ;', "empty": ""}


def test_one_odd_cookie_does_not_hide_the_others() -> None:
    # Any script on the page's domain can set such a cookie; it must not log the visitor out.
    handshake = handshake_of(scope_of(cookie='first=1; {"odd": 1}=x; a[b]=y; session=abc'))

    assert handshake.cookies["first"] == "1"
    assert handshake.cookies["session"] == "abc"


def fields(*headers: tuple[str, str]) -> Handshake:
    return handshake_of({**scope_of(), "headers": [(name.encode(), value.encode()) for name, value in headers]})


def test_cookies_in_several_fields_as_http_2_splits_them_are_all_seen() -> None:
    handshake = fields(("cookie", "a=1"), ("x", "y"), ("Cookie", "session=abc; b=2"), ("cookie", 'c="3"'))

    assert handshake.cookies == {"a": "1", "session": "abc", "b": "2", "c": "3"}
    assert handshake.headers["cookie"] == 'a=1; session=abc; b=2; c="3"'


def test_the_fields_of_one_name_are_joined() -> None:
    handshake = fields(("x-forwarded-for", "a, b"), ("X-Forwarded-For", "c"), ("accept", "d"))

    assert handshake.headers == {"x-forwarded-for": "a, b, c", "accept": "d"}


def test_what_may_come_once_and_comes_twice_is_not_chosen_from() -> None:
    own = "http://chat.example.org"
    assert passes(fields(("host", "chat.example.org"), ("origin", own)))
    assert not passes(fields(("host", "chat.example.org"), ("host", "evil.example"), ("origin", own)))
    assert not passes(fields(("host", "chat.example.org"), ("origin", own), ("origin", "http://evil.example")))


def test_params_are_decoded_and_keep_empty_values() -> None:
    handshake = handshake_of(scope_of(query="vsn=2.0.0&name=Zo%C3%AB+B&empty=&bad=%FF"))

    assert handshake.params == {"vsn": "2.0.0", "name": "Zo\u00eb B", "empty": "", "bad": "\ufffd"}


@pytest.mark.parametrize("token", ["s3cret", "a", "ab", "abc", "gr\u00fc\u00df dich", "x" * 1000])
def test_the_token_comes_from_the_subprotocol(token: str) -> None:
    encoded = base64.urlsafe_b64encode(token.encode()).decode().rstrip("=")
    handshake = handshake_of(scope_of(subprotocols=("phoenix", BEARER + encoded)))

    assert handshake.token == token


@pytest.mark.parametrize("offered", [(), ("phoenix",), (BEARER + "a",), (BEARER + "_w",), (BEARER + "\u00e9",)])
def test_what_holds_no_token_gives_none(offered: tuple[str, ...]) -> None:
    assert handshake_of(scope_of(subprotocols=offered)).token is None


def test_the_subprotocol_that_carries_the_token_is_never_echoed() -> None:
    bearer = BEARER + "czNjcmV0"

    assert chosen_subprotocol(handshake_of(scope_of(subprotocols=(bearer, "phoenix")))) == "phoenix"
    assert chosen_subprotocol(handshake_of(scope_of(subprotocols=(bearer,)))) is None
    assert chosen_subprotocol(handshake_of(scope_of(subprotocols=()))) is None


header_names = st.sampled_from([b"origin", b"Origin", b"host", b"cookie", b"x"]) | st.binary(max_size=10)
header_values = st.binary(max_size=60) | st.sampled_from(
    [b"http://[", b"http://[::1]:x", b"a=b; c", b'"\\', b"\x00", b"http://a:99999999", b"http://\xe2\x84\x80.example"]
)


@given(
    headers=st.lists(st.tuples(header_names, header_values), max_size=8),
    query=st.binary(max_size=80),
    subprotocols=st.lists(st.text(max_size=30) | st.text(max_size=30).map(BEARER.__add__), max_size=4),
    scheme=st.sampled_from(["ws", "wss"]),
)
@example([(b"cookie", b"a=b; \x00=1"), (b"origin", b"http://[")], b"a=%", [BEARER + "===="], "ws")
def test_hostile_headers_never_raise(
    headers: list[tuple[bytes, bytes]], query: bytes, subprotocols: list[str], scheme: str
) -> None:
    handshake = handshake_of(
        {"scheme": scheme, "headers": headers, "query_string": query, "subprotocols": subprotocols}
    )

    assert passes(handshake) in (True, False)
    assert chosen_subprotocol(handshake) in ("phoenix", None)
    assert handshake.token is None or isinstance(handshake.token, str)
    assert all(isinstance(value, str) for value in handshake.cookies.values())


def test_of_very_many_params_the_first_hundred_are_read() -> None:
    handshake = handshake_of(scope_of(query="&".join(f"p{number}=1" for number in range(5000))))

    assert list(handshake.params) == [f"p{number}" for number in range(100)]


# Identities


@pytest.mark.parametrize(
    "rooms, allowed, refused",
    [
        (None, ["a", "team-1"], []),
        ((), [], ["a", ""]),
        (("a", "b"), ["a", "b"], ["ab", "A", "c"]),
        (("team-*",), ["team-", "team-1", "team-*"], ["team", "Team-1", "a-team-1"]),
        (("*",), ["a", "team-1"], []),
        (("a*b",), ["a*b"], ["ab", "axb"]),
    ],
)
def test_an_identity_may_join_the_rooms_that_it_names(
    rooms: tuple[str, ...] | None, allowed: list[str], refused: list[str]
) -> None:
    identity = Identity("ada", rooms=rooms)
    assert [room for room in allowed + refused if identity.may_join(room)] == allowed


@pytest.mark.parametrize(
    "fields",
    [
        {"user_id": ""},
        {"user_id": "a\u202eb"},
        {"user_id": 7},
        {"expires_at": float("nan")},  # which is never in the past
        {"expires_at": float("inf")},
        {"expires_at": 10**400},
        {"expires_at": True},
        {"expires_at": "tomorrow"},
        {"rooms": "general"},  # would be seven rooms of one letter
        {"rooms": ["general"]},
        {"rooms": (7,)},
    ],
)
def test_an_identity_with_a_field_that_is_none_is_refused_when_it_is_built(fields: dict[str, Any]) -> None:
    with pytest.raises(ChatError):
        Identity(**{"user_id": "ada", **fields})


def test_an_answer_is_an_identity_a_user_id_or_a_refusal() -> None:
    identity = Identity("ada", rooms=("a",))
    assert identity_of(identity) is identity
    assert identity_of("ada") == Identity("ada")
    assert identity_of(None) is None
    assert identity_of(False) is None
    for answer in (True, 7, b"ada", "", ["ada"]):
        with pytest.raises(ChatError):
            identity_of(answer)
