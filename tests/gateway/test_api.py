"""What a backend asks over HTTP: what it has said, what it reads, and every refusal."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any

import pytest
from httpx2 import ASGITransport, AsyncClient, Response
from starlette.applications import Starlette
from starlette.routing import Mount

from chatx import Chat, ChatError, ConfigError, RateLimit, RateLimited, Unauthorized
from chatx.core.message import Draft, Message
from chatx.gateway.api import app as api_app
from chatx.gateway.api.access import token_shown
from chatx.gateway.api.app import ApiApp
from chatx.gateway.api.incoming import BODY_BYTES
from chatx.gateway.api.request import HEADER_BYTES, PATH_BYTES, QUERY_BYTES

TOKEN = "a-token-for-backends"
SHOWN = {"authorization": f"Bearer {TOKEN}"}
SAID = "/api/rooms/general/messages"


def mounted(api: Any) -> AsyncClient:
    app = Starlette(routes=[Mount("/api", api)])
    return AsyncClient(transport=ASGITransport(app), base_url="http://here", headers=SHOWN)


def opened(chat: Chat, **options: Any) -> AsyncClient:
    return mounted(chat.api(authenticate=token_shown(TOKEN), **options))


@asynccontextmanager
async def asking(chat: Chat, **options: Any) -> AsyncIterator[AsyncClient]:
    async with chat, opened(chat, **options) as client:
        yield client


def problem(answer: Response) -> tuple[int, str | None]:
    """Return the status and the code of a refusal, which is a problem of RFC 9457."""
    assert answer.headers["content-type"] == "application/problem+json"
    body = answer.json()
    assert (body["status"], body["type"]) == (
        answer.status_code,
        f"urn:problem-type:chatx:{body['code']}" if "code" in body else "about:blank",
    )
    assert body["title"]
    assert body["detail"]
    return answer.status_code, body.get("code")


# What is said.


async def test_a_message_is_said_and_answered_as_it_is_read() -> None:
    async with Chat() as chat, opened(chat) as client, chat.subscribe("a/b") as subscription:
        answer = await client.post(
            "/api/rooms/a%2Fb/messages", json={"user_id": "shop", "content": "Packed.", "data": {"order": 7}}
        )
        assert answer.status_code == 201
        message = await anext(subscription)
        assert isinstance(message, Message)
        said = answer.json()
        assert said == {
            "id": message.id,
            "room_id": "a/b",
            "user_id": "shop",
            "content": "Packed.",
            "inserted_at": message.inserted_at,
            "epoch": message.epoch,
            "offset": 1,
            "data": {"order": 7},
        }
        read = await client.get("/api/rooms/a%2Fb/messages")
        assert (read.status_code, read.json()) == (200, {"messages": [said], "more": False})


@pytest.mark.parametrize("header", ['a "quoted" key', '"a \\"quoted\\" key"'])
async def test_a_key_is_answered_with_the_first_message_with_quotes_or_without(header: str) -> None:
    async with asking(Chat()) as client:
        said = {"user_id": "shop", "content": "Packed."}
        first = await client.post(SAID, json=said, headers={"idempotency-key": 'a "quoted" key'})
        again = await client.post(SAID, json=said, headers={"idempotency-key": header})
        assert (first.status_code, again.status_code) == (201, 201)
        assert again.json() == first.json() | {"duplicate": True}
        other = await client.post(SAID, json=said | {"user_id": "bank"}, headers={"idempotency-key": header})
        assert other.json()["offset"] == 2


async def test_what_is_trusted_passes_the_middlewares_and_what_is_not_does_not() -> None:
    chat = Chat(rate_limit=RateLimit(messages_per_sec=0.001, burst=1))
    async with asking(chat) as client:
        for _ in range(3):
            assert (await client.post(SAID, json={"user_id": "shop", "content": "x"})).status_code == 201
        own = {"user_id": "shop", "content": "x", "trusted": False}
        assert (await client.post(SAID, json=own)).status_code == 201
        refused = await client.post(SAID, json=own)
        assert problem(refused) == (429, "rate_limited")
        assert refused.json()["retryable"] is True
        assert refused.json()["retry_after_ms"] > 900_000
        assert int(refused.headers["retry-after"]) > 900


class Shut:
    async def authorize(self, user_id: str, room_id: str, action: str) -> bool:
        raise Unauthorized("Not in this room.")


async def test_what_the_auth_adapter_refuses_is_no_question_of_the_token() -> None:
    async with asking(Chat(auth=Shut())) as client:
        refused = await client.post(SAID, json={"user_id": "ada", "content": "x", "trusted": False})
        assert problem(refused) == (403, "unauthorized")
        assert refused.json()["detail"] == "Not in this room."
        assert "www-authenticate" not in refused.headers


class OutOfCredit(ChatError):
    code = "out_of_credit"
    summary = "No credit is left."


def without_credit(draft: Draft) -> Draft:
    raise OutOfCredit


async def test_an_applications_own_refusal_is_told_with_its_own_code() -> None:
    async with asking(Chat(middlewares=(without_credit,))) as client:
        refused = await client.post(SAID, json={"user_id": "ada", "content": "x", "trusted": False})
        assert problem(refused) == (422, "out_of_credit")
        assert refused.json()["title"] == "No credit is left."


# What is read.


async def test_history_is_read_in_pages_from_both_ends() -> None:
    async with Chat() as chat, opened(chat) as client:
        messages = [await chat.send_message("general", "ada", str(number), trusted=True) for number in range(5)]
        epoch = messages[0].epoch

        async def read(**query: Any) -> tuple[list[str], bool]:
            answer = await client.get(SAID, params=query)
            assert answer.status_code == 200
            return [each["content"] for each in answer.json()["messages"]], answer.json()["more"]

        assert await read() == (["0", "1", "2", "3", "4"], False)
        assert await read(limit=2) == (["3", "4"], True)
        assert await read(limit=2, before=f"{epoch}:4") == (["1", "2"], True)
        assert await read(limit=9, before=f"{epoch}:4") == (["0", "1", "2"], False)
        assert await read(limit=2, after=f"{epoch}:1") == (["1", "2"], True)
        assert await read(after=f"{epoch}:5") == ([], False)
        assert (await client.get("/api/rooms/nobody-was-here/messages")).json() == {"messages": [], "more": False}
        assert problem(await client.get(SAID, params={"after": "other:1"})) == (410, "epoch_changed")


async def test_history_costs_no_user_their_budget() -> None:
    async with Chat(history_bytes_per_sec=1, history_size=100) as chat, opened(chat) as client:
        for _ in range(50):
            await chat.send_message("general", "ada", "x" * 100, trusted=True)
        for _ in range(3):
            assert len((await client.get(SAID)).json()["messages"]) == 50


async def test_presence_is_read_in_pages_by_user() -> None:
    async with Chat() as chat, opened(chat) as client:
        for user in ("cat", "ada", "bob"):
            await chat.join("a b", user)
        page = (await client.get("/api/rooms/a%20b/presence?limit=2")).json()
        assert (page["users"], list(page["presence"]), page["after"]) == (3, ["ada", "bob"], "bob")
        assert {*page["presence"]["ada"][0]} == {"ref", "online_at"}
        page = (await client.get("/api/rooms/a%20b/presence?limit=2&after=bob")).json()
        assert (list(page["presence"]), page["after"]) == (["cat"], None)
        assert (await client.get("/api/rooms/empty/presence")).json() == {"users": 0, "presence": {}, "after": None}


async def test_rooms_are_listed_in_pages() -> None:
    async with Chat() as chat, opened(chat) as client:
        for room in ("c", "a/ä", "b"):
            await chat.join(room, "ada")
        page = (await client.get("/api/rooms?limit=2")).json()
        assert ([each["id"] for each in page["rooms"]], page["total"], page["after"]) == (["a/ä", "b"], 3, "b")
        page = (await client.get("/api/rooms", params={"after": "a/ä"})).json()
        assert [each["id"] for each in page["rooms"]] == ["b", "c"]
        assert page["after"] is None


async def test_a_user_is_cut_off() -> None:
    async with Chat() as chat, opened(chat) as client, chat.connect("a/b") as connection:
        await connection.join("general")
        answer = await client.delete("/api/users/a%2Fb/sessions")
        assert (answer.status_code, answer.content) == (204, b"")
        with pytest.raises(ChatError, match="cut off"):
            await anext(connection)
        assert await chat.presence("general") == {}


# What is refused.


BAD: dict[str, tuple[str, str, dict[str, Any], int, str | None]] = {
    "no such path": ("GET", "/api/nothing", {}, 404, None),
    "the root": ("GET", "/api/", {}, 404, None),
    "a slash too many": ("GET", "/api/rooms/", {}, 404, None),
    "a slash in an id": ("GET", "/api/rooms/a/b/messages", {}, 404, None),
    "the path of a path": ("GET", "/api/rooms/rooms", {}, 404, None),
    "an empty room": ("GET", "/api/rooms//messages", {}, 400, "invalid_message"),
    "a room with a control character": ("GET", "/api/rooms/a%09b/presence", {}, 400, "invalid_message"),
    "a room that is too long": ("POST", f"/api/rooms/{'x' * 129}/messages", {}, 400, "invalid_message"),
    "a % alone": ("GET", "/api/rooms/100%/presence", {}, 400, "invalid_message"),
    "no UTF-8": ("GET", "/api/rooms/%FF/presence", {}, 400, "invalid_message"),
    "half a surrogate": ("GET", "/api/rooms/%ED%A0%80/presence", {}, 400, "invalid_message"),
    "a path without end": ("GET", "/api/rooms/" + "x" * PATH_BYTES, {}, 414, None),
    "a query without end": ("GET", "/api/rooms?after=" + "x" * QUERY_BYTES, {}, 414, None),
    "a parameter that is unknown": ("GET", SAID + "?befor=a:1", {}, 400, "invalid_message"),
    "a parameter where there is none": ("DELETE", "/api/users/ada/sessions?all=1", {}, 400, "invalid_message"),
    "a parameter twice": ("GET", SAID + "?limit=1&limit=2", {}, 400, "invalid_message"),
    "both places": ("GET", SAID + "?before=a:1&after=a:1", {}, 400, "invalid_message"),
    "half a place": ("GET", SAID + "?before=a", {}, 400, "invalid_message"),
    "a place that is none": ("GET", SAID + "?before=a:-1", {}, 400, "invalid_message"),
    "a place beyond every number": ("GET", SAID + "?after=a:9999999999999999", {}, 400, "invalid_message"),
    "no UTF-8 in a query": ("GET", SAID + "?before=%FF:1", {}, 400, "invalid_message"),
    "a limit of nothing": ("GET", SAID + "?limit=0", {}, 400, "invalid_message"),
    "a limit too large": ("GET", SAID + "?limit=201", {}, 400, "invalid_message"),
    "a limit in words": ("GET", "/api/rooms?limit=many", {}, 400, "invalid_message"),
    "a limit of rooms": ("GET", "/api/rooms?limit=1001", {}, 400, "invalid_message"),
    "a limit of people": ("GET", "/api/rooms/a/presence?limit=1001", {}, 400, "invalid_message"),
    "no body": ("POST", SAID, {"content": b""}, 400, "invalid_message"),
    "no JSON": ("POST", SAID, {"content": b"{"}, 400, "invalid_message"),
    "no UTF-8 in a body": ("POST", SAID, {"content": b'{"user_id":"\xff","content":"x"}'}, 400, "invalid_message"),
    "no object": ("POST", SAID, {"json": ["ada", "x"]}, 400, "invalid_message"),
    "nobody": ("POST", SAID, {"json": {"content": "x"}}, 400, "invalid_message"),
    "an empty user": ("POST", SAID, {"json": {"user_id": "", "content": "x"}}, 400, "invalid_message"),
    "nothing said": ("POST", SAID, {"json": {"user_id": "ada", "content": ""}}, 400, "invalid_message"),
    "a number said": ("POST", SAID, {"json": {"user_id": "ada", "content": 1}}, 400, "invalid_message"),
    "data that is none": ("POST", SAID, {"json": {"user_id": "a", "content": "x", "data": []}}, 400, "invalid_message"),
    "trust misspelt": (
        "POST",
        SAID,
        {"json": {"user_id": "ada", "content": "x", "trustd": False}},
        400,
        "invalid_message",
    ),
    "trust in words": (
        "POST",
        SAID,
        {"json": {"user_id": "ada", "content": "x", "trusted": "false"}},
        400,
        "invalid_message",
    ),
    "deep data": (
        "POST",
        SAID,
        {"content": b'{"user_id":"a","content":"x","data":' + b'{"a":' * 9000 + b"1" + b"}" * 9001},
        400,
        "invalid_message",
    ),
    "too much said": ("POST", SAID, {"json": {"user_id": "a", "content": "x" * 4097}}, 413, "message_too_large"),
    "a body without end": ("POST", SAID, {"content": b" " * (BODY_BYTES + 1)}, 413, None),
    "text": ("POST", SAID, {"content": b"{}", "headers": {"content-type": "text/plain"}}, 415, None),
    "no type": ("POST", SAID, {"content": b"{}", "headers": {"content-type": ""}}, 415, None),
    "another charset": (
        "POST",
        SAID,
        {"content": b"{}", "headers": {"content-type": "application/json; charset=latin-1"}},
        415,
        None,
    ),
    "compressed": (
        "POST",
        SAID,
        {"content": b"{}", "headers": {"content-encoding": "gzip"}},
        415,
        None,
    ),
    "an empty key": ("POST", SAID, {"headers": {"idempotency-key": ""}}, 400, "invalid_message"),
    "a key too long": ("POST", SAID, {"headers": {"idempotency-key": "x" * 129}}, 400, "invalid_message"),
    "two keys": (
        "POST",
        SAID,
        {"headers": [("idempotency-key", "a"), ("idempotency-key", "b"), ("content-type", "application/json")]},
        400,
        "invalid_message",
    ),
    "a key that is no UTF-8": ("POST", SAID, {"headers": {b"idempotency-key": b"\xff"}}, 400, "invalid_message"),
    "headers without end": ("GET", "/api/rooms", {"headers": {"x-much": "x" * HEADER_BYTES}}, 431, None),
}


@pytest.mark.parametrize("method, path, sent, status, code", BAD.values(), ids=BAD)
async def test_what_is_not_valid_is_refused_by_a_clear_problem(
    method: str, path: str, sent: Mapping[str, Any], status: int, code: str | None
) -> None:
    async with asking(Chat()) as client:
        given = dict(sent)
        if method == "POST" and "json" not in given:
            given.setdefault("content", b'{"user_id":"ada","content":"x"}')
            if isinstance(given.get("headers", {}), dict):
                given["headers"] = {"content-type": "application/json"} | given.get("headers", {})
        answer = await client.request(method, path, **given)
        assert problem(answer) == (status, code), answer.text
        assert answer.json()["retryable"] is False
        assert len(answer.text) < 1000
        assert (await client.get("/api/rooms")).json()["rooms"] == []


@pytest.mark.parametrize(
    "path, allowed",
    [
        ("/api/rooms", "GET, HEAD, OPTIONS"),
        (SAID, "GET, POST, HEAD, OPTIONS"),
        ("/api/users/ada/sessions", "DELETE, OPTIONS"),
        ("/api/openapi.json", "GET, HEAD, OPTIONS"),
    ],
)
async def test_a_path_says_which_methods_it_has(path: str, allowed: str) -> None:
    async with asking(Chat()) as client:
        for method in ("PUT", "PATCH", "TRACE"):
            refused = await client.request(method, path)
            assert (problem(refused), refused.headers["allow"]) == ((405, None), allowed)
        said = await client.options(path)
        assert (said.status_code, said.content, said.headers["allow"]) == (204, b"", allowed)
        assert not [name for name in said.headers if name.startswith("access-control")]


async def test_head_is_get_without_a_body() -> None:
    async with asking(Chat()) as client:
        got, head = await client.get("/api/rooms"), await client.head("/api/rooms")
        assert (head.status_code, head.content, head.headers) == (200, b"", got.headers)


# Who may.


@pytest.mark.parametrize(
    "shown", [{}, {"authorization": "Bearer wrong"}, {"authorization": f"Basic {TOKEN}"}, {"authorization": "Bearer "}]
)
@pytest.mark.parametrize("token", [TOKEN, ""])
async def test_whoever_does_not_show_the_token_gets_nothing_but_the_description(
    shown: dict[str, str], token: str, caplog: pytest.LogCaptureFixture
) -> None:
    async with Chat() as chat, mounted(ApiApp(chat, authenticate=token_shown(token))) as client:
        client.headers.pop("authorization")
        for method, path in (("GET", "/api/rooms"), ("POST", SAID), ("DELETE", "/api/users/ada/sessions")):
            refused = await client.request(method, path, headers=shown)
            assert problem(refused) == (401, None)
            assert refused.headers["www-authenticate"] == "Bearer"
            assert ("CHATX_ADMIN_TOKEN" in refused.json()["detail"]) is (token == "")
        assert (await client.get("/api/openapi.json", headers=shown)).status_code == 200
    told = [each for each in caplog.records if "request to the API" in each.getMessage()]
    assert len(told) == 1  # once a minute
    assert TOKEN not in told[0].getMessage()


class Asked:
    """An application's own answer to who may."""

    def __init__(self, answer: Any) -> None:
        self.answer = answer
        self.headers: Mapping[str, str] = {}

    async def __call__(self, headers: Mapping[str, str]) -> Any:
        self.headers = headers
        await asyncio.sleep(0)
        if isinstance(self.answer, BaseException):
            raise self.answer
        return self.answer


@pytest.mark.parametrize(
    "answer, status, code",
    [
        (True, 200, None),
        (False, 401, None),
        (Unauthorized("Not yours."), 401, None),
        (RateLimited("Too fast.", retry_after=2), 429, "rate_limited"),
        (None, 503, "adapter_error"),
        (1, 503, "adapter_error"),
        ("ada", 503, "adapter_error"),
        (ZeroDivisionError("secret"), 503, "adapter_error"),
        (SystemExit(1), 503, "adapter_error"),
    ],
)
async def test_only_true_opens_and_whatever_goes_wrong_shuts(answer: Any, status: int, code: str | None) -> None:
    authenticate = Asked(answer)
    async with Chat() as chat, mounted(chat.api(authenticate=authenticate)) as client:
        answered = await client.get("/api/rooms", headers={"X-Who": "shop"})
        assert authenticate.headers["x-who"] == "shop"
        assert answered.status_code == status
        if status != 200:
            assert problem(answered) == (status, code)
            assert "secret" not in answered.text


async def test_a_plain_function_that_answers_a_coroutine_opens_to_nobody() -> None:
    def asked(headers: Mapping[str, str]) -> Any:
        return Asked(True)(headers)

    async with Chat() as chat, mounted(chat.api(authenticate=asked)) as client:
        assert problem(await client.get("/api/rooms")) == (503, "adapter_error")


@pytest.mark.parametrize(
    "given", [{}, {"authenticate": None}, {"authenticate": "token"}, {"authenticate": lambda: True}]
)
def test_there_is_no_door_without_somebody_who_says_who_may(given: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="authenticate"):
        Chat().api(**given)


async def test_a_chat_that_does_not_run_is_a_503_that_says_when_to_come_back() -> None:
    async with mounted(Chat().api(authenticate=token_shown(TOKEN))) as client:
        refused = await client.get("/api/rooms")
        assert problem(refused) == (503, "closed")
        assert refused.headers["retry-after"] == "1"


async def test_pages_of_other_origins_read_nothing_unless_they_are_listed() -> None:
    page = {"origin": "https://example.org"}
    async with asking(Chat()) as client:
        assert not [name for name in (await client.get("/api/rooms", headers=page)).headers if "access-control" in name]
    async with asking(Chat(), origins=["https://example.org"]) as client:
        assert (await client.get("/api/rooms", headers=page)).headers["access-control-allow-origin"] == page["origin"]
        asked = await client.options(SAID, headers=page | {"access-control-request-method": "POST"})
        assert "POST" in asked.headers["access-control-allow-methods"]
        assert "idempotency-key" in asked.headers["access-control-allow-headers"]
        other = await client.get("/api/rooms", headers={"origin": "https://evil.example"})
        assert (other.headers.get("access-control-allow-origin"), other.headers["vary"]) == (None, "origin")
    with pytest.raises(ConfigError):
        Chat().api(authenticate=token_shown(TOKEN), origins=["example.org"])


# How much, and how long.


class Held:
    """A middleware that holds what is said until it is let go."""

    def __init__(self) -> None:
        self.begun = asyncio.Event()
        self.let_go = asyncio.Event()

    async def __call__(self, draft: Draft) -> Draft:
        self.begun.set()
        await self.let_go.wait()
        return draft


OWN = {"user_id": "ada", "content": "x", "trusted": False}


async def test_too_many_requests_are_told_to_come_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(api_app, "MAX_UNDER_WAY", 2)
    held = Held()
    async with asking(Chat(middlewares=(held,))) as client:
        two = [asyncio.create_task(client.post(SAID, json=OWN | {"user_id": user})) for user in ("ada", "bob")]
        await held.begun.wait()
        await asyncio.sleep(0)
        refused = await client.get("/api/rooms")
        assert (problem(refused), refused.json()["retryable"]) == ((503, None), True)
        assert refused.headers["retry-after"] == "1"
        held.let_go.set()
        assert [(await each).status_code for each in two] == [201, 201]
        assert (await client.get("/api/rooms")).status_code == 200


async def test_a_message_goes_its_way_though_its_client_has_gone_and_holds_its_place_until_then() -> None:
    held = Held()
    chat = Chat(middlewares=(held,))
    app = ApiApp(chat, authenticate=token_shown(TOKEN))
    async with chat, mounted(app) as client, chat.subscribe("general") as subscription:
        key = {"idempotency-key": "k"}
        gone = asyncio.create_task(client.post(SAID, json=OWN, headers=key))
        await held.begun.wait()
        gone.cancel()
        await asyncio.wait([gone])
        assert app.under_way == 1
        held.let_go.set()
        message = await anext(subscription)
        assert isinstance(message, Message)
        again = await client.post(SAID, json=OWN, headers=key)
        assert (again.json()["id"], again.json()["duplicate"], app.under_way) == (message.id, True, 0)


async def test_what_is_refused_when_its_client_has_gone_is_told_in_the_log(caplog: pytest.LogCaptureFixture) -> None:
    held = Held()
    chat = Chat(middlewares=(held, "rate_limit"), rate_limit=RateLimit(0.001, 1))
    caplog.set_level("INFO", "chatx")
    async with asking(chat) as client:
        held.let_go.set()
        await client.post(SAID, json=OWN)
        held.let_go.clear()
        held.begun.clear()
        gone = asyncio.create_task(client.post(SAID, json=OWN))
        await held.begun.wait()
        gone.cancel()
        await asyncio.wait([gone])
        held.let_go.set()
    (told,) = [each for each in caplog.records if "before it went was refused" in each.getMessage()]
    assert (told.levelname, told.exc_info) == ("INFO", None)


async def in_pieces(chat: Chat, *pieces: dict[str, Any]) -> list[dict[str, Any]]:
    """Send a body that comes in these pieces, to a server that says that the client is gone where it is answered."""
    parts, sent = iter(pieces), []

    async def receive() -> Any:
        return next(parts)

    async def send(message: Any) -> None:
        sent.append(message)
        if message["type"] == "http.response.body":
            raise OSError("the client is gone")

    scope = {
        "type": "http",
        "method": "POST",
        "path": "/rooms/a/messages",
        "query_string": b"",
        "headers": [
            (b"authorization", SHOWN["authorization"].encode()),
            (b"content-type", b"application/json"),
            (b"transfer-encoding", b"chunked"),
        ],
    }
    await chat.api(authenticate=token_shown(TOKEN))(scope, receive, send)
    return sent


def piece(body: bytes, more_body: bool = True) -> dict[str, Any]:
    return {"type": "http.request", "body": body, "more_body": more_body}


async def test_a_body_is_what_came_whole_and_within_its_bound() -> None:
    async with Chat() as chat:
        gone = await in_pieces(chat, piece(b'{"user'), {"type": "http.disconnect"})
        assert [each["type"] for each in gone] == ["http.response.start", "http.response.body"]
        begun, _ = await in_pieces(chat, piece(b" " * BODY_BYTES), piece(b" ", more_body=False))
        assert (begun["status"], (b"connection", b"close") in begun["headers"]) == (413, True)
        assert await chat.history("a") == []
        begun, _ = await in_pieces(chat, piece(b'{"user_id":"ada",'), piece(b'"content":"x"}', more_body=False))
        assert (begun["status"], (b"connection", b"close") in begun["headers"]) == (201, False)
        assert [each.content for each in await chat.history("a")] == ["x"]


class Broken(Chat):
    """A chat that fails in a way that nobody has foreseen."""

    def __init__(self) -> None:
        super().__init__()
        self.asked = asyncio.Event()
        self.fails = asyncio.Event()

    async def send_message(self, *_: Any, **__: Any) -> Any:
        self.asked.set()
        await self.fails.wait()
        raise ZeroDivisionError("a secret")


async def test_what_fails_here_is_a_500_without_a_word_of_it_and_a_traceback_in_the_log(
    caplog: pytest.LogCaptureFixture,
) -> None:
    chat = Broken()
    async with asking(chat) as client:
        gone = asyncio.create_task(client.post(SAID, json=OWN))
        await chat.asked.wait()
        gone.cancel()
        await asyncio.wait([gone])
        chat.fails.set()
        failed = await client.post(SAID, json=OWN)
        assert (problem(failed), "secret" in failed.text) == ((500, None), False)
    told = [each for each in caplog.records if each.getMessage() == "A request to the API failed."]
    assert [each.exc_info is not None for each in told] == [True, True]


async def test_another_loop_than_the_chats_is_a_500_that_says_so() -> None:
    async def elsewhere() -> Response:
        async with opened(chat) as client:
            return await client.get("/api/rooms")

    async with Chat() as chat:
        refused = await asyncio.to_thread(lambda: asyncio.run(elsewhere()))
        assert problem(refused) == (500, "wrong_loop")


async def test_it_is_no_socket_and_no_application_of_its_own() -> None:
    api = Chat().api(authenticate=token_shown(TOKEN))
    sent: list[Any] = []

    async def receive() -> Any:
        return {"type": "websocket.connect"}

    async def send(message: Any) -> None:
        sent.append(message["type"])

    await api({"type": "websocket", "path": "/rooms"}, receive, send)
    assert sent == ["websocket.close"]
    with pytest.raises(ConfigError, match=r"chat\.lifespan"):
        await api({"type": "lifespan"}, receive, send)
