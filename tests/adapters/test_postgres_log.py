"""The log in PostgreSQL against a real server: its contract, its one writer, what it answers while the server fails."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable

import asyncpg
import pytest

from chatx import ConfigError, Message, Position
from chatx.adapters import postgres_schema, postgres_tables
from chatx.adapters.postgres_connections import ConnectionBroke
from chatx.adapters.postgres_log import PostgresLog
from chatx.adapters.room_log import FENCED, Append, Found, LogUnavailable, Opened, Record
from chatx.adapters.stores import kind_of
from chatx.testing import check_room_log
from tests.gateway.real_client import until
from tests.postgres import Postgres

pytestmark = pytest.mark.process


@pytest.fixture
def url(postgres: Postgres) -> str:
    return postgres.new_database()


@pytest.fixture
async def log(url: str) -> AsyncIterator[PostgresLog]:
    # The bounds of what fails are short, those of what must go well are not.
    log = PostgresLog(url, timeout_ms=20_000)
    yield log
    await log.close()


@pytest.fixture
async def hasty(url: str) -> AsyncIterator[PostgresLog]:
    log = PostgresLog(url, timeout_ms=500)
    yield log
    await log.close()


def message(offset: int, content: str = "hello", epoch: str = "a", room_id: str = "room") -> Message:
    return Message(f"id {epoch}{offset}", room_id, "alice", content, offset, epoch, offset, stored=True)


def append(term: int, *entries: Message, key: str | None = None) -> Append:
    first = entries[0]
    records = tuple(Record(each, key) for each in entries)
    return Append(first.room_id, term, Position(first.epoch, first.offset - 1), records, True)


def _name(url: str) -> str:
    return url.partition("?")[0].rpartition("/")[2]


async def hasty_term(log: PostgresLog) -> int:
    opened = await eventually(lambda: log.take_over("room"))
    assert isinstance(opened, Opened)
    return opened.term


async def eventually(call: Callable[[], Awaitable[object]]) -> object:
    """Return what a call answers once the log is there again."""
    async with asyncio.timeout(50):
        while True:
            try:
                return await call()
            except (LogUnavailable, TimeoutError, ConnectionBroke):
                await asyncio.sleep(0.05)


async def test_it_keeps_the_contract_of_a_log(log: PostgresLog) -> None:
    await check_room_log(lambda: log, timeout_s=30)


async def test_two_that_make_the_tables_at_once_have_the_same_ones(url: str) -> None:
    logs = [PostgresLog(url, timeout_ms=20_000) for _ in range(4)]
    opened = await asyncio.gather(*(each.take_over("room") for each in logs))
    assert sorted(each.term for each in opened) == [1, 2, 3, 4]
    for each in logs:
        await each.close()


async def test_what_retention_took_is_below_the_oldest_and_the_head_stays(log: PostgresLog, url: str) -> None:
    await log.take_over("room")
    assert await log.append([append(1, message(1), message(2), message(3))]) == [None]
    admin = await asyncpg.connect(url)
    await admin.execute('DELETE FROM chatx_entries WHERE "offset" < 3')
    for opened in (await log.look("room"), await log.take_over("room")):
        assert (opened.head, opened.oldest) == (("a", 3), 3)
    found = await log.read("room", after=Position("a", 0), limit=9)
    assert (found.entries, found.oldest) == ((message(3),), ("a", 3))
    await admin.execute("DELETE FROM chatx_entries")
    opened = await log.take_over("room")
    assert (opened.head, opened.oldest) == (("a", 3), 4)
    assert await log.read("room", limit=9) == Found((), Position("a", 4))
    assert await log.read("nowhere", limit=9) == Found((), None)
    # What was taken cannot be compared any more: it is not taken for the same.
    assert await log.append([append(3, message(3), message(4))]) == [FENCED]
    assert await log.append([append(3, message(4))]) == [None]
    await admin.close()


async def test_what_postgresql_cannot_keep_is_answered_and_takes_no_other_room_along(log: PostgresLog) -> None:
    good, other = message(1), message(1, room_id="other")
    for room_id in ("room", "other"):
        await log.take_over(room_id)
    nul = append(1, good, message(2, "a\0b"))
    answers = await log.append([nul, append(1, other)])
    assert isinstance(answers[0], str)
    assert answers[0] != FENCED
    assert answers[1] is None
    assert (await log.read("room", limit=9)).entries == ()
    assert (await log.read("other", limit=9)).entries == (other,)
    assert await log.append([append(1, good)]) == [None]


async def test_appends_to_one_room_within_one_call_follow_each_other(log: PostgresLog) -> None:
    await log.take_over("room")
    appends = [append(1, message(1)), append(1, message(2), message(3)), append(1, message(5))]
    assert await log.append(appends) == [None, None, FENCED]
    assert (await log.read("room", limit=9)).entries == (message(1), message(2), message(3))


async def test_an_append_of_which_a_part_is_there_is_completed(log: PostgresLog) -> None:
    await log.take_over("room")
    assert await log.append([append(1, message(1), message(2))]) == [None]
    assert await log.append([append(1, message(1), message(2), message(3))]) == [None]
    assert (await log.read("room", limit=9)).entries == (message(1), message(2), message(3))
    assert (await log.take_over("room")).head == ("a", 3)


async def test_a_key_that_is_older_than_a_day_answers_no_more(log: PostgresLog) -> None:
    await log.take_over("room")
    # Its entry says that it is of 1970.
    assert await log.append([append(1, message(1), key="key")]) == [None]
    assert await log.find("room", "alice", "key") is None
    assert (await log.take_over("room")).keyed == ()


async def test_a_transaction_is_durable_also_where_the_server_is_set_not_to_be(log: PostgresLog, url: str) -> None:
    admin = await asyncpg.connect(url)
    await admin.execute(f"ALTER DATABASE {_name(url)} SET synchronous_commit = off")
    await admin.execute("CREATE TABLE seen (setting text)")
    await log.take_over("room")
    await admin.execute(
        """CREATE FUNCTION see() RETURNS trigger LANGUAGE plpgsql AS
        $$ BEGIN INSERT INTO seen VALUES (current_setting('synchronous_commit')); RETURN NULL; END $$"""
    )
    await admin.execute("CREATE TRIGGER see AFTER INSERT ON chatx_entries EXECUTE FUNCTION see()")
    assert await log.append([append(1, message(1))]) == [None]
    assert await admin.fetchval("SELECT setting FROM seen") == "on"
    await admin.close()


# What is refused


@pytest.mark.parametrize("url", ["", "chat.db", "mysql://host/db", None, b"postgresql://host/db"])
def test_what_is_no_url_of_postgresql_is_refused_without_being_shown(url: object) -> None:
    with pytest.raises(ConfigError, match="postgresql://user:password@host/database") as told:
        PostgresLog(url)  # type: ignore[arg-type]  # that is the point
    assert "mysql" not in str(told.value)


@pytest.mark.parametrize("option", ["transactions", "readers", "timeout_ms"])
@pytest.mark.parametrize("value", [0, -1, 1_000_000, 1.5, "4", None, True])
def test_an_option_out_of_its_bounds_is_refused(option: str, value: object) -> None:
    with pytest.raises(ConfigError, match=f"{option} of PostgresLog is {value!r}"):
        PostgresLog("postgresql://localhost/chat", **{option: value})  # type: ignore[arg-type]  # that is the point


async def test_a_url_that_the_driver_does_not_understand_is_a_config_error() -> None:
    log = PostgresLog("postgresql://chat:secret@localhost/chat?sslmode=secret")
    with pytest.raises(ConfigError, match="URL of PostgresLog cannot be read") as told:
        await log.take_over("room")
    assert "secret" not in str(told.value)


@pytest.mark.parametrize("address", ["chat:secret/slash@localhost", "db:0", "db:65536", "a:5432,b:99999", "[::1"])
def test_a_port_that_is_none_is_refused_before_it_is_connected_to(address: str) -> None:
    with pytest.raises(ConfigError, match="a port is from 1 to 65535") as told:
        PostgresLog(f"postgresql://{address}/chat")
    assert "secret" not in str(told.value)


@pytest.mark.parametrize("address", ["db", "db:5432", "a:5432,b:1,c", "[::1]:65535", "chat:p%2F:w@db:5432", "", "db:"])
def test_a_port_that_is_one_is_taken(address: str) -> None:
    assert kind_of(f"postgresql://{address}/chat") == "postgres"
    PostgresLog(f"postgresql://{address}/chat")


async def test_tables_that_are_not_as_they_were_made_are_said_to_be_so(log: PostgresLog, url: str) -> None:
    await log.make_tables()
    admin, newcomer = await asyncpg.connect(url), PostgresLog(url, timeout_ms=20_000)
    await admin.execute("DELETE FROM chatx_schema")
    with pytest.raises(LogUnavailable, match=r"nothing was changed: relation .* already exists.*from a backup"):
        await newcomer.make_tables()
    await newcomer.close()
    await admin.close()


async def test_a_database_that_is_not_there_is_named(postgres: Postgres) -> None:
    log = PostgresLog(postgres.url("nowhere"))
    with pytest.raises(LogUnavailable, match='database "nowhere" does not exist'):
        await log.take_over("room")


async def test_a_database_that_keeps_no_utf_8_is_refused(postgres: Postgres) -> None:
    postgres.psql("CREATE DATABASE latin ENCODING 'LATIN1' LOCALE 'C' TEMPLATE template0")
    log = PostgresLog(postgres.url("latin"))
    with pytest.raises(ConfigError, match="keeps text as LATIN1"):
        await log.take_over("room")


async def test_tables_of_another_version_are_refused(log: PostgresLog, url: str) -> None:
    await log.take_over("room")
    admin = await asyncpg.connect(url)
    await admin.execute("INSERT INTO chatx_schema VALUES (99)")
    await admin.close()
    newcomer = PostgresLog(url)
    with pytest.raises(ConfigError, match=r"version 99, and this version of chatx reads up to \d"):
        await newcomer.take_over("room")
    await newcomer.close()


async def test_tables_of_an_earlier_version_are_taken_up_with_all_that_is_in_them(log: PostgresLog, url: str) -> None:
    admin = await asyncpg.connect(url)
    await admin.execute(postgres_schema.STEPS[0])
    await admin.execute("INSERT INTO chatx_rooms (room_id, term, rank, epoch, head) VALUES ('room', 7, 1, 'a', 3)")
    newcomer = PostgresLog(url, timeout_ms=20_000)
    opened = await asyncio.gather(log.take_over("room"), newcomer.take_over("room"))
    assert sorted(each.term for each in opened) == [8, 9]
    assert opened[0].head == ("a", 3)
    assert await admin.fetch("SELECT version FROM chatx_schema") == [(postgres_schema.SCHEMA_VERSION,)]
    assert await log.list_notifications(None, None, 1) == []
    await admin.close()
    await newcomer.close()


@pytest.fixture
def slow_step(monkeypatch: pytest.MonkeyPatch) -> None:
    """One more version, whose step takes longer than a hasty log waits."""
    step = "ALTER TABLE chatx_entries ADD COLUMN slow integer; SELECT pg_sleep(2.5)"
    monkeypatch.setattr(postgres_schema, "STEPS", (*postgres_schema.STEPS, step))
    monkeypatch.setattr(postgres_schema, "SCHEMA_VERSION", postgres_schema.SCHEMA_VERSION + 1)


async def has_slow_step(admin: asyncpg.Connection) -> bool:
    (version,) = await admin.fetchrow("SELECT version FROM chatx_schema")
    columns = await admin.fetchval("SELECT count(*) FROM information_schema.columns WHERE column_name = 'slow'")
    assert (version == postgres_schema.SCHEMA_VERSION) is (columns == 1)
    return bool(columns)


async def test_a_step_may_take_longer_than_a_call_where_the_tables_are_taken_up_ahead(
    log: PostgresLog, url: str, request: pytest.FixtureRequest
) -> None:
    await log.take_over("room")
    request.getfixturevalue("slow_step")
    admin = await asyncpg.connect(url)
    newcomer = PostgresLog(url, timeout_ms=1000)
    with pytest.raises(LogUnavailable, match=r"nothing was changed.*statement timeout.*chatx db upgrade"):
        await newcomer.take_over("room")
    assert not await has_slow_step(admin)
    await newcomer.make_tables()
    assert await has_slow_step(admin)
    assert (await newcomer.take_over("room")).term == 2
    await newcomer.close()
    await admin.close()


async def test_who_comes_while_the_tables_are_taken_up_is_told_so(url: str) -> None:
    admin, newcomer = await asyncpg.connect(url), PostgresLog(url, timeout_ms=1000)
    await admin.execute(f"SELECT pg_advisory_lock({postgres_tables.MAKING})")
    for call in (newcomer.make_tables(), newcomer.look("room")):
        with pytest.raises(LogUnavailable, match="by somebody else, which is not over yet"):
            await call
    await admin.close()
    await newcomer.make_tables()
    await newcomer.close()


async def test_a_lock_that_somebody_has_on_the_tables_leaves_them_as_they_were(
    log: PostgresLog, url: str, request: pytest.FixtureRequest
) -> None:
    await log.take_over("room")
    request.getfixturevalue("slow_step")
    admin, newcomer = await asyncpg.connect(url), PostgresLog(url, timeout_ms=1000)
    async with admin.transaction():
        assert await admin.fetch("SELECT FROM chatx_entries") == []  # a backup, a report
        with pytest.raises(LogUnavailable, match=r"from version 3, and nothing was changed.*lock timeout.*a backup"):
            await newcomer.make_tables()
        assert not await has_slow_step(admin)
    await newcomer.make_tables()
    assert await has_slow_step(admin)
    await newcomer.close()
    await admin.close()


async def test_a_user_who_may_make_no_tables_is_told_so(postgres: Postgres, url: str) -> None:
    postgres.psql("DO $$ BEGIN CREATE ROLE guest LOGIN; EXCEPTION WHEN duplicate_object THEN END $$")
    postgres.psql("REVOKE CREATE ON SCHEMA public FROM PUBLIC", _name(url))
    guest = PostgresLog(url.replace("chatx@", "guest@"), timeout_ms=20_000)
    with pytest.raises(LogUnavailable, match=r"could not be made.*permission denied for schema public.*GRANT CREATE"):
        await guest.make_tables()
    await guest.close()


def test_it_belongs_to_one_loop_until_it_is_closed(url: str) -> None:
    log = PostgresLog(url, timeout_ms=20_000)

    async def take() -> int:
        term = (await log.take_over("room")).term
        with pytest.raises(RuntimeError, match="another event loop"):
            await asyncio.to_thread(asyncio.run, log.take_over("room"))
        await log.close()
        await log.close()
        await log.let_go()
        return term

    assert asyncio.run(take()) == 1
    assert asyncio.run(take()) == 2


# One writer


async def test_a_second_writer_is_refused_until_the_first_lets_go(log: PostgresLog, url: str) -> None:
    other = PostgresLog(url, timeout_ms=20_000)
    assert await log.hold(0)
    assert await log.hold(0)
    assert not await other.hold(0)
    assert not await other.hold(150)
    # Who does not write may read beside it.
    assert (await other.read("room", limit=1)).entries == ()
    waiting = asyncio.ensure_future(other.hold(50_000))
    await asyncio.sleep(0)
    await log.let_go()
    await log.let_go()
    assert await waiting
    assert not await log.hold(0)
    await other.close()
    assert await log.hold(50_000)


async def test_nodes_of_one_chat_write_beside_each_other_and_beside_no_other_chat(log: PostgresLog, url: str) -> None:
    other, alone = PostgresLog(url, timeout_ms=20_000), PostgresLog(url, timeout_ms=20_000)
    assert await log.share(0)
    assert await other.share(0)
    assert not await alone.hold(0)
    # A room is the one's or the other's.
    one = (await log.take_over("room")).term
    two = (await other.take_over("room")).term
    entry = Record(Message("m1", "room", "ann", "hi", 5, "e", 1, stored=True), None, None)
    answers = [
        await each.append([Append("room", term, Position("e", 0), (entry,), True)])
        for each, term in ((log, one), (other, two))
    ]
    assert answers == [[FENCED], [None]]
    await log.let_go()
    assert not await alone.hold(0)
    await other.close()
    assert await alone.hold(50_000)
    assert not await log.share(0)
    await alone.close()


HOLDER = """
import asyncio, sys
from chatx.adapters.postgres_connections import ConnectionBroke
from chatx.adapters.postgres_log import PostgresLog

async def main():
    print(await PostgresLog(sys.argv[1], timeout_ms=20_000).hold(0), flush=True)
    await asyncio.sleep(600)

asyncio.run(main())
"""


async def test_the_lock_dies_with_its_holder(log: PostgresLog, url: str) -> None:
    holder = await asyncio.create_subprocess_exec(sys.executable, "-c", HOLDER, url, stdout=subprocess.PIPE)
    try:
        assert holder.stdout is not None
        assert await holder.stdout.readline() == b"True\n"
        assert not await log.hold(0)
    finally:
        holder.kill()
        await holder.wait()
    assert await log.hold(50_000)


async def test_who_lost_the_lock_with_its_connection_takes_it_again_before_anything_is_written(
    log: PostgresLog, url: str, postgres: Postgres
) -> None:
    assert await log.hold(0)
    await log.take_over("room")
    await asyncio.to_thread(postgres.cut_connections)
    admin = await asyncpg.connect(url)
    # The end of a connection is noticed a little later than it comes.
    while not await admin.fetchval("SELECT count(*) FROM pg_locks WHERE locktype = 'advisory'"):
        await eventually(lambda: log.append([append(1, message(1))]))
    await admin.close()
    other = PostgresLog(url, timeout_ms=20_000)
    assert not await other.hold(0)
    await other.close()


async def test_who_lost_the_lock_to_another_writes_nothing_until_that_one_lets_go(
    log: PostgresLog, url: str, postgres: Postgres
) -> None:
    assert await log.hold(0)
    await log.take_over("room")
    other = PostgresLog(url, timeout_ms=20_000)
    await asyncio.to_thread(postgres.cut_connections)
    # The server frees a lock before it closes the connection: until that is seen, the term is what keeps the order.
    opened = log._opened
    assert opened is not None
    await until(lambda: not opened.lock._lives())
    # It comes only now, since a cut may end a connection that has just got the lock from another.
    assert await other.hold(50_000)
    for call in (
        lambda: log.append([append(1, message(1))]),
        lambda: log.take_over("room"),
        lambda: log.unproven("room", 1, Position("a", 0)),
        lambda: log.close_rooms({"room": (1, Position("a", 0))}),
    ):
        with pytest.raises(LogUnavailable, match="Another chat writes"):
            await call()
    assert (await log.read("room", limit=9)).entries == ()
    await other.close()
    assert await eventually(lambda: log.append([append(1, message(1))])) == [None]


# What it says while the server fails


async def test_while_the_server_is_away_every_call_is_surely_not_done_and_then_all_goes_on(
    log: PostgresLog, postgres: Postgres
) -> None:
    await log.take_over("room")
    assert await log.append([append(1, message(1))]) == [None]
    await asyncio.to_thread(postgres.stop)
    try:
        for call in (
            lambda: log.take_over("room"),
            lambda: log.append([append(1, message(2))]),
            lambda: log.read("room", limit=1),
            lambda: log.find("room", "alice", "key"),
            lambda: log.hold(0),
        ):
            with pytest.raises(LogUnavailable):
                await call()
    finally:
        await asyncio.to_thread(postgres.start)
    assert await eventually(lambda: log.append([append(1, message(2))])) == [None]
    assert (await log.read("room", limit=9)).entries == (message(1), message(2))


async def test_what_was_appended_is_there_after_the_server_was_killed(log: PostgresLog, postgres: Postgres) -> None:
    await log.take_over("room")
    unhurried = Append("room", 1, Position("a", 0), (Record(message(1)),), durable=False)
    assert await log.append([unhurried]) == [None]
    await asyncio.to_thread(postgres.kill)
    await asyncio.to_thread(postgres.start)
    assert await eventually(lambda: log.append([append(1, message(2))])) == [None]
    assert (await log.read("room", limit=9)).entries == (message(1), message(2))


async def test_a_connection_that_was_cut_is_nobodys_failure(log: PostgresLog, postgres: Postgres) -> None:
    await log.take_over("room")
    assert await log.append([append(1, message(1))]) == [None]
    # Within one turn of the loop: nobody has heard of it when the next call is made.
    postgres.cut_connections()
    assert await log.append([append(1, message(2))]) == [None]
    assert (await log.take_over("room")).head == ("a", 2)
    postgres.cut_connections()
    assert (await log.read("room", limit=9)).entries == (message(1), message(2))


async def test_what_broke_is_not_taken_for_undone_where_it_cannot_be_asked_for_again(
    log: PostgresLog, postgres: Postgres
) -> None:
    await log.take_over("room")
    assert await log.append([append(1, message(1))]) == [None]
    postgres.stop()
    try:
        with pytest.raises(ConnectionBroke):
            await log.append([append(1, message(2))])
    finally:
        await asyncio.to_thread(postgres.start)


async def test_a_server_that_is_frozen_says_nothing_of_what_it_was_given_and_a_new_term_tells(
    hasty: PostgresLog, postgres: Postgres
) -> None:
    term = await hasty_term(hasty)
    assert await eventually(lambda: hasty.append([append(term, message(1))])) == [None]
    # Two connections idle now: where one of them says nothing the other is not asked.
    await asyncio.gather(*(hasty.append([append(0, message(1))]) for _ in range(2)))
    given = append(term, message(2))
    with postgres.frozen():
        with pytest.raises(TimeoutError):
            await hasty.append([given])
        with pytest.raises(LogUnavailable):
            await hasty.append([given])
    # Whether the server did it when it could again: it does not any more.
    term = await hasty_term(hasty)
    found = (await hasty.read("room", limit=9)).entries
    assert found in ((message(1),), (message(1), message(2)))
    assert await hasty.append([given]) == [FENCED]
    assert (await hasty.read("room", limit=9)).entries == found
    assert await hasty.append([append(term, message(2))]) == [None]


async def test_a_call_that_is_given_up_leaves_no_connection_taken(hasty: PostgresLog, postgres: Postgres) -> None:
    await eventually(lambda: hasty.take_over("room"))
    with postgres.frozen():
        calls = [asyncio.ensure_future(hasty.append([append(9, message(n))])) for n in range(1, 9)]
        await asyncio.sleep(0.01)
        for each in calls:
            each.cancel()
        await asyncio.gather(*calls, return_exceptions=True)
    assert await eventually(lambda: hasty.append([append(9, message(1))])) == [FENCED]


async def test_a_lock_that_somebody_else_holds_on_a_room_is_waited_for_and_then_nothing_was_written(
    hasty: PostgresLog, url: str
) -> None:
    term = await hasty_term(hasty)
    admin = await asyncpg.connect(url)
    async with admin.transaction():
        await admin.execute("SELECT FROM chatx_rooms FOR UPDATE")
        with pytest.raises(LogUnavailable):
            await hasty.append([append(term, message(1))])
        # Reads wait for nobody.
        assert (await hasty.read("room", limit=1)).entries == ()
    await admin.close()
    assert await eventually(lambda: hasty.append([append(term, message(1))])) == [None]


@pytest.mark.parametrize("sqlstate", ["53100", "40001", "40P01", "57014"])
async def test_an_error_of_the_moment_says_that_nothing_was_written(log: PostgresLog, url: str, sqlstate: str) -> None:
    for room_id in ("room", "other"):
        await log.take_over(room_id)
    admin = await asyncpg.connect(url)
    await admin.execute(
        f"""CREATE FUNCTION fail() RETURNS trigger LANGUAGE plpgsql AS
        $$ BEGIN RAISE EXCEPTION 'as if the disk were full' USING ERRCODE = '{sqlstate}'; END $$"""
    )
    await admin.execute("CREATE TRIGGER fail BEFORE INSERT ON chatx_entries EXECUTE FUNCTION fail()")
    appends = [append(1, message(1)), append(1, message(1, room_id="other"))]
    with pytest.raises(LogUnavailable, match="as if the disk were full"):
        await log.append(appends)
    # Fenced rooms are looked at one by one: so is what is behind them.
    with pytest.raises(LogUnavailable, match="as if the disk were full"):
        await log.append([append(7, message(1)), *appends[1:], append(1, message(2, room_id="other"))])
    await admin.execute("DROP TRIGGER fail ON chatx_entries")
    await admin.close()
    assert await log.append(appends) == [None, None]


async def test_a_failure_behind_what_was_written_does_not_say_that_nothing_was(log: PostgresLog, url: str) -> None:
    for room_id in ("room", "other"):
        await log.take_over(room_id)
    others = [message(1, room_id="other"), message(2, room_id="other")]
    assert await log.append([append(1, others[0])]) == [None]
    admin = await asyncpg.connect(url)
    await admin.execute(
        """CREATE FUNCTION fail() RETURNS trigger LANGUAGE plpgsql AS
        $$ BEGIN RAISE EXCEPTION 'as if the disk were full' USING ERRCODE = '53100'; END $$"""
    )
    await admin.execute(
        "CREATE TRIGGER fail BEFORE INSERT ON chatx_entries FOR EACH ROW WHEN (NEW.room_id = 'other') "
        "EXECUTE FUNCTION fail()"
    )
    # One of the rooms has a part of its append already, so it is looked at when the other one is written.
    appends = [append(1, message(1)), append(1, *others)]
    with pytest.raises(Exception, match="took a part") as told:
        await log.append(appends)
    assert not isinstance(told.value, LogUnavailable)
    assert (await log.read("room", limit=9)).entries == (message(1),)
    await admin.execute("DROP TRIGGER fail ON chatx_entries")
    await admin.close()
    assert await log.append(appends) == [None, None]


async def test_more_calls_than_connections_wait_for_each_other(url: str) -> None:
    log = PostgresLog(url, transactions=1, readers=1, timeout_ms=20_000)
    rooms = [f"room {n}" for n in range(20)]
    await asyncio.gather(*map(log.take_over, rooms))
    answers = await asyncio.gather(*(log.append([append(1, message(1, room_id=each))]) for each in rooms))
    assert answers == [[None]] * 20
    admin = await asyncpg.connect(url)
    connected = await admin.fetchval("SELECT count(*) FROM pg_stat_activity WHERE application_name = 'chatx'")
    await admin.close()
    assert connected == 2
    await log.close()
