"""Every option: its default, its bound, and what is said of a value that is not allowed."""

import contextlib
import json
import math
import re
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from chatx import Chat, ChatConfig, ConfigError, Message, RateLimit
from chatx.adapters.memory_log import MemoryLog
from tests.faults import FaultyAuth, FaultyModeration, FaultyNotifier, FaultyPersistence, Stored, raises

build: Any = ChatConfig
"""`ChatConfig`, for options that a type checker would refuse."""
build_chat: Any = Chat

NUMBERS = {
    "message_size_limit": 4096,
    "message_data_limit": 4096,
    "room_queue_limit": 2048,
    "cluster_replicas": 1,
    "delivery_batch_size": 100,
    "delivery_tick_ms": 100,
    "delivery_max_retries": 5,
    "delivery_retry_base_ms": 100,
    "mailbox_size": 1024,
    "mailbox_bytes": 1048576,
    "history_size": 256,
    "retention_days": 0,
    "retention_messages": 0,
    "delivery_queue_limit": 10000,
    "adapter_timeout_ms": 5000,
    "drain_timeout_ms": 10000,
    "room_idle_ms": 60000,
    "idempotency_bytes": 33554432,
    "idle_rooms_limit": 10000,
    "resume_max_messages": 10000,
    "history_bytes_per_sec": 1_048_576,
    "max_connections_per_user": 10,
    "max_connections_per_address": 0,
    "max_joins_per_connection": 100,
    "dead_letter_limit": 1000,
    "outbox_limit": 1_000_000,
}
"""Every option that is a whole number, and its default."""

OBJECTS = {
    "persistence": None,
    "store": None,
    "notifier": None,
    "moderation": None,
    "auth": None,
    "middlewares": ("auth", "rate_limit", "moderation"),
    "rate_limit": RateLimit(messages_per_sec=10, burst=20),
    "cluster_strategy": "local",
    "cluster_url": None,
    "cluster_name": "chatx",
    "node_name": None,
    "cluster_credentials": None,
    "cluster_ca": None,
    "cluster_cert": None,
    "cluster_key": None,
    "durability": "sequenced",
    "on_dead_letter": None,
}
"""The others."""

MOST = 2**53 - 1


FROM_ZERO = {
    "retention_days",
    "retention_messages",
    "delivery_max_retries",
    "max_connections_per_user",
    "max_connections_per_address",
    "max_joins_per_connection",
}


def least(name: str) -> int:
    return 0 if name in FROM_ZERO else 1


def test_these_are_the_options_and_their_defaults() -> None:
    config = ChatConfig()
    assert {option.name: getattr(config, option.name) for option in fields(config)} == NUMBERS | OBJECTS
    assert all(option.metadata.get("doc") for option in fields(config))
    assert {option.name for option in fields(config) if option.metadata.get("unit")} == set(NUMBERS)


@pytest.mark.parametrize("name", NUMBERS)
def test_a_number_is_allowed_from_its_bound_on(name: str) -> None:
    for value in (least(name), 7, MOST):
        assert getattr(build(**{name: value, "persistence": MemoryLog()}), name) == value


@pytest.mark.parametrize(
    "value",
    [-1, None, True, False, 1.0, math.nan, "5", [1], MOST + 1, 10**5000],
    ids=lambda value: repr(value)[:9] if not isinstance(value, int) or value < 10**20 else "huge",
)
@pytest.mark.parametrize("name", NUMBERS)
def test_any_other_value_is_refused_with_the_options_name_the_value_and_the_bound(name: str, value: Any) -> None:
    with pytest.raises(ConfigError) as caught:
        build(**{name: value})
    text = str(caught.value)
    assert text.startswith(f"{name} is ")
    assert f"at least {least(name)}" in text
    if not isinstance(value, int) or value <= MOST + 1:
        assert repr(value) in text


@pytest.mark.parametrize("name", ["retention_days", "retention_messages"])
@pytest.mark.parametrize("persistence", [None, FaultyPersistence(raises)], ids=["nothing", "saves"])
def test_retention_without_a_log_that_knows_it_is_refused(name: str, persistence: Any) -> None:
    with pytest.raises(ConfigError, match=f"^{name} is 30, .* or leave {name} at 0"):
        build(**{name: 30, "persistence": persistence})
    assert getattr(build(**{name: 0, "persistence": persistence}), name) == 0


def test_a_log_with_half_of_retention_is_refused() -> None:
    class Half(MemoryLog):
        trim = None  # type: ignore[assignment]  # as good as none

    with pytest.raises(ConfigError, match=r"no method trim\(\)"):
        build(persistence=Half())


@pytest.mark.parametrize("name", [name for name in NUMBERS if name not in FROM_ZERO])
def test_zero_is_below_the_bound_of_queues_sizes_and_times(name: str) -> None:
    with pytest.raises(ConfigError, match=f"{name} is 0; .* at least 1"):
        build(**{name: 0})


@pytest.mark.parametrize(
    "unknown,suggestion",
    [("rate_limits", "rate_limit"), ("mailboxsize", "mailbox_size"), ("persistance", "persistence")],
)
def test_an_unknown_option_is_named_with_its_value_and_what_may_be_meant(unknown: str, suggestion: str) -> None:
    for each in (build, build_chat):
        with pytest.raises(ConfigError, match=rf"no option {unknown} \(value 12\); did you mean {suggestion}\?"):
            each(**{unknown: 12})
    with pytest.raises(ConfigError, match=r"no option zzz \(value 'x'\); there are adapter_timeout_ms, "):
        Chat(zzz="x")


@pytest.mark.parametrize(
    "rate", [0, -1, math.nan, math.inf, -math.inf, True, "10", None, 10**400], ids=lambda rate: str(rate)[:5]
)
def test_a_rate_is_a_finite_number_above_zero(rate: Any) -> None:
    with pytest.raises(ConfigError, match=r"rate_limit\.messages_per_sec is .* finite number above 0"):
        ChatConfig(rate_limit=RateLimit(messages_per_sec=rate))


@pytest.mark.parametrize("burst", [0, -1, 1.5, True, "10", None])
def test_a_burst_is_a_whole_number_of_at_least_one(burst: Any) -> None:
    with pytest.raises(ConfigError, match=r"rate_limit\.burst is .* at least 1"):
        ChatConfig(rate_limit=RateLimit(burst=burst))


def test_rates_and_bursts_have_no_upper_bound() -> None:
    for limit in (RateLimit(0.001, 1), RateLimit(1e300, 10**30), RateLimit(10**300, 1)):
        assert ChatConfig(rate_limit=limit).rate_limit == limit


@pytest.mark.parametrize("value", [10, {"burst": 1}, None, "10/s"])
def test_a_rate_limit_is_a_rate_limit(value: Any) -> None:
    with pytest.raises(ConfigError, match="must be RateLimit"):
        ChatConfig(rate_limit=value)


@pytest.mark.parametrize("strategy", ["LOCAL", "", None, 1, ["local"]])
def test_an_unknown_strategy_is_refused_with_the_ones_there_are(strategy: Any) -> None:
    with pytest.raises(ConfigError, match="must be one of local, pg, horde"):
        ChatConfig(cluster_strategy=strategy)


URL = "nats://127.0.0.1:4222"


@pytest.mark.parametrize(
    "options, told",
    [
        ({"cluster_strategy": "pg"}, "there is no cluster_url"),
        ({"cluster_url": URL}, "'local' has no use for it"),
        (
            {"cluster_strategy": "pg", "cluster_url": URL, "message_size_limit": 600_000, "message_data_limit": 1},
            "600001 bytes together; a message of at most 600000 goes between nodes",
        ),
        ({"cluster_strategy": "pg", "cluster_url": "redis://host"}, "give nats://host:port"),
        ({"cluster_strategy": "pg", "cluster_url": f"{URL},"}, "give nats://host:port"),
        ({"cluster_strategy": "pg", "cluster_url": "nats://user:hidden@host:port"}, "...@host"),
        *(
            ({"cluster_strategy": "pg", "cluster_url": f"nats://user:{each}@host:4222"}, "a / is %2F")
            for each in ("hidden/it", "hidden,it", "hidden@it", "it@nats://hidden", "it hidden")
        ),
        ({"cluster_strategy": "pg", "cluster_url": "nats://host:99999"}, "give nats://host:port"),
        ({"cluster_strategy": "pg", "cluster_url": "nats://host:0"}, "give nats://host:port"),
        ({"cluster_strategy": "pg", "cluster_url": "nats://u:hidden@a,nats://v@b"}, "cluster_url names several users"),
        (
            {"cluster_strategy": "pg", "cluster_url": "nats://u:hidden@a", "cluster_credentials": "node.creds"},
            "cluster_url names a user, and cluster_credentials is given; give one of them.",
        ),
        ({"cluster_strategy": "pg", "cluster_url": ""}, "must be a text"),
        ({"cluster_strategy": "pg", "cluster_url": 4222}, "must be a text"),
        ({"cluster_name": "a.b"}, "cluster_name"),
        ({"cluster_name": ""}, "cluster_name"),
        ({"node_name": "a b"}, "node_name"),
        ({"cluster_cert": "cert.pem"}, "belong together"),
        ({"cluster_credentials": 5}, "must be a text"),
        ({"cluster_strategy": "pg", "cluster_url": URL, "store": "sqlite:///chat.db"}, "one writer"),
        ({"cluster_strategy": "pg", "cluster_url": URL, "persistence": MemoryLog()}, "one writer"),
        ({"cluster_strategy": "horde"}, "there is no cluster_url"),
        ({"cluster_strategy": "horde", "cluster_url": URL, "store": "sqlite:///chat.db"}, "a log of their own"),
        ({"cluster_strategy": "pg", "cluster_url": URL, "store": "mysql://h/d"}, "There is no store"),
    ],
)
def test_options_of_a_cluster_that_do_not_fit_are_refused(options: dict[str, Any], told: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(told)) as refused:
        ChatConfig(**options)
    assert "hidden" not in str(refused.value)


def test_nodes_may_share_a_store_in_postgresql() -> None:
    store = "postgresql://chatx@db.example/chat"
    assert ChatConfig(cluster_strategy="pg", cluster_url=URL, store=store, durability="stored").store == store


def test_the_nodes_of_a_horde_have_a_log_without_a_store() -> None:
    config = ChatConfig(cluster_strategy="horde", cluster_url=URL, durability="stored", retention_days=7)
    assert (config.store, config.persistence) == (None, None)
    assert config.effective()["cluster_strategy"] == "horde"


def test_a_store_or_an_adapter_may_be_behind_the_log_of_a_horde() -> None:
    class Saves:
        def save_message(self, message: Message) -> None:
            pass

    horde: dict[str, Any] = {"cluster_strategy": "horde", "cluster_url": URL, "durability": "stored"}
    store = "postgresql://chatx@db.example/chat"
    assert ChatConfig(**horde, store=store, retention_days=7).store == store
    assert ChatConfig(**horde, persistence=Saves()).persistence is not None
    with pytest.raises(ConfigError, match="persistence is no log that lets go of old entries"):
        ChatConfig(**horde, persistence=Saves(), retention_days=7)


@pytest.mark.parametrize("url", [URL, f"{URL}, tls://user:p%40ss@nats.example.org", "nats://[::1]:4222/"])
def test_the_nodes_meet_at_one_server_or_several_and_no_password_is_shown(url: str) -> None:
    config = ChatConfig(cluster_strategy="pg", cluster_url=url)
    assert "p%40ss" not in repr(config)
    assert "p%40ss" not in str(config.effective())


# All at once


def wrong(build: Callable[[], object]) -> tuple[str, ...]:
    """Return all that a configuration is refused for."""
    with pytest.raises(ConfigError) as caught:
        build()
    problems = caught.value.problems
    assert all(problem in caught.value.reason for problem in problems)
    assert all(problem[-1] in ".?" and problem[-2] not in ".?" for problem in problems)
    return problems


WRONG: dict[str, Any] = {
    "history_size": 0,
    "mailbox_size": "5",
    "rate_limit": RateLimit(0, 0),
    "cluster_strategy": "redis",
    "auth": object(),
    "moderation": FaultyModeration,
    "persistence": 5,
    "notifier": "nobody",
    "middlewares": ("auth", "auth", "unknown", 5),
    "on_dead_letter": 5,
    "mailboxsize": 5,
    "zzz": 5,
}
"""Options none of which is right, each a problem or more."""
SAID = {"rate_limit": 2, "middlewares": 3}


def test_all_that_is_wrong_is_in_one_error() -> None:
    for each in (build, build_chat):
        problems = wrong(lambda each=each: each(**WRONG))  # type: ignore[misc]
        for name in WRONG:
            told = [problem for problem in problems if re.search(rf"\b{name.removesuffix('s')}\b", problem)]
            assert len(told) >= SAID.get(name, 1), name
        assert len(problems) == len(WRONG) + 1 + 2


@given(st.lists(st.sampled_from(sorted(WRONG)), min_size=1, unique=True))
def test_a_problem_is_told_whatever_else_is_wrong(names: list[str]) -> None:
    problems = wrong(lambda: build(**{name: WRONG[name] for name in names}))
    alone = [problem for name in names for problem in wrong(lambda name=name: build(**{name: WRONG[name]}))]  # type: ignore[misc]
    assert sorted(problems) == sorted(alone)


def test_all_that_is_wrong_in_a_file_and_in_the_environment_is_in_one_error(tmp_path: Path) -> None:
    file = tmp_path / "chatx.toml"
    file.write_text(
        "[chatx]\nhistory = 5\nmailbox_size = 0\nauth = 'nowhere:Auth'\nrate_limit = { rate = 1, per = 2 }\n"
    )
    env = {"CHATX_MAILBOXSIZE": "5", "CHATX_HISTORY_SIZE": "five", "CHATX_MIDDLEWARES": "auth, nowhere:x, other"}
    problems = wrong(lambda: ChatConfig.load(file, env=env))
    told = (
        "history (",
        "mailbox_size is 0",
        "nowhere:Auth",
        ".rate ",
        ".per ",
        "CHATX_MAILBOXSIZE",
        "CHATX_HISTORY_SIZE",
    )
    for each in (*told, "nowhere:x", "'other'"):
        assert any(each in problem for problem in problems), each
    assert len(problems) == 9
    # What cannot be read is one of them.
    assert len(wrong(lambda: ChatConfig.load(tmp_path / "none.toml", env=env))) == 5


def test_a_problem_that_is_alone_is_the_error_itself_with_its_cause() -> None:
    with pytest.raises(ConfigError, match=r"^auth is 'nowhere:Auth', which cannot be imported") as caught:
        ChatConfig.load(env={"CHATX_AUTH": "nowhere:Auth"})
    assert isinstance(caught.value.__cause__, ModuleNotFoundError)
    assert caught.value.problems == (caught.value.reason,)


# Adapters


class NoMethods:
    pass


class TooFew:
    def authorize(self, user_id: str) -> bool:
        return True

    def check(self) -> bool:
        return True

    def save_message(self) -> None: ...

    def notify(self, user_id: str) -> None: ...


class TooMany:
    def authorize(self, user_id: str, room_id: str, action: str, extra: str) -> bool:
        return True

    def check(self, content: str, extra: str) -> bool:
        return True

    def save_message(self, message: Any, extra: str) -> None: ...

    def notify(self, user_id: str, message: Any, extra: str) -> None: ...


class Names:
    authorize = check = save_message = notify = "not callable"


METHODS = {"auth": "authorize", "moderation": "check", "persistence": "save_message", "notifier": "notify"}
GOOD = {
    "auth": FaultyAuth,
    "moderation": FaultyModeration,
    "persistence": FaultyPersistence,
    "notifier": FaultyNotifier,
}


def named(adapter: object) -> str:
    """Return a name for an adapter that is the same in each process, which its address is not."""
    return str(adapter) if isinstance(adapter, int | str) else type(adapter).__name__


@pytest.mark.parametrize("role", METHODS)
@pytest.mark.parametrize("adapter", [NoMethods(), TooFew(), TooMany(), Names(), 5, "adapter", True], ids=named)
def test_an_adapter_without_its_method_or_with_wrong_parameters_is_refused_when_the_chat_is_built(
    role: str, adapter: object
) -> None:
    with pytest.raises(ConfigError) as caught:
        build_chat(**{role: adapter})
    assert METHODS[role] in str(caught.value)
    assert role in str(caught.value)


@pytest.mark.parametrize("role", METHODS)
def test_an_adapters_class_in_place_of_an_instance_is_refused_with_the_remedy(role: str) -> None:
    with pytest.raises(ConfigError, match=rf"give an instance: {GOOD[role].__name__}\(\)"):
        build_chat(**{role: GOOD[role]})
    build_chat(**{role: GOOD[role](raises)})


def test_optional_parameters_and_any_names_are_fine_as_calls_are_positional() -> None:
    class Auth:
        def authorize(self, a: str, b: str, /, *rest: str, **more: str) -> bool:
            return True

    class Moderation:
        def check(self, text: str, strict: bool = True) -> bool:
            return True

    Chat(auth=Auth(), moderation=Moderation())


@pytest.mark.parametrize(
    "method", ["load_messages", "last_position", "mark_open", "mark_closed", "save_messages", "recipients"]
)
def test_what_an_adapter_has_beyond_the_least_must_be_right_too(method: str) -> None:
    adapter = type("Adapter", (FaultyNotifier if method == "recipients" else Stored,), {method: lambda self: None})
    options = {"notifier": adapter(raises)} if method == "recipients" else {"persistence": adapter()}
    with pytest.raises(ConfigError, match=method):
        build_chat(**options)


def test_a_callable_without_a_signature_shows_what_it_takes_when_it_is_called() -> None:
    class Moderation:
        check = staticmethod(bool)  # built in, without a signature that inspect can read

    Chat(moderation=Moderation())


@pytest.mark.parametrize("handler", [5, "print", lambda: None, lambda a, b: None])
def test_on_dead_letter_is_a_callable_of_one_argument(handler: Any) -> None:
    with pytest.raises(ConfigError, match="on_dead_letter"):
        Chat(on_dead_letter=handler)


@pytest.mark.parametrize(
    "middlewares",
    ["auth", None, 5, ("unknown",), ("auth", "auth"), (5,), (None,), (lambda: None,), (lambda a, b: a,), (dict,)],
)
def test_middlewares_are_built_in_names_once_each_and_callables_of_one_draft(middlewares: Any) -> None:
    with pytest.raises(ConfigError, match=r"[Mm]iddleware"):
        Chat(middlewares=middlewares)


def test_a_list_of_middlewares_is_kept_as_a_tuple_that_later_changes_do_not_reach() -> None:
    given_list: list[Any] = ["moderation"]
    config = ChatConfig(middlewares=given_list)  # type: ignore[arg-type]
    given_list.append("auth")
    assert config.middlewares == ("moderation",)
    with pytest.raises(AttributeError):
        config.history_size = 5  # type: ignore[misc]


def test_a_value_that_cannot_be_shown_is_still_refused_with_a_reason() -> None:
    class Secretive:
        def __repr__(self) -> str:
            raise ValueError

    with pytest.raises(ConfigError, match="history_size is a value of type Secretive"):
        ChatConfig(history_size=Secretive())  # type: ignore[arg-type]
    with pytest.raises(ConfigError) as caught:
        ChatConfig(history_size="x" * 1_000_000)  # type: ignore[arg-type]
    assert len(str(caught.value)) < 500


# From files and the environment


@pytest.fixture
def write(tmp_path: Path) -> Callable[..., Path]:
    """Write a configuration; return its path."""

    def write(text: str, name: str = "chat.toml") -> Path:
        path = tmp_path / name
        path.write_text(text, encoding="utf-8")
        return path

    return write


ADAPTERS = "tests.test_config"


class Allows:
    def authorize(self, user_id: str, room_id: str, action: str) -> bool:
        return True

    class Nested:
        def check(self, content: str) -> bool:
            return True


allows = Allows()


class NeedsArguments:
    def __init__(self, url: str) -> None: ...


def shout(draft: Any) -> Any:
    return draft


def test_without_a_file_or_variables_the_defaults_are_loaded() -> None:
    assert ChatConfig.load(env={}) == ChatConfig()
    assert ChatConfig.load(env={"PATH": "/bin", "CHATXY": "1", "chatx_history_size": "3"}) == ChatConfig()


def test_a_table_of_its_own_is_read(write: Any) -> None:
    path = write(f"""
        [chatx]
        history_size = 5
        rate_limit = {{ messages_per_sec = 0.5, burst = 3 }}
        auth = "{ADAPTERS}:Allows"
        moderation = "{ADAPTERS}:Allows.Nested"
        middlewares = ["moderation", "{ADAPTERS}:shout"]
        on_dead_letter = "builtins:print"
        cluster_strategy = "local"

        [other]
        history_size = "not ours"
    """)
    for given_path in (path, str(path)):
        config = ChatConfig.load(given_path, env={})
        assert config.history_size == 5
        assert config.rate_limit == RateLimit(messages_per_sec=0.5, burst=3)
        assert type(config.auth).__name__ == "Allows"
        assert type(config.moderation).__name__ == "Nested"
        assert [getattr(each, "__name__", each) for each in config.middlewares] == ["moderation", "shout"]
        assert config.on_dead_letter is print
        assert config.mailbox_size == 1024


def test_a_pyproject_is_read(write: Any) -> None:
    path = write('[project]\nname = "x"\n[tool.chatx]\nhistory_size = 5\n', "pyproject.toml")
    assert ChatConfig.load(path, env={}).history_size == 5


def test_an_empty_table_is_the_defaults(write: Any) -> None:
    assert ChatConfig.load(write("[chatx]"), env={}) == ChatConfig()


@pytest.mark.parametrize("text", ["", "[other]\n", "chatx = 5\n", "[tool]\nchatx = 5\n", "[[chatx]]\n"])
def test_a_file_without_the_table_is_an_error(write: Any, text: str) -> None:
    with pytest.raises(ConfigError, match=r"no table \[chatx\]"):
        ChatConfig.load(write(text), env={})


def test_a_file_that_is_not_there_or_not_toml_is_an_error(write: Any, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"cannot be read: No such file"):
        ChatConfig.load(tmp_path / "none.toml", env={})
    with pytest.raises(ConfigError, match="cannot be read"):
        ChatConfig.load(tmp_path, env={})
    for text in ("[chatx", "[chatx]\nhistory_size = ", "x = " + "[" * 100_000, f"x = {'9' * 10_000}"):
        with pytest.raises(ConfigError, match="not valid TOML"):
            ChatConfig.load(write(text), env={})
    path = tmp_path / "latin.toml"
    path.write_bytes(b'[chatx]\nauth = "\xe9"')
    with pytest.raises(ConfigError, match="not valid TOML"):
        ChatConfig.load(path, env={})


def test_an_unknown_option_in_a_file_is_named(write: Any) -> None:
    with pytest.raises(ConfigError, match=r"no option history \(value 5\); did you mean history_size\?"):
        ChatConfig.load(write("[chatx]\nhistory = 5\n"), env={})
    with pytest.raises(ConfigError, match=r"no option rate_limit\.rate \(value 5\)"):
        ChatConfig.load(write("[chatx]\nrate_limit = { rate = 5 }\n"), env={})


def test_variables_go_before_the_file(write: Any) -> None:
    path = write("[chatx]\nhistory_size = 5\nmailbox_size = 6\n")
    config = ChatConfig.load(path, env={"CHATX_HISTORY_SIZE": "7"})
    assert (config.history_size, config.mailbox_size) == (7, 6)


def test_every_option_can_be_a_variable() -> None:
    env = {f"CHATX_{name.upper()}": "3" for name in NUMBERS} | {
        "CHATX_RATE_LIMIT": "{ messages_per_sec = 2.5, burst = 4 }",
        "CHATX_CLUSTER_STRATEGY": "local",
        "CHATX_CLUSTER_NAME": "staging",
        "CHATX_NODE_NAME": "web-1",
        "CHATX_CLUSTER_CREDENTIALS": "node.creds",
        "CHATX_CLUSTER_CA": "ca.pem",
        "CHATX_CLUSTER_CERT": "node.pem",
        "CHATX_CLUSTER_KEY": "node.key",
        "CHATX_DURABILITY": "sequenced",
        "CHATX_AUTH": f"{ADAPTERS}:allows",
        "CHATX_MODERATION": f"{ADAPTERS}:Allows.Nested",
        "CHATX_PERSISTENCE": "chatx.adapters.memory_log:MemoryLog",
        "CHATX_NOTIFIER": f"{ADAPTERS}:quiet",
        "CHATX_ON_DEAD_LETTER": "builtins:print",
        "CHATX_MIDDLEWARES": f"moderation, {ADAPTERS}:shout",
    }
    # A store takes the place of persistence, and nodes have no log yet.
    left_out = {"store", "cluster_url"}
    assert {name.removeprefix("CHATX_").lower() for name in env} == set(NUMBERS | OBJECTS) - left_out
    config = ChatConfig.load(env=env)
    assert {getattr(config, name) for name in NUMBERS} == {3}
    assert config.rate_limit == RateLimit(2.5, 4)
    assert config.auth is allows
    assert (config.cluster_name, config.node_name) == ("staging", "web-1")
    assert config.middlewares == ("moderation", shout)
    same = ChatConfig.load(env=env | {"CHATX_MIDDLEWARES": f'["moderation", "{ADAPTERS}:shout"]'})
    assert same.middlewares == config.middlewares


quiet = FaultyNotifier(raises)


def test_secrets_in_the_environment_are_no_options_and_in_no_error() -> None:
    env = {"CHATX_SECRET": "hunter2", "CHATX_ADMIN_TOKEN": "hunter2"}
    assert ChatConfig.load(env=env) == ChatConfig()
    with pytest.raises(ConfigError) as caught:
        ChatConfig.load(env=env | {"CHATX_HISTORY_SIZE": "0"})
    assert "hunter2" not in str(caught.value)


@pytest.mark.parametrize(
    "text", ["", "five", "5 5", "[1", "5\nmailbox_size = 6", "9" * 10_000], ids=lambda text: text[:5]
)
def test_a_variable_that_is_no_toml_value_is_named(text: str) -> None:
    with pytest.raises(ConfigError, match=r"CHATX_HISTORY_SIZE is .* must be a TOML value"):
        ChatConfig.load(env={"CHATX_HISTORY_SIZE": text})


def test_a_rate_limit_that_is_no_table_is_shown_one() -> None:
    with pytest.raises(ConfigError, match=r"such as \{") as caught:
        ChatConfig.load(env={"CHATX_RATE_LIMIT": "messages_per_sec=5"})
    shown = str(caught.value).partition("such as ")[2].removesuffix(".")
    assert ChatConfig.load(env={"CHATX_RATE_LIMIT": shown}).rate_limit == RateLimit(10, 20)


def test_an_unknown_variable_is_named() -> None:
    with pytest.raises(ConfigError, match=r"CHATX_HISTORYSIZE \('5'\) sets no option; did you mean history_size\?"):
        ChatConfig.load(env={"CHATX_HISTORYSIZE": "5"})
    with pytest.raises(ConfigError):
        ChatConfig.load(env={"CHATX_": "5"})


@pytest.mark.parametrize(
    "value,says",
    [
        ("nowhere_at_all:Auth", "cannot be imported"),
        ("tests.test_config:Missing", "cannot be imported"),
        ("tests.test_config:", "cannot be imported"),
        (":Auth", "cannot be imported"),
        (".relative:Auth", "cannot be imported"),
        ("tests.test_config", "must be an import string"),
        ("a:b:c", "must be an import string"),
        ("", "must be an import string"),
        ("tests.test_config:NeedsArguments", "without arguments raised"),
        ("os:sep", "no method authorize"),
    ],
)
def test_a_bad_import_string_is_named(value: str, says: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(says)) as caught:
        ChatConfig.load(env={"CHATX_AUTH": value})
    assert "auth" in str(caught.value)


def test_a_module_that_raises_or_exits_when_it_is_imported_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "exits_at_import.py").write_text("raise SystemExit(3)")
    (tmp_path / "raises_at_import.py").write_text("1 / 0")
    monkeypatch.syspath_prepend(tmp_path)
    for name in ("exits_at_import", "raises_at_import"):
        with pytest.raises(ConfigError, match="cannot be imported"):
            ChatConfig.load(env={"CHATX_AUTH": f"{name}:auth"})


@pytest.mark.parametrize(
    "env",
    [
        {"CHATX_STORE": "postgresql://me:hunter2@db/chat"},
        {"CHATX_STROE": "postgresql://me:hunter2@db/chat"},
        {"CHATX_STORE": "postgresql://me:hunter2@db/chat", "CHATX_HISTORY_SIZE": "0"},
        {"CHATX_PERSISTENCE": "postgresql://me:hunter2@db/chat"},
        {"CHATX_HISTORY_SIZE": "postgresql://me:hunter2@db/chat"},
        {"CHATX_STORE": "mysql://me:hunter2@db/chat"},
        {"CHATX_STORE": "me:hunter2@db/chat"},
    ],
)
def test_no_password_of_a_store_is_shown_wherever_it_stands(env: dict[str, str]) -> None:
    try:
        config = ChatConfig.load(env=env)
    except ConfigError as error:
        shown = repr(error) + "".join(error.problems)
    else:
        shown = repr(config) + repr(config.effective())
    assert "hunter2" not in shown


def test_a_store_is_read_from_a_file_and_from_the_environment_which_goes_first(write: Any) -> None:
    file = write('[chatx]\nstore = "sqlite:///a.db"\ndurability = "stored"\n')
    assert ChatConfig.load(file, env={}).store == "sqlite:///a.db"
    assert ChatConfig.load(file, env={"CHATX_STORE": "b.db"}).store == "b.db"


def test_the_effective_configuration_is_what_json_can_hold_and_loads_again(write: Any) -> None:
    config = ChatConfig(
        auth=allows, middlewares=("auth", shout), rate_limit=RateLimit(0.5, 3), on_dead_letter=print, history_size=9
    )
    shown = json.loads(json.dumps(config.effective()))
    assert set(shown) == set(NUMBERS | OBJECTS)
    assert shown["rate_limit"] == {"messages_per_sec": 0.5, "burst": 3}
    assert shown["auth"] == f"{Allows.__module__}:Allows"
    assert shown["middlewares"][1].endswith(":shout")
    assert shown["on_dead_letter"] == "builtins:print"
    assert shown["persistence"] is None
    lines = [f"{name} = {_toml(value)}" for name, value in shown.items() if value is not None]
    again = ChatConfig.load(write("[chatx]\n" + "\n".join(lines)), env={})
    assert again.effective() == config.effective()


def _toml(value: Any) -> str:
    if isinstance(value, dict):
        return "{ " + ", ".join(f"{key} = {_toml(each)}" for key, each in value.items()) + " }"
    return json.dumps(value)


# Junk

scalars = st.one_of(
    st.integers(),
    st.integers(0, 5),
    st.floats(),
    st.booleans(),
    st.text(max_size=8),
    st.sampled_from(["auth", "local", "pg", "os:sep", "tests.faults:Batches", "tests.test_config:shout", "x:y"]),
)
junk = st.recursive(
    scalars,
    lambda each: st.one_of(
        st.lists(each, max_size=3),
        st.dictionaries(st.sampled_from(["messages_per_sec", "burst", "x"]), each, max_size=3),
    ),
    max_leaves=5,
)


@given(options=st.dictionaries(st.sampled_from([*NUMBERS, *OBJECTS, "unknown"]), junk, max_size=4))
def test_whatever_a_file_holds_there_is_a_valid_configuration_or_a_config_error(
    options: dict[str, Any], tmp_path_factory: pytest.TempPathFactory
) -> None:
    def toml(value: Any) -> str:
        if isinstance(value, bool):
            return str(value).lower()
        if isinstance(value, float):
            return repr(value)
        if isinstance(value, list):
            return "[" + ", ".join(map(toml, value)) + "]"
        if isinstance(value, dict):
            return "{" + ", ".join(f"{key} = {toml(each)}" for key, each in value.items()) + "}"
        return json.dumps(value).replace("\x7f", "\\u007f")

    path = tmp_path_factory.getbasetemp() / "junk.toml"
    path.write_text("[chatx]\n" + "\n".join(f"{name} = {toml(value)}" for name, value in options.items()))
    try:
        config = ChatConfig.load(path, env={})
    except ConfigError:
        return
    assert not {"unknown"} & set(options)
    Chat(config=config)
    json.dumps(config.effective())


@given(
    st.dictionaries(
        st.sampled_from([*NUMBERS, *OBJECTS]).map(lambda name: f"CHATX_{name.upper()}"), st.text(), max_size=3
    )
)
def test_whatever_the_environment_holds_there_is_a_valid_configuration_or_a_config_error(env: dict[str, str]) -> None:
    with contextlib.suppress(ConfigError):
        json.dumps(ChatConfig.load(env=env).effective())
