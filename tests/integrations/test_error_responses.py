"""The handler that makes an HTTP response of a `ChatError`, in Starlette and in FastAPI."""

from __future__ import annotations

from typing import Any

import pytest
from fastapi import FastAPI
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.testclient import TestClient
from starlette.websockets import WebSocket

from chatx import ERRORS, Blocked, Chat, ChatError, RateLimit, RateLimited
from chatx.integrations.starlette import chat_error_response, http_status


class OutOfCredit(ChatError):
    """An error of the application's own."""

    code = "out_of_credit"
    summary = "No credit is left."


def application(kind: type[Starlette], raised: Exception) -> Starlette:
    async def send(request: Request) -> Response:
        raise raised

    async def socket(websocket: WebSocket) -> None:
        await websocket.accept()
        raise raised

    app = kind()
    app.add_exception_handler(ChatError, chat_error_response)
    app.add_route("/send", send)
    app.router.add_websocket_route("/own", socket)
    return app


def test_every_error_has_a_status_that_says_whose_turn_it_is() -> None:
    statuses = {code: http_status(error()) for code, error in ERRORS.items()}

    assert statuses == {
        "config_error": 500,
        "invalid_message": 400,
        "message_too_large": 413,
        "unauthorized": 403,
        "revoked": 403,
        "blocked": 422,
        "rate_limited": 429,
        "room_overloaded": 503,
        "room_unavailable": 503,
        "adapter_error": 503,
        "slow_consumer": 503,
        "subscriber_failed": 500,
        "epoch_changed": 410,
        "too_old": 410,
        "unmatched_topic": 422,
        "too_many_joins": 503,
        "closed": 503,
        "already_started": 500,
        "store_in_use": 503,
        "wrong_loop": 500,
    }
    assert http_status(OutOfCredit()) == 422


@pytest.mark.parametrize("kind", [Starlette, FastAPI])
@pytest.mark.parametrize(
    "raised, status, body, wait",
    [
        (Blocked("Not here."), 422, {"code": "blocked", "reason": "Not here.", "retryable": False}, None),
        (OutOfCredit(), 422, {"code": "out_of_credit", "reason": "No credit is left.", "retryable": False}, None),
        (
            RateLimited("Slow.", retry_after=0.2),
            429,
            {"code": "rate_limited", "reason": "Slow.", "retryable": True, "retry_after_ms": 200},
            "1",
        ),
        (
            RateLimited("Slow.", retry_after=2.0),
            429,
            {"code": "rate_limited", "reason": "Slow.", "retryable": True, "retry_after_ms": 2000},
            "2",
        ),
    ],
)
def test_an_error_is_a_response_that_says_what_the_wire_says(
    kind: type[Starlette], raised: ChatError, status: int, body: dict[str, Any], wait: str | None
) -> None:
    response = TestClient(application(kind, raised)).get("/send")

    assert (response.status_code, response.json()) == (status, body)
    assert response.headers["content-type"] == "application/json"
    assert response.headers["cache-control"] == "no-store"
    assert response.headers.get("retry-after") == wait


def test_a_plain_endpoint_and_a_coroutine_are_answered_alike() -> None:
    chat = Chat(rate_limit=RateLimit(messages_per_sec=0.001, burst=1))
    app = FastAPI(lifespan=chat.lifespan)
    app.add_exception_handler(ChatError, chat_error_response)

    @app.post("/say/{text}")
    async def say(text: str) -> str:
        return (await chat.send_message("general", "ada", text)).content

    @app.post("/refused")
    def refused() -> None:
        raise Blocked

    with TestClient(app) as client:
        assert client.post("/say/hello").json() == "hello"
        too_fast = client.post("/say/hello")
        assert (too_fast.status_code, too_fast.json()["code"]) == (429, "rate_limited")
        assert int(too_fast.headers["retry-after"]) > 900
        assert client.post("/refused").status_code == 422
    assert TestClient(app).post("/say/hello").status_code == 503


def test_what_ends_a_websocket_of_the_application_is_not_swallowed() -> None:
    client = TestClient(application(Starlette, Blocked("Not here.")))

    with pytest.raises(Blocked, match="Not here"), client.websocket_connect("/own") as websocket:
        websocket.receive_text()


def test_another_exception_is_not_taken_for_an_answer() -> None:
    app = application(Starlette, ZeroDivisionError())
    app.add_exception_handler(ZeroDivisionError, chat_error_response)

    with pytest.raises(ZeroDivisionError):
        TestClient(app).get("/send")
