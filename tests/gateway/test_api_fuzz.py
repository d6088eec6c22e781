"""Whatever a backend sends, it is answered as the description says, and never by a failure."""

from __future__ import annotations

import asyncio
import json
from typing import Any
from urllib.parse import quote, unquote

from hypothesis import given
from hypothesis import strategies as st

from chatx import Chat
from chatx.gateway.api.access import token_shown
from tests.gateway.test_openapi import VALIDATORS

TOKEN = "t"

# What comes near to what is meant, beside what does not.
IDS = st.sampled_from(["a", "a%2Fb", "", "%00", "%FF", "%", "..", "{room}", "x" * 129, "%E2%80%8B"]) | st.text(
    max_size=6
).map(lambda text: quote(text.encode("utf-8", "surrogatepass"), safe="%"))
MESSAGES = st.sampled_from(["a", "a%2Fb"]).map(lambda named: f"/rooms/{named}/messages")
PATHS = st.one_of(
    MESSAGES,
    IDS.map(lambda named: f"/rooms/{named}/messages"),
    IDS.map(lambda named: f"/rooms/{named}/presence"),
    IDS.map(lambda named: f"/users/{named}/sessions"),
    st.sampled_from(["/rooms", "/openapi.json"]),
    st.lists(st.sampled_from(["rooms", "messages", "presence", "users", "sessions", "a", ""]), max_size=5).map(
        lambda parts: "/" + "/".join(parts)
    ),
)
VALUES = st.sampled_from(["1", "0", "-1", "1e3", "201", "a:1", ":1", "a:b:2", "a:9007199254740992", "%FF", "", "null"])
QUERIES = st.one_of(
    st.lists(
        st.tuples(st.sampled_from(["limit", "before", "after", "Limit", "x"]), VALUES).map("=".join), max_size=3
    ).map("&".join),
    st.text("&=%+;a1:", max_size=10),
)
SCALARS = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5)
ANY_JSON = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=6,
)
BODIES = st.one_of(
    st.fixed_dictionaries(
        {},
        optional={
            "user_id": st.just("ada") | ANY_JSON,
            "content": st.just("x") | ANY_JSON,
            "data": ANY_JSON,
            "trusted": ANY_JSON,
            "more": ANY_JSON,
        },
    ).map(lambda body: json.dumps(body).encode()),
    st.fixed_dictionaries({"user_id": st.just("ada"), "content": st.text(max_size=9), "data": ANY_JSON}).map(
        lambda body: json.dumps(body).encode()
    ),
    ANY_JSON.map(lambda body: json.dumps(body).encode()),
    st.binary(max_size=20),
)
GOOD = st.fixed_dictionaries(
    {"user_id": st.sampled_from(["ada", "ä"]), "content": st.text("aä\n日😀", min_size=1, max_size=9)},
    optional={"data": st.none() | st.dictionaries(st.text("ab"), ANY_JSON, max_size=3), "trusted": st.booleans()},
).map(lambda body: json.dumps(body).encode())
HEADERS = st.lists(
    st.sampled_from(
        [
            (b"authorization", b"Bearer t"),
            (b"Authorization", b"Bearer \xff"),
            (b"content-type", b"application/json"),
            (b"content-type", b"application/json;charset"),
            (b"content-type", b"application/json; charset=utf-16"),
            (b"content-encoding", b"br"),
            (b"content-length", b"-1"),
            (b"content-length", b"99999999999999999999"),
            (b"idempotency-key", b"k"),
            (b"idempotency-key", b'"k'),
            (b"Idempotency-Key", b"\xff"),
            (b"origin", b"https://example.org"),
        ]
    ),
    max_size=3,
)
OK_HEADERS = [(b"authorization", b"Bearer t"), (b"content-type", b"application/json")]
METHODS = st.sampled_from(["GET", "POST", "DELETE", "HEAD", "OPTIONS", "PUT", "get", "X"])
# Most are such as get past the first looks.
REQUESTS = st.one_of(
    st.tuples(st.just("POST"), MESSAGES, st.just(""), st.just([]), st.just(True), GOOD),
    st.tuples(st.just("POST"), MESSAGES, QUERIES, HEADERS, st.just(True), BODIES),
    st.tuples(st.just("GET"), PATHS, QUERIES, HEADERS, st.just(True), st.just(b"")),
    st.tuples(METHODS, PATHS, QUERIES, HEADERS, st.booleans(), BODIES),
)


async def ask(app: Any, scope: dict[str, Any], body: bytes) -> tuple[int, dict[bytes, bytes], bytes]:
    sent: list[Any] = []

    async def receive() -> Any:
        return {"type": "http.request", "body": body, "more_body": False}

    async def send(message: Any) -> None:
        sent.append(message)

    await app(scope, receive, send)
    begun, ended = sent
    return begun["status"], dict(begun["headers"]), ended["body"]


@given(REQUESTS)
def test_whatever_is_asked_is_answered_as_the_description_says(
    request: tuple[str, str, str, list[tuple[bytes, bytes]], bool, bytes],
) -> None:
    method, path, query, headers, good, body = request

    async def play() -> None:
        scope = {
            "type": "http",
            "method": method,
            "path": unquote(path),
            "raw_path": path.encode(),
            "query_string": query.encode(),
            "headers": [*(OK_HEADERS if good else ()), *headers],
        }
        async with Chat() as chat:
            app = chat.api(authenticate=token_shown(TOKEN), origins=["https://example.org"])
            status, answered, said = await ask(app, scope, body)
            assert status in (200, 201, 204, 400, 401, 404, 405, 413, 414, 415), said
            assert app.under_way == 0
            if status == 204 or method == "HEAD":
                assert said == b""
                return
            assert int(answered[b"content-length"]) == len(said)
            if status >= 400:
                assert answered[b"content-type"] == b"application/problem+json"
                assert [error.message for error in VALIDATORS["Problem"].iter_errors(json.loads(said))] == []
                assert (b"allow" in answered) is (status == 405)
                assert (b"www-authenticate" in answered) is (status == 401)
            elif status == 201:
                assert [error.message for error in VALIDATORS["SentMessage"].iter_errors(json.loads(said))] == []
                message = json.loads(said)
                (kept,) = await chat.history(message["room_id"])
                asked = json.loads(body)
                assert (kept.id, kept.content, kept.data) == (message["id"], asked["content"], asked.get("data"))
            else:
                assert json.loads(said)

    asyncio.run(play())
