"""`chatx token`: what it prints, and what it refuses."""

from __future__ import annotations

import json
import time

import jwt
import pytest

from chatx.cli import main

SECRET = "0123456789abcdef0123456789abcdef"


def printed_token(capsys: pytest.CaptureFixture[str], *arguments: str) -> dict[str, object]:
    """Return the claims of the token that is printed."""
    assert main(["token", *arguments]) == 0
    printed = capsys.readouterr()
    assert printed.err == ""
    claims: dict[str, object] = jwt.decode(printed.out.strip(), SECRET, ["HS256"])
    return claims


@pytest.fixture(autouse=True)
def secret(monkeypatch: pytest.MonkeyPatch, clean_environment: None) -> None:
    monkeypatch.setenv("CHATX_SECRET", SECRET)


@pytest.mark.parametrize(
    "given, seconds", [([], 3600), (["--ttl", "90"], 90), (["--ttl", "15m"], 900), (["--ttl", "2d"], 172_800)]
)
def test_it_says_who_it_is_and_until_when(given: list[str], seconds: int, capsys: pytest.CaptureFixture[str]) -> None:
    before = int(time.time())
    claims = printed_token(capsys, "alice", *given)

    assert claims["sub"] == "alice"
    assert before + seconds <= int(str(claims["exp"])) <= time.time() + seconds
    assert "rooms" not in claims


def test_rooms_may_be_given_together_or_one_by_one(capsys: pytest.CaptureFixture[str]) -> None:
    together = printed_token(capsys, "alice", "--rooms", "a,b", "help-*")
    one_by_one = printed_token(capsys, "--rooms", "a,b", "--rooms", "help-*", "--ttl", "5", "alice")

    assert together["rooms"] == one_by_one["rooms"] == ["a,b", "help-*"]


def test_json_has_what_is_in_the_token(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["token", "alice", "--rooms", "a", "--json"]) == 0
    printed = json.loads(capsys.readouterr().out)
    claims = jwt.decode(printed["token"], SECRET, ["HS256"])

    assert printed["user_id"] == claims["sub"] == "alice"
    assert printed["expires_at"] == claims["exp"]
    assert printed["rooms"] == claims["rooms"] == ["a"]


@pytest.mark.parametrize("ttl", ["0", "-1", "1.5", "forever", "1w", "9999999999", "", "١"])
def test_a_time_that_is_none_is_refused(ttl: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["token", "alice", f"--ttl={ttl}"])

    assert ended.value.code == 2
    assert f"{ttl!r} is no time" in capsys.readouterr().err


@pytest.mark.parametrize(
    "arguments, named", [([""], "user"), (["a\nb"], "user"), (["alice", "--rooms", "x" * 129], "room")]
)
def test_ids_that_are_none_are_refused(arguments: list[str], named: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["token", *arguments]) == 2
    printed = capsys.readouterr()

    assert printed.out == ""
    assert named in printed.err


def test_without_a_secret_there_is_no_token(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("CHATX_SECRET")

    assert main(["token", "alice"]) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert "CHATX_SECRET is not set" in printed.err


@pytest.mark.parametrize(
    "secret", ["\udcff" * 40, "-----BEGIN PUBLIC KEY-----\nMFkw\n-----END PUBLIC KEY-----"], ids=["no UTF-8", "a key"]
)
def test_a_secret_that_can_be_none_is_refused(
    secret: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CHATX_SECRET", secret)

    assert main(["token", "alice"]) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert "CHATX_SECRET" in printed.err


def test_a_short_secret_is_taken_with_a_warning(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CHATX_SECRET", "short")

    assert main(["token", "alice"]) == 0
    printed = capsys.readouterr()
    assert printed.out.count(".") == 2
    assert "fewer than 32 bytes" in printed.err
    assert "short" not in printed.err
