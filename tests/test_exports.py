"""The public API: these names, with these parameters. Whoever changes one of them changes this file too."""

import inspect
import tomllib
import typing
from pathlib import Path
from typing import Any

import pytest
from msgspec import Struct

import chatx
from chatx import ERRORS, Chat, ChatConfig, ChatError, Connection, Statistics, Subscription

NAMES = [
    "ERRORS",
    "AdapterError",
    "AlreadyStarted",
    "Auth",
    "Blocked",
    "CallbackSubscription",
    "Chat",
    "ChatConfig",
    "ChatError",
    "Closed",
    "ConfigError",
    "Connection",
    "DeadLetter",
    "Draft",
    "EpochChanged",
    "Event",
    "Gap",
    "Identity",
    "InvalidMessage",
    "MarksStreams",
    "Message",
    "MessageTooLarge",
    "Moderation",
    "Notification",
    "Notifier",
    "Persistence",
    "Position",
    "PresenceDiff",
    "PresenceMeta",
    "PresenceState",
    "RateLimit",
    "RateLimited",
    "Revoked",
    "RoomOverloaded",
    "RoomUnavailable",
    "ServesHistory",
    "SlowConsumer",
    "Statistics",
    "StoreInUse",
    "SubscriberFailed",
    "Subscription",
    "SubscriptionEnded",
    "Telemetry",
    "TooManyJoins",
    "TooOld",
    "Unauthorized",
    "UnmatchedTopic",
    "WrongLoop",
]


def test_these_are_the_public_names() -> None:
    assert chatx.__all__ == NAMES
    assert all(hasattr(chatx, name) for name in NAMES)
    namespace: dict[str, Any] = {}
    exec("from chatx import *", namespace)
    assert set(namespace) - {"__builtins__"} == set(NAMES)


def test_everything_public_has_a_docstring() -> None:
    for name in NAMES:
        thing = getattr(chatx, name)
        if inspect.isclass(thing):
            assert thing.__doc__, name
            for method, function in inspect.getmembers(thing, inspect.isfunction):
                if not method.startswith("_") and function.__module__.startswith("chatx"):
                    assert function.__doc__, f"{name}.{method}"


def test_the_package_says_that_it_is_typed() -> None:
    assert (Path(chatx.__file__).parent / "py.typed").exists()


def test_the_version_is_the_distributions() -> None:
    project = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text())["project"]
    assert chatx.__version__ == project["version"]


def parameters(function: Any) -> str:
    """Return the parameters but for annotations: names, kinds and defaults."""
    signature = inspect.signature(function)
    plain = [each.replace(annotation=inspect.Parameter.empty) for each in signature.parameters.values()]
    return str(inspect.Signature(plain))


SIGNATURES = {
    "Chat": (Chat, "(*, config=None, **options)"),
    "start": (Chat.start, "(self)"),
    "stop": (Chat.stop, "(self, *, drain_timeout_ms=None)"),
    "lifespan": (Chat.lifespan, "(self, app)"),
    "join": (Chat.join, "(self, room_id, user_id)"),
    "leave": (Chat.leave, "(self, room_id, user_id)"),
    "send_message": (
        Chat.send_message,
        (
            "(self, room_id, user_id, content, *, idempotency_key=None, trusted=False, durability=None, data=None, "
            "epoch=None)"
        ),
    ),
    "subscribe": (
        Chat.subscribe,
        "(self, room_id, *, after=None, presence=False, user_id=None, overflow='disconnect')",
    ),
    "subscribe_callback": (
        Chat.subscribe_callback,
        "(self, room_id, callback, *, after=None, presence=False, user_id=None, on_closed=None)",
    ),
    "connect": (Chat.connect, "(self, user_id, *, overflow='disconnect')"),
    "presence": (Chat.presence, "(self, room_id)"),
    "history": (Chat.history, "(self, room_id, *, before=None, after=None, limit=50)"),
    "outbox": (Chat.outbox, "(self, *, state=None, after=None, limit=100)"),
    "revoke": (Chat.revoke, "(self, user_id)"),
    "statistics": (Chat.statistics, "(self)"),
    "asgi": (Chat.asgi, "(self, *, authenticate, **options)"),
    "api": (Chat.api, "(self, *, authenticate=None, **options)"),
    "live": (Chat.live, "(self, room_id, render, *, user_id, history=50)"),
    "Connection.join": (Connection.join, "(self, room_id)"),
    "Connection.leave": (Connection.leave, "(self, room_id)"),
    "Connection.subscribe": (Connection.subscribe, "(self, room_id, *, after=None, presence=False)"),
    "Connection.unsubscribe": (Connection.unsubscribe, "(self, room_id)"),
    "Connection.send_message": (
        Connection.send_message,
        "(self, room_id, content, *, idempotency_key=None, trusted=False, durability=None, data=None, epoch=None)",
    ),
    "ChatConfig.load": (ChatConfig.load, "(path=None, env=...)"),
    "Telemetry.attach": (chatx.Telemetry.attach, "(self, event, handler)"),
    "ChatError": (ChatError, "(reason='', *, retry_after=None)"),
    "Auth.authorize": (chatx.Auth.authorize, "(self, user_id, room_id, action, /)"),
    "Moderation.check": (chatx.Moderation.check, "(self, content, /)"),
    "Notifier.notify": (chatx.Notifier.notify, "(self, user_id, message, /)"),
    "load_messages": (
        chatx.ServesHistory.load_messages,
        "(self, room_id, /, *, after=None, before=None, limit)",
    ),
    "last_position": (chatx.ServesHistory.last_position, "(self, room_id, /)"),
}


@pytest.mark.parametrize("function,expected", SIGNATURES.values(), ids=SIGNATURES)
def test_the_parameters_are_as_pinned(function: Any, expected: str) -> None:
    found = parameters(function)
    if "env=" in found:
        found = found[: found.index("env=")] + "env=...)"
    assert found == expected


def test_persistence_is_saved_by_one_method_or_the_other() -> None:
    each, batches = typing.get_args(chatx.Persistence)
    assert parameters(each.save_message) == "(self, message, /)"
    assert parameters(batches.save_messages) == "(self, messages, /)"


def test_coroutines_are_those_that_may_wait() -> None:
    for function in (
        Chat.join,
        Chat.leave,
        Chat.send_message,
        Chat.presence,
        Chat.history,
        Chat.outbox,
        Chat.start,
        Chat.stop,
    ):
        assert inspect.iscoroutinefunction(function)
    for method in ("join", "leave", "subscribe", "unsubscribe", "send_message"):
        assert inspect.iscoroutinefunction(getattr(Connection, method))
    for plain in (Chat.subscribe, Chat.subscribe_callback, Chat.connect, Chat.statistics, Subscription.close):
        assert not inspect.iscoroutinefunction(plain)


def test_a_chat_has_no_other_public_names_than_these() -> None:
    public = {name for name in dir(Chat()) if not name.startswith("_")}
    assert public == {
        *("config", "telemetry", "engine", "dead_letters", "on_drain", "drained"),
        *("start", "stop", "lifespan", "join", "leave", "send_message", "subscribe", "subscribe_callback", "connect"),
        *("presence", "history", "outbox", "revoke", "statistics", "asgi", "api", "live"),
    }


FIELDS = {
    "Draft": ("room_id", "user_id", "content", "data", "epoch"),
    "Message": (
        "id",
        "room_id",
        "user_id",
        "content",
        "inserted_at",
        "epoch",
        "offset",
        "duplicate",
        "stored",
        "data",
    ),
    "Gap": ("room_id", "reason", "epoch", "offset", "missed"),
    "Notification": ("id", "room_id", "users", "attempts", "state", "due_at", "reason"),
    "PresenceMeta": ("ref", "online_at"),
    "PresenceState": ("room_id", "presences"),
    "PresenceDiff": ("room_id", "joins", "leaves"),
    "SubscriptionEnded": ("room_id", "code", "reason"),
    "DeadLetter": ("message", "adapter", "user_id", "attempts", "reason"),
    "RateLimit": ("messages_per_sec", "burst"),
}


@pytest.mark.parametrize("name", FIELDS)
def test_the_fields_of_what_goes_out_are_as_pinned_and_frozen(name: str) -> None:
    struct = getattr(chatx, name)
    assert issubclass(struct, Struct)
    assert struct.__struct_fields__ == FIELDS[name]
    assert struct.__struct_config__.frozen


def test_statistics_are_frozen_numbers() -> None:
    assert Statistics.__struct_config__.frozen
    stopped = Statistics(running=False, cluster_strategy="local")
    for name in Statistics.__struct_fields__[2:]:
        assert getattr(stopped, name) in (0, {}), name


# Errors

CODES = {
    "config_error": False,
    "invalid_message": False,
    "message_too_large": False,
    "unauthorized": False,
    "revoked": False,
    "blocked": False,
    "rate_limited": True,
    "room_overloaded": True,
    "room_unavailable": True,
    "adapter_error": True,
    "slow_consumer": True,
    "subscriber_failed": False,
    "epoch_changed": False,
    "too_old": False,
    "unmatched_topic": False,
    "too_many_joins": True,
    "closed": False,
    "already_started": False,
    "store_in_use": True,
    "wrong_loop": False,
}
"""Code to whether it is worth trying again."""


def test_the_table_of_errors_is_as_pinned() -> None:
    assert {code: error.retryable for code, error in ERRORS.items()} == CODES
    assert all(error.code == code for code, error in ERRORS.items())


def test_every_error_of_the_tree_is_in_the_table_and_exported() -> None:
    tree = [error for error in ChatError.__subclasses__() if error.__module__ == "chatx.errors"]
    assert set(tree) == set(ERRORS.values())
    assert all(getattr(chatx, error.__name__) is error for error in tree)


@pytest.mark.parametrize("error", ERRORS.values(), ids=ERRORS)
def test_an_error_says_what_it_means_and_carries_its_data(error: type[ChatError]) -> None:
    plain = error()
    assert str(plain) == plain.reason == error.summary
    assert plain.retry_after is None
    full = error("Because.", retry_after=1.5)
    assert (str(full), full.reason, full.retry_after) == ("Because.", "Because.", 1.5)
    again = full.again()
    assert (type(again), again.reason, again.retry_after) == (error, "Because.", 1.5)
    assert again is not full
    assert again.__traceback__ is None
