"""Every option: its default, its unit and its bound, in one table.

`ChatConfig` is what `Chat(**options)` builds; `ChatConfig.load` reads it from TOML and the environment.
"""

from __future__ import annotations

import importlib
import inspect
import os
import re
import sys
import tomllib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal, Self

from chatx.adapters.boundary import check_arguments, check_method
from chatx.adapters.protocols import Auth, Moderation, Notifier, Persistence
from chatx.adapters.retention import trims
from chatx.adapters.room_log import RoomLog, check_log, is_log
from chatx.adapters.stores import check_store, shown
from chatx.core.middleware import Middleware
from chatx.core.rate_limit import RateLimit
from chatx.errors import ConfigError, Problems

BUILT_IN = ("auth", "rate_limit", "moderation")
"""The names of the built-in middlewares, in their default order."""

STRATEGIES = ("local", "pg", "horde")

# A whole number beyond this is a mistake, and is no longer exact in JSON or TOML elsewhere.
_MOST = 2**53 - 1

# The user and the password of a URL, which may stand where it does not belong: in an option's name that is misspelt.
_PASSWORD = re.compile(r"(\w:/*)[^\s'\"]*@")

# Secrets are read elsewhere from the same environment; they are not options.
_SECRETS = frozenset({"CHATX_SECRET", "CHATX_ADMIN_TOKEN"})


def _number(default: int, unit: str, doc: str, *, least: int = 1) -> Any:
    return field(default=default, metadata={"unit": unit, "least": least, "doc": doc})


DURABILITIES: Final = ("sequenced", "stored")
"""What an acknowledgement can say: the message has its place and is on its way to all, or the log has it too."""


def _object(default: Any, doc: str, *, repr: bool = True) -> Any:  # noqa: A002 # as of a dataclass's field
    return field(default=default, metadata={"doc": doc}, repr=repr)


@dataclass(frozen=True, kw_only=True, slots=True)
class ChatConfig:
    """The options of a chat, checked when built.

    Raises:
        ConfigError: Options are unknown, out of range, or of the wrong type; an adapter lacks a method, or its method
            does not take the right arguments. All that is wrong is in one error.
    """

    persistence: Persistence | RoomLog | None = _object(None, "where messages are saved; nowhere by default")
    store: str | None = _object(
        None,
        "where messages are saved, as a URL, which the chat opens and closes itself; in place of persistence",
        repr=False,
    )
    notifier: Notifier | None = _object(None, "who tells users of messages; nobody by default")
    moderation: Moderation | None = _object(None, "who refuses content; nobody by default")
    auth: Auth | None = _object(None, "who refuses users; nobody by default")
    middlewares: tuple[str | Middleware, ...] = _object(
        BUILT_IN, "what a message goes through, in order: built-in names and callables"
    )
    message_size_limit: int = _number(4096, "bytes of UTF-8", "the largest content")
    message_data_limit: int = _number(4096, "bytes of JSON", "the largest data that travels with a message")
    room_queue_limit: int = _number(2048, "messages", "admitted to a room and not yet sequenced")
    rate_limit: RateLimit = _object(RateLimit(), "the token bucket of each user in each room")
    durability: Literal["sequenced", "stored"] = _object(
        "sequenced", "what an acknowledgement says: it has its place, or the log has it too"
    )
    delivery_batch_size: int = _number(100, "messages", "handed to persistence at a time")
    delivery_tick_ms: int = _number(100, "ms", "the longest a message waits for its batch to fill")
    delivery_max_retries: int = _number(5, "retries", "after a failed delivery, before it is a dead letter", least=0)
    delivery_retry_base_ms: int = _number(100, "ms", "ceiling of the first backoff; it doubles each time")
    cluster_strategy: Literal["local", "pg", "horde"] = _object("local", "one of local, pg, horde")
    mailbox_size: int = _number(1024, "events", "unread by one subscriber")
    mailbox_bytes: int = _number(1048576, "bytes", "unread by one subscriber")
    history_size: int = _number(256, "messages", "kept in memory per room, for resume")
    retention_days: int = _number(0, "days", "for which a log keeps an entry; 0 keeps it for ever", least=0)
    retention_messages: int = _number(0, "messages", "of a room that a log keeps, the newest; 0 keeps all", least=0)
    delivery_queue_limit: int = _number(10000, "messages", "waiting for persistence and notifier")
    adapter_timeout_ms: int = _number(5000, "ms", "bound of each adapter call that awaits or runs in a thread")
    drain_timeout_ms: int = _number(10000, "ms", "bound of the drain when the chat stops")
    room_idle_ms: int = _number(60000, "ms", "after which a room that nothing holds is forgotten")
    idempotency_bytes: int = _number(32 * 1024 * 1024, "bytes", "idempotency keys of all rooms; one user has a quarter")
    idle_rooms_limit: int = _number(
        10000, "rooms", "kept that nobody is in; the oldest are forgotten early, or new ones refused"
    )
    resume_max_messages: int = _number(10000, "messages", "the most a resume replays")
    history_bytes_per_sec: int = _number(
        1048576, "bytes", "of history and replays that one user's sockets may have read, per second; 8 s of it at once"
    )
    max_connections_per_user: int = _number(
        10, "sockets", "of one user on one gateway; 0 is no bound, as in the two below", least=0
    )
    max_connections_per_address: int = _number(
        0, "sockets", "of one network address, an IPv6 /64 counting as one", least=0
    )
    max_joins_per_connection: int = _number(100, "rooms", "joined by one socket at a time", least=0)
    dead_letter_limit: int = _number(1000, "messages", "given-up deliveries kept for inspection; the oldest goes")
    on_dead_letter: Callable[[Any], object] | None = _object(None, "called with each DeadLetter; plain or async")

    if not TYPE_CHECKING:

        def __new__(cls, **options: Any) -> Self:
            """Refuse unknown options with an error that names them; the rest is the dataclass's own."""
            problems = Problems()
            known = _known(options, problems)
            if len(known) < len(options):
                with problems.gathered():
                    cls(**known)
                problems.tell()
            return object.__new__(cls)

    def __post_init__(self) -> None:
        """Check every option, and tell all that is wrong."""
        problems = Problems()
        for option in fields(self):
            if "least" in option.metadata:
                with problems.gathered():
                    _check_number(option.name, getattr(self, option.name), option.metadata)
        _check_rate_limit(self.rate_limit, problems)
        with problems.gathered():
            _check_strategy(self.cluster_strategy)
        _check_adapters(self, problems)
        with problems.gathered():
            _check_store(self.store, self.persistence)
        with problems.gathered():
            _check_durability(self.durability, self.persistence, self.store)
        for name in ("retention_days", "retention_messages"):
            with problems.gathered():
                _check_retention(name, getattr(self, name), self.persistence, self.store)
        object.__setattr__(self, "middlewares", _checked_middlewares(self.middlewares, problems))
        if self.on_dead_letter is not None:
            with problems.gathered():
                _check_dead_letter_handler(self.on_dead_letter)
        problems.tell()

    @classmethod
    def load(cls, path: str | os.PathLike[str] | None = None, env: Mapping[str, str] = os.environ) -> Self:
        """Read the options from TOML and from the environment, which goes first.

        Args:
            path: A TOML file with a table `[chatx]`, or a pyproject with `[tool.chatx]`. None reads no file.
            env: Variables such as `CHATX_ROOM_QUEUE_LIMIT=4096`; tables and lists as TOML values,
                `CHATX_RATE_LIMIT='{ messages_per_sec = 10, burst = 20 }'`. An adapter or a middleware is an import
                string `package.module:name`; a class is called without arguments.

        Raises:
            ConfigError: The file cannot be read, or options are not valid: all of them in one error.
        """
        problems = Problems()
        options: dict[str, Any] = {}
        if path is not None:
            with problems.gathered():
                options |= _known(_from_file(Path(path)), problems)
        options |= _from_env(env, problems)
        for name in (*_ADAPTERS, "on_dead_letter"):
            if name in options:
                with problems.gathered():
                    options[name] = _imported(name, options.pop(name))
        if "middlewares" in options:
            options["middlewares"] = _imported_middlewares(options["middlewares"], problems)
        if "rate_limit" in options:
            with problems.gathered():
                options["rate_limit"] = _rate_limit_of(options.pop("rate_limit"))
        with problems.gathered():
            config = cls(**options)
        problems.tell()
        return config

    def effective(self) -> dict[str, Any]:
        """Return every option by name, as values that JSON can hold; no password is among them."""
        values: dict[str, Any] = {}
        for option in fields(self):
            value = getattr(self, option.name)
            if isinstance(value, RateLimit):
                value = {"messages_per_sec": value.messages_per_sec, "burst": value.burst}
            elif option.name == "middlewares":
                value = [each if isinstance(each, str) else _import_name(each) for each in value]
            elif option.name == "store" and value is not None:
                value = shown(value)
            elif value is not None and not isinstance(value, (int, str)):
                value = _import_name(value)
            values[option.name] = value
        return values


_OPTIONS = frozenset(option.name for option in fields(ChatConfig))


def _shown(value: object) -> str:
    """Return a value for an error: short, and also where it has no text, as a number of 5,000 digits."""
    try:
        text = repr(value)
    except Exception:
        return f"a value of type {type(value).__name__}"
    text = _PASSWORD.sub(r"\1...@", text)
    return text if len(text) <= 200 else f"{text[:200]}..."


def _known(options: Mapping[str, Any], problems: Problems) -> dict[str, Any]:
    """Return the options that exist, by name; the others are added to the problems."""
    for name in [each for each in options if each not in _OPTIONS]:
        with problems.gathered():
            raise ConfigError(f"There is no option {name} (value {_shown(options[name])}){_did_you_mean(name)}")
    return {name: value for name, value in options.items() if name in _OPTIONS}


def _did_you_mean(name: str) -> str:
    import difflib

    close = difflib.get_close_matches(name, _OPTIONS, n=1)
    return f"; did you mean {close[0]}?" if close else f"; there are {', '.join(sorted(_OPTIONS))}."


def _check_number(name: str, value: object, metadata: Mapping[str, Any]) -> None:
    least = metadata["least"]
    # bool is an int in Python, and True messages is a mistake.
    if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= _MOST:
        raise ConfigError(
            f"{name} is {_shown(value)}; it must be a whole number of {metadata['unit']}, "
            f"at least {least} and at most {_MOST}."
        )


def _check_rate_limit(value: object, problems: Problems) -> None:
    with problems.gathered():
        if not isinstance(value, RateLimit):
            raise ConfigError(f"rate_limit is {_shown(value)}; it must be RateLimit(messages_per_sec=..., burst=...).")
        rate, burst = value.messages_per_sec, value.burst
        with problems.gathered():
            if isinstance(rate, bool) or not isinstance(rate, (int, float)) or not 0 < rate <= sys.float_info.max:
                raise ConfigError(f"rate_limit.messages_per_sec is {_shown(rate)}; it must be a finite number above 0.")
        if isinstance(burst, bool) or not isinstance(burst, int) or burst < 1:
            raise ConfigError(f"rate_limit.burst is {_shown(burst)}; it must be a whole number of at least 1.")


def _check_strategy(value: object) -> None:
    if value not in STRATEGIES:
        raise ConfigError(f"cluster_strategy is {_shown(value)}; it must be one of {', '.join(STRATEGIES)}.")
    if value != "local":
        raise ConfigError(f"cluster_strategy is '{value}', which this version does not have yet; use 'local'.")


def _check_dead_letter_handler(value: object) -> None:
    if not callable(value):
        raise ConfigError(f"on_dead_letter is {_shown(value)}; it must be a callable of one argument.")
    check_arguments("on_dead_letter", value, "dead_letter")


def _check_adapters(config: ChatConfig, problems: Problems) -> None:
    for role, check in _ADAPTERS.items():
        adapter = getattr(config, role)
        if adapter is not None:
            with problems.gathered():
                check(adapter)


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


def _check_store(store: object, persistence: object) -> None:
    if store is None:
        return
    if persistence is not None:
        raise ConfigError("store and persistence are both given; give one of them.")
    check_store(store)


def _check_durability(durability: object, persistence: object, store: object) -> None:
    if durability not in DURABILITIES:
        raise ConfigError(f"durability is {_shown(durability)}; it must be one of {', '.join(DURABILITIES)}.")
    if durability == "stored" and store is None and not is_log(persistence):
        raise ConfigError(
            "durability is 'stored', and persistence is no log that could say so; give one, such as "
            "store='sqlite:///chat.db', or leave durability at 'sequenced'."
        )


def _check_retention(name: str, value: object, persistence: object, store: object) -> None:
    if type(value) is not int or not 0 < value <= _MOST or store is not None:
        return
    if not (is_log(persistence) and trims(persistence)):
        raise ConfigError(
            f"{name} is {_shown(value)}, and persistence is no log that lets go of old entries; give one, such as "
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


_ADAPTERS: dict[str, Callable[[object], None]] = {
    "persistence": _check_persistence,
    "notifier": _check_notifier,
    "moderation": _check_moderation,
    "auth": _check_auth,
}


def _checked_middlewares(value: object, problems: Problems) -> tuple[str | Middleware, ...]:
    if not isinstance(value, (tuple, list)):
        with problems.gathered():
            raise ConfigError(
                f"middlewares is {_shown(value)}; it must be a tuple of {', '.join(BUILT_IN)} and callables."
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
                f"There is no middleware {_shown(value)}; there are {', '.join(BUILT_IN)}, or a callable."
            )
        if again:
            raise ConfigError(f"The middleware {_shown(value)} is there twice; name it once.")
    elif not callable(value) or inspect.isclass(value):
        raise ConfigError(f"The middleware {_shown(value)} is not a callable of one draft; give a function.")
    else:
        check_arguments(f"The middleware {_import_name(value)}", value, "draft")


def _from_file(path: Path) -> dict[str, Any]:
    try:
        with path.open("rb") as file:
            content = tomllib.load(file)
    except OSError as error:
        raise ConfigError(f"The configuration {path} cannot be read: {error.strerror}.") from None
    # Not TOML, not UTF-8, a number of too many digits, tables too deep.
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"The configuration {path} is not valid TOML: {error}.") from None
    tool = content.get("tool")
    found = tool.get("chatx") if isinstance(tool, dict) and "chatx" in tool else content.get("chatx")
    if not isinstance(found, dict):
        raise ConfigError(f"The configuration {path} has no table [chatx] (or [tool.chatx] in a pyproject.toml).")
    return dict(found)


def _from_env(env: Mapping[str, str], problems: Problems) -> dict[str, Any]:
    options: dict[str, Any] = {}
    for variable, text in env.items():
        if not variable.startswith("CHATX_") or variable in _SECRETS:
            continue
        name = variable.removeprefix("CHATX_").lower()
        with problems.gathered():
            if name not in _OPTIONS:
                raise ConfigError(f"{variable} ({_shown(text)}) sets no option{_did_you_mean(name)}")
            options[name] = _env_value(variable, name, text)
    return options


def _env_value(variable: str, name: str, text: str) -> Any:
    if name == "middlewares" and not text.lstrip().startswith("["):
        return [part.strip() for part in text.split(",") if part.strip()]
    if name in (*_ADAPTERS, "on_dead_letter", "cluster_strategy", "durability", "store"):
        return text
    try:
        read = tomllib.loads(f"value = {text}")
        if len(read) > 1:  # more lines than one
            raise ValueError
        return read["value"]
    except (ValueError, RecursionError):
        raise ConfigError(f"{variable} is {_shown(text)}; it must be a TOML value, such as a whole number.") from None


def _rate_limit_of(value: object) -> object:
    if not isinstance(value, dict):
        return value
    unknown = sorted(set(value) - {"messages_per_sec", "burst"})
    if unknown:
        raise ConfigError(
            problems=[
                f"There is no option rate_limit.{name} (value {_shown(value[name])}); "
                "there are messages_per_sec and burst."
                for name in unknown
            ]
        )
    return RateLimit(**value)


def _imported(option: str, value: object) -> Any:
    if not isinstance(value, str) or value.count(":") != 1:
        raise ConfigError(f"{option} is {_shown(value)}; it must be an import string 'package.module:name'.")
    module_name, name = value.split(":")
    try:
        found: Any = importlib.import_module(module_name)
        for part in name.split("."):
            found = getattr(found, part)
    # Importing runs the user's module, which may raise anything, or exit as a script does.
    except (Exception, SystemExit) as error:
        raise ConfigError(f"{option} is {_shown(value)}, which cannot be imported: {error!r}.") from error
    if not inspect.isclass(found):
        return found
    try:
        return found()
    except Exception as error:
        raise ConfigError(
            f"{option} is {_shown(value)}; calling the class without arguments raised {error!r}."
        ) from error


def _imported_middlewares(value: object, problems: Problems) -> object:
    if not isinstance(value, list):
        return value
    imported = []
    for each in value:
        with problems.gathered():
            if isinstance(each, str) and each not in BUILT_IN and ":" in each:
                imported.append(_imported("middlewares", each))
            else:
                imported.append(each)
    return tuple(imported)


def _import_name(value: object) -> str:
    named = value if hasattr(value, "__qualname__") else type(value)
    return f"{named.__module__}:{named.__qualname__}"
