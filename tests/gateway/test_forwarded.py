"""What proxies write about a client, in the forms that are seen."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from chatx.errors import ConfigError
from chatx.gateway.entry.forwarded import Proxies
from chatx.gateway.entry.handshake import fields_of

PROXY = "10.0.0.1"
proxies = Proxies(("10.0.0.0/8", "fd00::/8"))


def client(*values: str, peer: str | None = PROXY) -> str | None:
    return proxies.client(peer, fields_of([(b"x-forwarded-for", value.encode("latin-1")) for value in values]))


def scheme(*values: str, own: str = "http") -> str:
    return proxies.scheme(PROXY, fields_of([(b"x-forwarded-proto", value.encode("latin-1")) for value in values]), own)


@pytest.mark.parametrize(
    "written, address",
    [
        ("203.0.113.7", "203.0.113.7"),
        (" 203.0.113.7 ", "203.0.113.7"),
        ("203.0.113.7:40001", "203.0.113.7"),
        ('"203.0.113.7:40001"', "203.0.113.7"),
        ("2001:db8::7", "2001:db8::7"),
        ("2001:DB8:0::7", "2001:db8::7"),
        ("[2001:db8::7]", "2001:db8::7"),
        ("[2001:db8::7]:40001", "2001:db8::7"),
        ('"[2001:db8::7]:40001"', "2001:db8::7"),
        ("fe80::7%eth0", "fe80::7"),
        ("[fe80::7%25eth0]:40001", "fe80::7"),
        ("::ffff:203.0.113.7", "203.0.113.7"),
        ("[::ffff:203.0.113.7]:40001", "203.0.113.7"),
        ("203.0.113.7,", "203.0.113.7"),
        (", 203.0.113.7, ,", "203.0.113.7"),
        ("198.51.100.1, 203.0.113.7:40001, 10.0.0.2:80", "203.0.113.7"),
        ("203.0.113.7, [fd00::1]:443", "203.0.113.7"),
        ("10.0.0.3:1, 10.0.0.2:80", "10.0.0.3"),
    ],
)
def test_an_address_is_read_in_every_form_that_proxies_write(written: str, address: str) -> None:
    assert client(written) == address


@pytest.mark.parametrize(
    "written",
    [
        *("", "unknown", "_hidden", "_hidden:1", "203.0.113.7.9", "203.0.113.7:x", "203.0.113.7:999999"),
        *("[2001:db8::7", "[]", "[203.0.113.7", "203.0.113.7]", "::1::", "for=203.0.113.7", "\x00", "203.0.113.07"),
    ],
)
def test_what_is_no_address_is_the_proxys(written: str) -> None:
    assert client(written) == PROXY
    assert client(f"203.0.113.7, {written or '-'}") == PROXY


def test_several_fields_are_one_list() -> None:
    assert client("198.51.100.1", "203.0.113.7", "10.0.0.2") == "203.0.113.7"


def test_a_stranger_is_not_believed() -> None:
    assert client("203.0.113.7", peer="192.0.2.1") == "192.0.2.1"
    assert client("203.0.113.7", peer=None) is None
    assert proxies.scheme("192.0.2.1", {"x-forwarded-proto": "https"}, "http") == "http"
    assert proxies.scheme(None, {"x-forwarded-proto": "https"}, "http") == "http"


@pytest.mark.parametrize(
    "written",
    [
        *(("https",), ("HTTPS",), ("wss",), ("WSS ",), ("https,http",), (" https , http",), ('"https"',)),
        *(("https", "http"), ("wss", "ws"), (", https",)),
    ],
)
def test_a_scheme_is_read_in_every_form_that_proxies_write(written: tuple[str, ...]) -> None:
    assert scheme(*written) == "https"


@pytest.mark.parametrize("written", [("http",), ("ws",), ("WS",), ("http,https",), ("http", "https")])
def test_the_scheme_nearest_to_the_client_counts(written: tuple[str, ...]) -> None:
    assert scheme(*written, own="https") == "http"


@pytest.mark.parametrize("written", [(), ("",), ("ftp",), ("on",), ("httpss",), (",",)])
@pytest.mark.parametrize("own", ["http", "https"])
def test_a_scheme_that_is_none_is_the_servers_own(written: tuple[str, ...], own: str) -> None:
    assert scheme(*written, own=own) == own


@given(st.text(alphabet=st.characters(max_codepoint=255)), st.text(alphabet=st.characters(max_codepoint=255)))
def test_nothing_that_is_written_raises(forwarded: str, proto: str) -> None:
    assert client(forwarded) is not None
    assert scheme(proto) in ("http", "https")


def test_a_proxy_that_is_no_address_is_an_error_of_the_configuration() -> None:
    with pytest.raises(ConfigError, match="forwarded_allow_ips"):
        Proxies(("localhost",))
