"""A realtime chat engine to embed in a Python web application.

from chatx import Chat

chat = Chat()

async with chat:
    await chat.join("general", "alice")
    async with chat.subscribe("general") as subscription:
        await chat.send_message("general", "alice", "Hello everyone!")
        async for message in subscription:
            break

Each name is imported when it is first asked for. So the command `chatx` has begun, and ends quietly where it is
interrupted, before most of it is loaded.
"""

TYPE_CHECKING = False  # as type checkers know it: to load typing takes as long as what is left to load here
if TYPE_CHECKING:
    from chatx.adapters.outbox import Notification
    from chatx.adapters.protocols import Auth, MarksStreams, Moderation, Notifier, Persistence, ServesHistory
    from chatx.chat import Chat
    from chatx.config import ChatConfig
    from chatx.core.message import (
        Draft,
        Event,
        Gap,
        Message,
        Position,
        PresenceDiff,
        PresenceMeta,
        PresenceState,
        SubscriptionEnded,
    )
    from chatx.core.rate_limit import RateLimit
    from chatx.errors import (
        ERRORS,
        AdapterError,
        AlreadyStarted,
        Blocked,
        ChatError,
        Closed,
        ConfigError,
        EpochChanged,
        InvalidMessage,
        MessageTooLarge,
        RateLimited,
        Revoked,
        RoomOverloaded,
        RoomUnavailable,
        SlowConsumer,
        StoreInUse,
        SubscriberFailed,
        TooManyJoins,
        TooOld,
        Unauthorized,
        UnmatchedTopic,
        WrongLoop,
    )
    from chatx.gateway.entry.handshake import Identity
    from chatx.runtime.connection import Connection
    from chatx.runtime.dead_letters import DeadLetter
    from chatx.runtime.statistics import Statistics
    from chatx.runtime.subscription import CallbackSubscription, Subscription
    from chatx.telemetry import Telemetry

__all__ = [
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
__version__ = "0.1.0"

_HOMES = {
    "adapters.outbox": ("Notification",),
    "adapters.protocols": ("Auth", "MarksStreams", "Moderation", "Notifier", "Persistence", "ServesHistory"),
    "chat": ("Chat",),
    "config": ("ChatConfig",),
    "core.message": (
        "Draft",
        "Event",
        "Gap",
        "Message",
        "Position",
        "PresenceDiff",
        "PresenceMeta",
        "PresenceState",
        "SubscriptionEnded",
    ),
    "core.rate_limit": ("RateLimit",),
    "errors": (
        "ERRORS",
        "AdapterError",
        "AlreadyStarted",
        "Blocked",
        "ChatError",
        "Closed",
        "ConfigError",
        "EpochChanged",
        "InvalidMessage",
        "MessageTooLarge",
        "RateLimited",
        "Revoked",
        "RoomOverloaded",
        "RoomUnavailable",
        "SlowConsumer",
        "StoreInUse",
        "SubscriberFailed",
        "TooManyJoins",
        "TooOld",
        "Unauthorized",
        "UnmatchedTopic",
        "WrongLoop",
    ),
    "gateway.entry.handshake": ("Identity",),
    "runtime.connection": ("Connection",),
    "runtime.dead_letters": ("DeadLetter",),
    "runtime.statistics": ("Statistics",),
    "runtime.subscription": ("CallbackSubscription", "Subscription"),
    "telemetry": ("Telemetry",),
}

if not TYPE_CHECKING:  # what is not there is an error to a type checker

    def __getattr__(name: str) -> object:
        for home, names in _HOMES.items():
            if name in names:
                from importlib import import_module

                found = globals()[name] = getattr(import_module(f"chatx.{home}"), name)
                return found
        raise AttributeError(f"module 'chatx' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__} - {"TYPE_CHECKING"})
