"""Origins as people list them, and as browsers send them."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from chatx import Chat
from chatx.errors import ConfigError
from chatx.gateway import NativeServer
from chatx.gateway.entry.origins import origins_of


@pytest.mark.parametrize(
    "listed, sent",
    [
        ("https://example.org", "https://example.org"),
        ("https://example.org/", "https://example.org"),
        (" https://example.org\n", "https://example.org"),
        ("HTTPS://Example.ORG", "https://example.org"),
        ("https://example.org:443", "https://example.org"),
        ("http://example.org:80/", "http://example.org"),
        ("https://example.org:80", "https://example.org:80"),
        ("http://example.org:443", "http://example.org:443"),
        ("http://localhost:3000", "http://localhost:3000"),
        ("http://127.0.0.1:8000/", "http://127.0.0.1:8000"),
        ("http://[2001:DB8:0::7]:8000", "http://[2001:db8::7]:8000"),
        ("https://bücher.example", "https://xn--bcher-kva.example"),
        ("https://BÜCHER.example:443/", "https://xn--bcher-kva.example"),
        ("https://straße.example", "https://xn--strae-oqa.example"),
        ("https://例え.テスト", "https://xn--r8jz45g.xn--zckzah"),
        ("https://例え。テスト", "https://xn--r8jz45g.xn--zckzah"),
        ("https://xn--bcher-kva.example", "https://xn--bcher-kva.example"),
        ("https://my_host.example", "https://my_host.example"),
        ("capacitor://localhost", "capacitor://localhost"),
        ("chrome-extension://abcdefghijklmnop", "chrome-extension://abcdefghijklmnop"),
        ("*", "*"),
        (" * ", "*"),
    ],
)
def test_an_origin_is_brought_into_the_form_that_a_browser_sends(listed: str, sent: str) -> None:
    assert origins_of((listed,)) == {sent}
    assert origins_of(listed) == {sent}  # one text is one origin


@pytest.mark.parametrize(
    "listed, why",
    [
        ("https://example.org/chat", "such as a path"),
        ("https://example.org/?a", "such as a path"),
        ("https://example.org#a", "such as a path"),
        ("https://example.org?", "such as a path"),
        ("https://*.example.org", "no wildcards"),
        ("https://*", "no wildcards"),
        ("*.example.org", "no scheme"),
        ("example.org", "no scheme"),
        ("//example.org", "no scheme"),
        ("localhost:3000", "no scheme"),
        ("", "no scheme"),
        ("https:example.org", "no scheme"),
        ("wss://example.org", "https://"),
        ("ws://localhost", "http://"),
        ("https://user@example.org", "user's name"),
        ("https://user:pw@example.org", "user's name"),
        ("null", "'null'"),
        ("https://", "its host"),
        ("https://:443", "its host"),
        ("file:///", "its host"),
        ("https://example.org:x", "port"),
        ("https://example.org:99999", "ort"),
        ("https://example .org", "its host"),
        ("https://a.example, https://b.example", "its host|path"),
        ("https://[::1", "IPv6"),
        ("https://[zz]", "."),
        ("https://a..b", "its host"),
        (7, "no text"),
        (None, "no text"),
    ],
)
def test_what_no_browser_sends_is_refused_and_told_what_one_does(listed: Any, why: str) -> None:
    with pytest.raises(ConfigError, match=why) as caught:
        origins_of(("https://fine.example", listed))
    assert "https://example.org" in str(caught.value)


def test_all_that_is_wrong_with_origins_is_told_at_once() -> None:
    with pytest.raises(ConfigError) as caught:
        origins_of(("https://a.example/path", "https://b.example", "https://*.c.example"))
    assert [problem.split("'")[1] for problem in caught.value.problems] == [
        "https://a.example/path",
        "https://*.c.example",
    ]


def test_all_that_is_wrong_with_a_socket_is_told_at_once() -> None:
    with pytest.raises(ConfigError) as caught:
        Chat().asgi(authenticate=lambda: None, origins="a.example", idle_timeout_s=0)  # type: ignore[arg-type, misc]  # what somebody gives
    assert [problem.split()[0] for problem in caught.value.problems] == ["authenticate", "idle_timeout_s", "The"]
    with pytest.raises(ConfigError) as caught:
        NativeServer(
            Chat(), authenticate=lambda _: None, path="socket", origins="a.example", forwarded_allow_ips=("b",)
        )
    assert [problem.split()[0] for problem in caught.value.problems] == ["path", "The", "forwarded_allow_ips:"]


def test_origins_that_are_no_list_are_refused() -> None:
    with pytest.raises(ConfigError, match="give a tuple"):
        origins_of(7)  # type: ignore[arg-type]  # what somebody gives


@given(st.text())
def test_nothing_else_is_raised_and_what_is_sent_stays_as_it_is(listed: str) -> None:
    try:
        sent = origins_of(listed)
    except ConfigError:
        return
    assert origins_of(sent) == sent
