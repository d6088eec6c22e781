"""What an option may be: its checks, and how an error shows a value that is not."""

from __future__ import annotations

import inspect
import re
import sys
from collections.abc import Callable, Mapping
from typing import Any, Final

from chatx.adapters.boundary import check_arguments, check_method
from chatx.adapters.retention import trims
from chatx.adapters.room_log import check_log, is_log
from chatx.adapters.stores import check_store, kind_of
from chatx.core.middleware import Middleware
from chatx.core.node_names import valid_cluster_name, valid_node_name
from chatx.core.rate_limit import RateLimit
from chatx.errors import ConfigError, Problems

BUILT_IN = ("auth", "rate_limit", "moderation")
"""The names of the built-in middlewares, in their default order."""

STRATEGIES = ("local", "pg", "horde")

# A whole number beyond this is a mistake, and is no longer exact in JSON or TOML elsewhere.
_MOST = 2**53 - 1

# The user and the password of a URL, which may stand where it does not belong: in an option's name that is misspelt.
_PASSWORD = re.compile(r"(\w:/*)[^\s'\"]*@")

DURABILITIES: Final = ("sequenced", "stored")
"""What an acknowledgement can say: the message has its place and is on its way to all, or the log has it too."""


def shown_value(value: object) -> str:
    """Return a value for an error: short, without passwords, and also where it has no text, as of 5,000 digits."""
    try:
        text = repr(value)
    except Exception:
        return f"a value of type {type(value).__name__}"
    text = _PASSWORD.sub(r"\1...@", text)
    return text if len(text) <= 200 else f"{text[:200]}..."


def check_number(name: str, value: object, metadata: Mapping[str, Any]) -> None:
    """Raise `ConfigError` unless an option is a whole number within the bounds of its field's metadata."""
    least = metadata["least"]
    # bool is an int in Python, and True messages is a mistake.
    if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= _MOST:
        raise ConfigError(
            f"{name} is {shown_value(value)}; it must be a whole number of {metadata['unit']}, "
            f"at least {least} and at most {_MOST}."
        )


def check_rate_limit(value: object, problems: Problems) -> None:
    """Add to the problems what is wrong with the rate limit."""
    with problems.gathered():
        if not isinstance(value, RateLimit):
            raise ConfigError(
                f"rate_limit is {shown_value(value)}; it must be RateLimit(messages_per_sec=..., burst=...)."
            )
        rate, burst = value.messages_per_sec, value.burst
        with problems.gathered():
            if isinstance(rate, bool) or not isinstance(rate, (int, float)) or not 0 < rate <= sys.float_info.max:
                raise ConfigError(
                    f"rate_limit.messages_per_sec is {shown_value(rate)}; it must be a finite number above 0."
                )
        if isinstance(burst, bool) or not isinstance(burst, int) or burst < 1:
            raise ConfigError(f"rate_limit.burst is {shown_value(burst)}; it must be a whole number of at least 1.")


def check_strategy(value: object) -> None:
    """Raise `ConfigError` unless there is such a cluster strategy."""
    if value not in STRATEGIES:
        raise ConfigError(f"cluster_strategy is {shown_value(value)}; it must be one of {', '.join(STRATEGIES)}.")


_URL = re.compile(
    r"(?:nats|tls)://(?:(?P<user>[^\s/@,]*)@)?(?:[A-Za-z0-9._-]+|\[[0-9A-Fa-f:.]+\])(?::(?P<port>[0-9]{1,5}))?/?"
)


LARGEST_BETWEEN_NODES: Final = 600_000
"""Bytes of a message, content and data together, that go between nodes: in one record, with memberships beside it."""


MOST_REPLICAS: Final = 5
"""Servers of NATS that have one stream, at most."""


def check_cluster(config: Any, problems: Problems) -> None:
    """Add to the problems what is wrong with the options of the cluster, of a `ChatConfig`."""
    with problems.gathered():
        valid_cluster_name(config.cluster_name)
    if config.node_name is not None:
        with problems.gathered():
            valid_node_name(config.node_name)
    for name in ("cluster_url", "cluster_credentials", "cluster_ca", "cluster_cert", "cluster_key"):
        value = getattr(config, name)
        with problems.gathered():
            if value is not None and (not isinstance(value, str) or not value):
                raise ConfigError(f"{name} is {shown_value(value)}; it must be a text.")
    url = config.cluster_url
    with problems.gathered():
        if isinstance(url, str) and url:
            _check_nodes_url(url, config.cluster_credentials)
    strategy = config.cluster_strategy
    with problems.gathered():
        if url is None and strategy in ("pg", "horde"):
            raise ConfigError(
                f"cluster_strategy is {strategy!r} and there is no cluster_url: give the URL of a NATS server that all "
                "nodes reach, as nats://127.0.0.1:4222."
            )
        if strategy in ("pg", "horde") and _has_one_writer(config):
            raise ConfigError(
                f"cluster_strategy is {strategy!r} and the store has one writer, so it is for one node. Use "
                "PostgreSQL, which the nodes can share; or 'horde' and no store, since its nodes keep a log of their "
                "own; or a persistence adapter of your own."
            )
        if url is not None and strategy == "local":
            raise ConfigError(
                "cluster_url is given, and cluster_strategy 'local' has no use for it; use 'pg' or 'horde'."
            )
    with problems.gathered():
        content, data = config.message_size_limit, config.message_data_limit
        # What is no number is another problem, and told as one.
        if (
            strategy in ("pg", "horde")
            and type(content) is type(data) is int
            and content + data > LARGEST_BETWEEN_NODES
        ):
            raise ConfigError(
                f"cluster_strategy is {strategy!r}, and message_size_limit and message_data_limit are {content} and "
                f"{data}, which is {shown_value(content + data)} bytes together; a message of at most "
                f"{LARGEST_BETWEEN_NODES} goes between nodes. Lower one of them, and let a message name what is larger."
            )
    with problems.gathered():
        replicas = config.cluster_replicas
        if strategy == "horde" and type(replicas) is int and replicas > MOST_REPLICAS:
            raise ConfigError(
                f"cluster_replicas is {shown_value(replicas)}; NATS has a log on at most {MOST_REPLICAS} servers. "
                "Three survive the loss of one."
            )
    with problems.gathered():
        if (config.cluster_cert is None) != (config.cluster_key is None):
            raise ConfigError("cluster_cert and cluster_key belong together; give both or neither.")


def _has_one_writer(config: Any) -> bool:
    store = config.store
    if isinstance(store, str):
        try:
            return kind_of(store) == "sqlite"
        except ConfigError:
            return False  # which is another problem, and told as one
    return is_log(config.persistence) and not hasattr(config.persistence, "share")


def _check_nodes_url(url: str, credentials: object) -> None:
    found = [_URL.fullmatch(each.strip()) for each in url.split(",")]
    if not all(each is not None and 0 < int(each["port"] or 4222) < 65536 for each in found):
        raise ConfigError(
            f"cluster_url is {shown_value(without_passwords(url))}; give nats://host:port or tls://host:port, several "
            "of one cluster by commas. Quote what is in a user or a password: a / is %2F, an @ %40."
        )
    users = {each["user"] for each in found if each is not None and each["user"] is not None}
    if len(users) > 1:
        raise ConfigError("cluster_url names several users; a node is one user on all servers.")
    if users and credentials is not None:
        raise ConfigError("cluster_url names a user, and cluster_credentials is given; give one of them.")


def without_passwords(url: str) -> str:
    """Return the URL of a cluster as it may be shown; of one that is none, what is behind all users and passwords."""
    if all(_URL.fullmatch(each.strip()) for each in url.split(",")):
        return re.sub(r"//[^/@,]*@", "//...@", url)
    # A password that was not quoted may have anything in it, and so end up anywhere.
    return f"...@{url.rpartition('@')[2]}" if "@" in url else url


def check_dead_letter_handler(value: object) -> None:
    """Raise `ConfigError` unless a dead letter can be given to the handler."""
    if not callable(value):
        raise ConfigError(f"on_dead_letter is {shown_value(value)}; it must be a callable of one argument.")
    check_arguments("on_dead_letter", value, "dead_letter")


def _check_auth(auth: object) -> None:
    check_method("auth", auth, "authorize", "user_id", "room_id", "action")


def _check_moderation(moderation: object) -> None:
    if hasattr(moderation, "check_message"):
        check_method("moderation", moderation, "check_message", "draft")
    else:
        check_method("moderation", moderation, "check", "content")


def _check_notifier(notifier: object) -> None:
    check_method("notifier", notifier, "notify", "user_id", "message")
    if hasattr(notifier, "recipients"):
        check_method("notifier", notifier, "recipients", "message")


def check_store_option(store: object, persistence: object) -> None:
    """Raise `ConfigError` where the store is no URL of one, or persistence is given beside it."""
    if store is None:
        return
    if persistence is not None:
        raise ConfigError("store and persistence are both given; give one of them.")
    check_store(store)


def check_durability(config: Any) -> None:
    """Raise `ConfigError` unless there is such a durability, and a log where it needs one."""
    durability = config.durability
    if durability not in DURABILITIES:
        raise ConfigError(f"durability is {shown_value(durability)}; it must be one of {', '.join(DURABILITIES)}.")
    if durability == "stored" and not _has_log(config):
        raise ConfigError(
            "durability is 'stored', and persistence is no log that could say so; give one, such as "
            "store='sqlite:///chat.db', or leave durability at 'sequenced'."
        )


def _has_log(config: Any) -> bool:
    """Return whether there is a log, or a store that is one, which has not been opened yet."""
    return config.store is not None or config.cluster_strategy == "horde" or is_log(config.persistence)


def check_retention(name: str, config: Any) -> None:
    """Raise `ConfigError` where an option bounds what is kept, and nothing that saves here lets go of it."""
    value = getattr(config, name)
    if type(value) is not int or not 0 < value <= _MOST:
        return
    given = config.persistence
    if not _has_log(config) or (given is not None and not (is_log(given) and trims(given))):
        raise ConfigError(
            f"{name} is {shown_value(value)}, and persistence is no log that lets go of old entries; give one, such as "
            f"store='sqlite:///chat.db', or leave {name} at 0 and delete what is old yourself."
        )


def _check_persistence(persistence: object) -> None:
    if is_log(persistence):
        check_log(persistence)
        return
    batches = hasattr(persistence, "save_messages")
    if batches:
        check_method("persistence", persistence, "save_messages", "messages")
    if hasattr(persistence, "save_message") or not batches:
        check_method("persistence", persistence, "save_message", "message")
    if hasattr(persistence, "load_messages") or hasattr(persistence, "last_position"):
        check_method("persistence", persistence, "load_messages", "room_id", after=None, before=None, limit=1)
        check_method("persistence", persistence, "last_position", "room_id")
    if hasattr(persistence, "mark_open") or hasattr(persistence, "mark_closed"):
        check_method("persistence", persistence, "mark_open", "room_id", "epoch")
        check_method("persistence", persistence, "mark_closed", "room_id", "epoch", "offset")
    if hasattr(persistence, "mark_all_closed"):
        check_method("persistence", persistence, "mark_all_closed", "ends")
        check_method("persistence", persistence, "mark_closed", "room_id", "epoch", "offset")


ADAPTERS: dict[str, Callable[[object], None]] = {
    "persistence": _check_persistence,
    "notifier": _check_notifier,
    "moderation": _check_moderation,
    "auth": _check_auth,
}
"""By an adapter's option, what raises `ConfigError` where the adapter lacks a method or takes other arguments."""


def checked_middlewares(value: object, problems: Problems) -> tuple[str | Middleware, ...]:
    """Return the middlewares as a tuple; what is wrong with any of them is added to the problems."""
    if not isinstance(value, (tuple, list)):
        with problems.gathered():
            raise ConfigError(
                f"middlewares is {shown_value(value)}; it must be a tuple of {', '.join(BUILT_IN)} and callables."
            )
        return ()
    for place, each in enumerate(value):
        with problems.gathered():
            _check_middleware(each, again=isinstance(each, str) and each in value[:place])
    return tuple(value)


def _check_middleware(value: object, *, again: bool) -> None:
    if isinstance(value, str):
        if value not in BUILT_IN:
            raise ConfigError(
                f"There is no middleware {shown_value(value)}; there are {', '.join(BUILT_IN)}, or a callable."
            )
        if again:
            raise ConfigError(f"The middleware {shown_value(value)} is there twice; name it once.")
    elif not callable(value) or inspect.isclass(value):
        raise ConfigError(f"The middleware {shown_value(value)} is not a callable of one draft; give a function.")
    else:
        check_arguments(f"The middleware {import_name(value)}", value, "draft")


def import_name(value: object) -> str:
    """Return the import string of an object, or of its class where it has no name of its own."""
    named = value if hasattr(value, "__qualname__") else type(value)
    return f"{named.__module__}:{named.__qualname__}"
