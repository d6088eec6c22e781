"""Every option: its default, its unit and its bound, in one table.

`ChatConfig` is what `Chat(**options)` builds; `ChatConfig.load` reads it from TOML and the environment.
"""

from __future__ import annotations

import importlib
import inspect
import os
import tomllib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Self

from chatx.adapters.protocols import Auth, Moderation, Notifier, Persistence
from chatx.adapters.room_log import RoomLog
from chatx.adapters.stores import shown
from chatx.config_checks import (
    ADAPTERS,
    BUILT_IN,
    check_cluster,
    check_dead_letter_handler,
    check_durability,
    check_number,
    check_rate_limit,
    check_retention,
    check_store_option,
    check_strategy,
    checked_middlewares,
    import_name,
    shown_value,
    without_passwords,
)
from chatx.core.middleware import Middleware
from chatx.core.rate_limit import RateLimit
from chatx.errors import ConfigError, Problems

# Secrets are read elsewhere from the same environment; they are not options.
_SECRETS = frozenset({"CHATX_SECRET", "CHATX_ADMIN_TOKEN"})


def _number(default: int, unit: str, doc: str, *, least: int = 1) -> Any:
    return field(default=default, metadata={"unit": unit, "least": least, "doc": doc})


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
    cluster_url: str | None = _object(
        None, "where the nodes meet: nats://host:4222, several by commas; tls:// for TLS", repr=False
    )
    cluster_replicas: int = _number(1, "servers", "that have the log of horde, where the first node makes it")
    cluster_name: str = _object("chatx", "what the nodes of one cluster have in common")
    node_name: str | None = _object(None, "this node's own name; by default its host's and its process's")
    cluster_credentials: str | None = _object(None, "a file with this node's NATS credentials")
    cluster_ca: str | None = _object(None, "a file with the certificates that the nodes' servers are checked by")
    cluster_cert: str | None = _object(None, "a file with this node's certificate, where the servers ask for one")
    cluster_key: str | None = _object(None, "a file with the key of cluster_cert")
    mailbox_size: int = _number(1024, "events", "unread by one subscriber")
    mailbox_bytes: int = _number(1048576, "bytes", "unread by one subscriber")
    history_size: int = _number(256, "messages", "kept in memory per room, for resume")
    retention_days: int = _number(0, "days", "for which a log keeps an entry; 0 keeps it for ever", least=0)
    retention_messages: int = _number(0, "messages", "of a room that a log keeps, the newest; 0 keeps all", least=0)
    delivery_queue_limit: int = _number(10000, "messages", "waiting for persistence and notifier")
    outbox_limit: int = _number(
        1000000, "notifications", "that a log keeps for the notifier, dead ones too; what is more is a dead letter"
    )
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
                    check_number(option.name, getattr(self, option.name), option.metadata)
        check_rate_limit(self.rate_limit, problems)
        with problems.gathered():
            check_strategy(self.cluster_strategy)
        check_cluster(self, problems)
        for role, check in ADAPTERS.items():
            adapter = getattr(self, role)
            if adapter is not None:
                with problems.gathered():
                    check(adapter)
        with problems.gathered():
            check_store_option(self.store, self.persistence)
        with problems.gathered():
            check_durability(self)
        for name in ("retention_days", "retention_messages"):
            with problems.gathered():
                check_retention(name, self)
        object.__setattr__(self, "middlewares", checked_middlewares(self.middlewares, problems))
        if self.on_dead_letter is not None:
            with problems.gathered():
                check_dead_letter_handler(self.on_dead_letter)
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
        for name in (*ADAPTERS, "on_dead_letter"):
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
                value = [each if isinstance(each, str) else import_name(each) for each in value]
            elif option.name == "store" and value is not None:
                value = shown(value)
            elif option.name == "cluster_url" and value is not None:
                value = without_passwords(value)
            elif value is not None and not isinstance(value, (int, str)):
                value = import_name(value)
            values[option.name] = value
        return values


def options_given(path: str | os.PathLike[str] | None, env: Mapping[str, str]) -> dict[str, Any]:
    """Return the options that a file or a variable sets, as they stand there; the variables go first.

    Raises:
        ConfigError: The file cannot be read.
    """
    given = {} if path is None else _from_file(Path(path))
    return given | {
        variable.removeprefix("CHATX_").lower(): text
        for variable, text in env.items()
        if variable.startswith("CHATX_") and variable not in _SECRETS
    }


_TEXTS = frozenset(
    option.name
    for option in fields(ChatConfig)
    if option.name.startswith(("cluster_", "node_")) and "unit" not in option.metadata
)

_OPTIONS = frozenset(option.name for option in fields(ChatConfig))


def _known(options: Mapping[str, Any], problems: Problems) -> dict[str, Any]:
    """Return the options that exist, by name; the others are added to the problems."""
    for name in [each for each in options if each not in _OPTIONS]:
        with problems.gathered():
            raise ConfigError(f"There is no option {name} (value {shown_value(options[name])}){_did_you_mean(name)}")
    return {name: value for name, value in options.items() if name in _OPTIONS}


def _did_you_mean(name: str) -> str:
    import difflib

    close = difflib.get_close_matches(name, _OPTIONS, n=1)
    return f"; did you mean {close[0]}?" if close else f"; there are {', '.join(sorted(_OPTIONS))}."


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
                raise ConfigError(f"{variable} ({shown_value(text)}) sets no option{_did_you_mean(name)}")
            options[name] = _env_value(variable, name, text)
    return options


def _env_value(variable: str, name: str, text: str) -> Any:
    if name == "middlewares" and not text.lstrip().startswith("["):
        return [part.strip() for part in text.split(",") if part.strip()]
    if name in (*ADAPTERS, "on_dead_letter", "durability", "store") or name in _TEXTS:
        return text
    try:
        read = tomllib.loads(f"value = {text}")
        if len(read) > 1:  # more lines than one
            raise ValueError
        return read["value"]
    except (ValueError, RecursionError):
        such_as = "{ messages_per_sec = 10, burst = 20 }" if name == "rate_limit" else "a whole number"
        raise ConfigError(f"{variable} is {shown_value(text)}; it must be a TOML value, such as {such_as}.") from None


def _rate_limit_of(value: object) -> object:
    if not isinstance(value, dict):
        return value
    unknown = sorted(set(value) - {"messages_per_sec", "burst"})
    if unknown:
        raise ConfigError(
            problems=[
                f"There is no option rate_limit.{name} (value {shown_value(value[name])}); "
                "there are messages_per_sec and burst."
                for name in unknown
            ]
        )
    return RateLimit(**value)


def _imported(option: str, value: object) -> Any:
    if not isinstance(value, str) or value.count(":") != 1:
        raise ConfigError(f"{option} is {shown_value(value)}; it must be an import string 'package.module:name'.")
    module_name, name = value.split(":")
    try:
        found: Any = importlib.import_module(module_name)
        for part in name.split("."):
            found = getattr(found, part)
    # Importing runs the user's module, which may raise anything, or exit as a script does.
    except (Exception, SystemExit) as error:
        raise ConfigError(f"{option} is {shown_value(value)}, which cannot be imported: {error!r}.") from error
    if not inspect.isclass(found):
        return found
    try:
        return found()
    except Exception as error:
        raise ConfigError(
            f"{option} is {shown_value(value)}; calling the class without arguments raised {error!r}."
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
