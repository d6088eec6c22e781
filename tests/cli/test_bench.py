"""`chatx bench`: it measures, and it sees what is lost, doubled and out of order."""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from websockets.asyncio.server import ServerConnection, serve

from chatx.cli import main
from chatx.cli.load.bars import Bar
from chatx.cli.load.crew import Crew, Said
from chatx.cli.load.histogram import Histogram
from chatx.cli.load.loads import Course, Day, Plan, fanout, late_growth
from chatx.cli.load.phases import NotIn, come_in, kept
from chatx.cli.load.reached import reached
from chatx.cli.load.report import figures, text
from chatx.cli.load.server import NotServed
from chatx.cli.load.stream_check import StreamCheck, Totals
from chatx.cli.load.target import Target
from chatx.cli.load.thresholds import threshold
from chatx.cli.load.visitor import Visitor
from chatx.errors import ConfigError
from tests.process import ENVIRONMENT, Served, interruptible
from tests.process import serve as served


def bench(*arguments: str, before: Sequence[str] = (), **environment: str) -> subprocess.CompletedProcess[str]:
    """Run the command to its end, by another one where that is named."""
    return subprocess.run(
        [*before, sys.executable, "-m", "chatx", "bench", *arguments],
        capture_output=True, text=True, timeout=150, check=False, env=ENVIRONMENT | environment,
    )  # fmt: skip


@pytest.fixture(scope="module")
def running() -> Iterator[Served]:
    with served("--insecure-user-param", CHATX_RATE_LIMIT="{ messages_per_sec = 1000, burst = 1000 }") as server:
        yield server


# What it makes of a stream


@given(st.permutations(range(1, 9)), st.lists(st.integers(0, 20), max_size=5), st.sets(st.integers(1, 8)))
def test_what_was_lost_doubled_and_reordered_is_what_was_done_to_it(
    order: list[int], repeats: list[int], dropped: set[int]
) -> None:
    came = [offset for offset in order if offset not in dropped]
    for each in repeats if came else ():
        came.insert(each % len(came) + 1, came[each % len(came)])
    totals = Totals()
    check = StreamCheck(totals)
    check.joined("e", 0, recovered=False)
    for offset in came:
        check.saw("e", offset)
    assert check.has_all(8) is (not dropped)
    check.end(8)

    times = Counter(came)
    first = [offset for place, offset in enumerate(came) if offset not in came[:place]]
    late = sum(offset < max(first[:place], default=0) for place, offset in enumerate(first))
    assert (totals.lost, totals.doubled) == (len(dropped), sum(times.values()) - len(times))
    assert totals.reordered == late
    assert check.has_all(8)


def test_what_a_resume_does_not_bring_is_lost_and_told() -> None:
    totals = Totals()
    check = StreamCheck(totals)
    check.joined("e", 5, recovered=False)
    check.saw("e", 6)
    check.joined("e", 9, recovered=True)
    assert totals == Totals()
    check.joined("e", 11, recovered=False)
    assert totals == Totals(lost=5, gaps=1)
    check.joined("f", 2, recovered=False, head_before=14)
    assert totals == Totals(lost=8, gaps=2)
    check.saw("e", 15)
    assert totals.reordered == 1


@given(st.lists(st.integers(0, 10**9), min_size=1, max_size=50), st.integers(1, 100))
def test_a_time_is_told_within_one_percent(micros: list[int], percent: int) -> None:
    histogram = Histogram()
    for each in micros:
        histogram.add(each / 1e6)
    exact = sorted(micros)[-(-percent * len(micros) // 100) - 1]
    assert exact * 0.99 - 1 <= histogram.at_most(percent / 100) * 1e6 <= exact + 1e-3
    assert histogram.most_s == max(micros) / 1e6


@pytest.mark.parametrize(
    "text, figures, holds",
    [
        ("p99<50ms", {"p99": 0.049}, True),
        ("p99 < 50ms", {"p99": 0.05}, False),
        ("max<=2s", {"max": 2.0}, True),
        ("memory<100MiB", {"memory": 2.0**27}, False),
        ("cpu_per_delivery<10us", {"cpu_per_delivery": 5e-6}, True),
        ("rate>=1000", {"rate": 1000.0}, True),
        ("return_p50<1s", {"return_p50": None}, False),
        ("lost==0", {}, False),
    ],
)
def test_a_threshold_is_kept_or_not(text: str, figures: dict[str, float | None], holds: bool) -> None:
    assert threshold(text).holds(figures) is holds


@pytest.mark.parametrize(
    "held, grew",
    [
        ([], None),
        ([1.0] * 9, None),
        ([float(each) for each in range(100)], 40.0),  # from the sixth tenth to the last
        ([*(float(each) for each in range(50)), *[50.0] * 50], 0.0),  # what fills up in the first half is no leak
        ([0.0] * 50 + [0.0] * 49 + [1e9], 0.0),  # nor is one look
    ],
)
def test_memory_that_still_grows_in_the_second_half_is_told(held: list[float], grew: float | None) -> None:
    assert late_growth(Course(held=held)) == grew


# What it is told


def test_where_there_is_no_terminal_a_long_phase_says_once_a_minute_how_far_it_is(
    capsys: pytest.CaptureFixture[str],
) -> None:
    now = 0.0
    bar = Bar("talk", 200, "s", lambda: now)
    while now < 200:
        now += 1
        bar.at(now)
    bar.end(now)
    assert capsys.readouterr().err.splitlines() == [
        "talk: 200 s",
        "talk: 60 of 200 in 60.0 s",
        "talk: 120 of 200 in 120.0 s",
        "talk: 180 of 200 in 180.0 s",
        "talk: 200 of 200 in 200.0 s",
    ]


@pytest.mark.parametrize(
    "arguments, named",
    [
        ([], "load"),
        (["dance"], "dance"),
        (["fanout", "--clients", "0"], "'0' is none; give a whole number from 1 to 100,000"),
        (["fanout", "--clients", "many"], "'many' is none"),
        (["fanout", "--rate", "nan"], "'nan' is none; give a number from 0.1 to 100,000"),
        (["fanout", "--threshold", "fast"], "'fast' is no threshold; give one as 'p99<50ms'"),
        (["fanout", "--threshold", "p99<50 parsecs"], "is no threshold"),
        (["fanout", "--threshold", "p99<50ms,lost==0"], "is no threshold"),
        (["fanout", "--seconds", "5", "--minutes", "5"], "not allowed with argument"),
    ],
)
def test_wrong_options_end_with_2_and_say_which(
    arguments: list[str], named: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["bench", *arguments])
    assert ended.value.code == 2
    assert named in capsys.readouterr().err


@pytest.mark.parametrize(
    "arguments, named",
    [
        (["--threshold", "speed<1"], "There is no figure speed; there are p50, "),
        (
            ["--threshold", "lost==0", "p99<50"],
            "--threshold 'p99<50' has the unit ''; of p99 it is one of us, µs, ms, s",
        ),
        (["--threshold", "memory<=50ms"], "has the unit 'ms'; of memory it is one of KiB, MiB, GiB"),
        (["--threshold", "rate>5MiB"], "has the unit 'MiB'; of rate it is none"),
        (["--url", "localhost:4000"], "is no address of a server; give one as http://localhost:4000"),
        (["--url", "http://localhost:port"], "is no URL"),
        (["--url", "http://localhost:4000?token=x"], "is more than an address and a path"),
        (["--url", "http://192.0.2.1:4000"], "is not on this machine"),
        (["--url", "http://localhost:4000", "--workers", "2"], "--workers is for the server that is begun"),
        (["--rooms", "4"], "A fan-out is in one room"),
    ],
)
def test_what_does_not_fit_together_ends_with_2(
    arguments: list[str], named: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["bench", "fanout", *arguments]) == 2
    printed = capsys.readouterr()
    assert named in printed.err
    assert printed.out == ""


def test_a_room_has_somebody_in_it(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "storm", "--clients", "3", "--rooms", "4"]) == 2
    assert "--rooms 4 are more than --clients 3" in capsys.readouterr().err


def test_a_server_elsewhere_is_loaded_where_that_is_said() -> None:
    assert Target.of("wss://chat.example.org/talk/", elsewhere=True).path == "/talk"
    assert Target.of("wss://chat.example.org/talk/websocket", elsewhere=True).path == "/talk"
    with pytest.raises(ConfigError, match="--elsewhere says that it is"):
        Target.of("wss://chat.example.org/talk/", elsewhere=False)


class Alone(Crew):
    """Clients that no server answers."""

    async def connect(self, visitor: Visitor) -> None:
        await asyncio.Event().wait()


@pytest.mark.parametrize("clients", [0, 1, 30])
async def test_a_seed_has_the_same_leave_however_often_it_is_looked(clients: int) -> None:
    left = []
    for looks in (1, 7, 50):
        crew = Alone(Target("localhost", 1), 14)
        others = [crew.add("r") for _ in range(clients)]
        plan = Plan(clients=clients, rate=1, seconds=20, size=1, churn=5.0, cuts=2.0)
        day = Day(crew, others, plan, Course())
        for look in range(looks):
            day.at(2.0 * (look + 1) / looks)
        left.append([each.user for each in others])
        await crew.leave()
    assert left[0] == left[1] == left[2]
    assert (left[0] != [f"bench-e-{number + 1}" for number in range(clients)]) is (clients > 0)


def test_on_a_narrow_terminal_every_line_fits_and_what_is_missing_is_said() -> None:
    crew = Crew(Target("localhost", 1), 1)
    crew.connected.add(0.5)
    crew.delivered.add(12.5, 1_000_000)
    course = Course(talked_s=20.0, complete=True)
    missed = {"p99<50ms": False, "memory<=1MiB": False}
    told = text("fanout", crew, course, Plan(clients=1000, rate=20, seconds=20, size=64), {}, missed, True, width=40)
    assert max(map(len, told.split("\n"))) <= 40
    assert re.search(r"p99 +\d+\.\d ms +12\.\d+ s", told)
    assert "not kept: p99<50ms (12." in told
    assert "not kept: memory<=1MiB (not measured)" in told.replace("\n    ", " ")
    assert "tells no figures at /metrics" in told.replace("\n    ", " ")


async def test_what_nobody_answers_is_bounded_and_what_is_not_said_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("chatx.cli.load.crew.PLACES", 3)
    crew = Crew(Target("localhost", 1), 1)
    visitor = crew.add("r")
    for _ in range(5):
        crew.say(visitor, 0.0, 8)
    assert (crew.said, crew.unsent, len(visitor.unanswered)) == (5, 2, 3)
    crew.answered("r", visitor.unanswered.pop("1"), "e", 1)
    crew.say(visitor, 0.0, 8)
    assert (crew.unsent, len(visitor.unanswered)) == (2, 3)
    course = Course(talked_s=1.0)
    assert figures(crew, course)["unanswered"] == 5
    assert "not sent     2," in text("fanout", crew, course, Plan(1, 1, 1, 8), {}, {}, whole=False)


async def test_what_a_client_that_leaves_has_not_seen_is_lost_and_what_is_on_its_way_is_not() -> None:
    crew = Crew(Target("localhost", 1), 1)
    crew.answered("r", Said(1, "x", 0.0), "e", 5)
    for should_have_all in (False, True):
        visitor = crew.add("r")
        visitor.check.joined("e", 0, recovered=False)
        visitor.check.saw("e", 1)
        visitor.check.saw("e", 3)
        crew.remove(visitor, should_have_all=should_have_all)
        assert crew.totals == Totals(lost=1 + 3 * should_have_all)


async def test_another_message_at_the_same_place_is_counted() -> None:
    crew = Crew(Target("localhost", 1), 1)
    visitor = crew.add("r")
    crew.say(visitor, 0.0, 8)
    crew.say(visitor, 0.0, 8)
    one, other = visitor.unanswered.values()
    crew.answered("r", one, "e", 1)
    crew.answered("r", one, "e", 1)
    assert crew.totals == Totals()
    crew.answered("r", other, "e", 1)
    assert crew.totals == Totals(reordered=1)
    crew.answered("r", one, "e", 2)
    assert crew.totals == Totals(reordered=1, doubled=1)


# What it measures


@pytest.mark.process
def test_neither_a_proxy_nor_a_closed_stdin_nor_a_terminal_without_the_letters_is_in_the_way() -> None:
    done = bench(
        *("fanout", "--clients", "5", "--seconds", "1"), before=("sh", "-c", 'exec "$@" <&-', "sh"),
        http_proxy="http://127.0.0.1:9", PYTHONIOENCODING="ascii",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert r"\xb5s of CPU a delivery" in done.stdout


@pytest.mark.process
def test_a_fan_out_is_one_json_object_and_keeps_or_does_not_keep_its_threshold() -> None:
    shape = ("fanout", "--clients", "40", "--rate", "50", "--seconds", "1", "--seed", "7", "--json")
    done = bench(*shape, "--threshold", "p99<60s", "delivery_rate>1")
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert (told["lost"], told["doubled"], told["reordered"], told["seed"]) == (0, 0, 0, 7)
    assert told["complete"]
    assert told["deliveries"] == 40 * told["acknowledged"] > 40
    assert told["figures"]["cpu_per_delivery"] >= 0
    assert told["versions"]["chatx"]
    assert told["thresholds"]["p99<60s"]
    assert "connect: 40 of 40" in done.stderr


@pytest.mark.process
def test_of_a_server_that_runs_a_storm_loses_nothing_and_a_threshold_is_not_kept(running: Served) -> None:
    done = bench(
        "storm", "--clients", "60", "--seconds", "2", "--rooms", "3", "--url", running.url, "--threshold", "p50<0us"
    )
    assert done.returncode == 1, done.stderr
    assert "lost 0, doubled 0, reordered 0" in done.stdout
    assert "cut off      60" in done.stdout
    assert "come back" in done.stdout
    assert "not kept: p50<0us" in done.stdout


@pytest.mark.process
@pytest.mark.slow
def test_a_soak_lets_go_of_everything() -> None:
    done = bench("soak", "--clients", "60", "--rooms", "6", "--rate", "40", "--seconds", "8", "--json")
    told = json.loads(done.stdout)
    assert done.returncode == 0, (done.stderr, told)
    assert told["churned"] > 0
    assert told["cut"] > 0
    assert told["server"]["after"]["tasks"] <= told["server"]["before"]["tasks"] > 0
    assert told["server"]["after"]["sockets"] == 0


@contextmanager
def talking(*arguments: str) -> Iterator[subprocess.Popen[str]]:
    """Run a long fan-out, from the moment at which they talk."""
    command = [sys.executable, "-m", "chatx", "bench", "fanout", "--clients", "5", "--seconds", "600", *arguments]
    with interruptible():
        process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=ENVIRONMENT, process_group=0
        )
    with process:
        assert process.stderr is not None
        for line in process.stderr:
            if line.startswith("talk"):
                break
        yield process


@pytest.mark.process
def test_ctrl_c_tells_what_there_was_and_leaves_no_server(running: Served) -> None:
    with talking("--url", running.url) as process:
        process.send_signal(signal.SIGINT)
        out, _ = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "It did not run to its end" in out
    assert "not kept" not in out
    said = re.search(r"said +(\d+), acknowledged \d+, a second ([\d,]+)", out)
    assert said is not None
    assert int(said[2].replace(",", "")) <= 1_000_000  # of no time at all it would be a thousand times that


@pytest.mark.process
def test_a_server_that_ends_meanwhile_is_told_at_once() -> None:
    with talking() as process:
        for each in Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split():
            os.kill(int(each), signal.SIGKILL)
        out, err = process.communicate(timeout=60)
    assert process.returncode == 1
    assert "The server ended while it was measured, with SIGKILL." in err
    assert "lost 0, doubled 0, reordered 0" in out


@pytest.mark.parametrize("cut", [False, True])
async def test_what_is_on_its_way_when_a_load_is_cut_short_is_not_lost(cut: bool) -> None:
    crew = Crew(Target("localhost", 1), 1)
    crew.add("r").check.joined("e", 0, recovered=False)
    crew.answered("r", Said(1, "x", 0.0), "e", 1)
    working = asyncio.ensure_future(kept(crew, asyncio.sleep(600 if cut else 0)))
    await asyncio.sleep(0)
    if cut:
        working.cancel()
    await asyncio.wait((working,))
    assert crew.totals.lost == (not cut)


def test_who_is_not_let_in_is_told_why(running: Served) -> None:
    # The server takes no tokens, and without a name nobody comes in.
    async def come() -> None:
        crew = Crew(Target("localhost", running.port, "/socket", None, "s" * 32), 1)
        try:
            await come_in(crew, [crew.add(crew.room(0))], at_once=1, within_s=1.0, what="connect")
        finally:
            await crew.leave()

    with pytest.raises(NotIn, match=r"0 of 1 clients came in within 1 s; they were told: HTTP 403"):
        asyncio.run(come())


@pytest.mark.parametrize(
    "url, secret, named",
    [
        ("http://nowhere.invalid", None, "There is no nowhere.invalid"),
        ("http://127.0.0.1:1", None, "Nothing answers at http://127.0.0.1:1: "),
        (
            "http://127.0.0.1:{port}/elsewhere",
            None,
            "There is no socket at http://127.0.0.1:{port}/elsewhere/websocket",
        ),
        ("https://127.0.0.1:{port}", None, "https://127.0.0.1:{port} speaks no TLS"),
        ("http://127.0.0.1:{port}", "s" * 32, "it takes no token that is signed with this CHATX_SECRET"),
    ],
)
def test_a_server_that_cannot_be_measured_is_told_before_anything_begins(
    url: str,
    secret: str | None,
    named: str,
    running: Served,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("CHATX_SECRET", secret or "")
    assert main(["bench", "fanout", "--elsewhere", "--url", url.format(port=running.port)]) == 1
    printed = capsys.readouterr()
    assert named.format(port=running.port) in printed.err
    assert (printed.out, "connect" in printed.err) == ("", False)


async def test_what_answers_no_handshake_is_no_server() -> None:
    async def greet(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"220 mail.example.org ESMTP\r\n")
        writer.close()

    async with await asyncio.start_server(greet, "127.0.0.1", 0) as server:
        with pytest.raises(NotServed, match="speaks no HTTP"):
            async with reached(Target("127.0.0.1", server.sockets[0].getsockname()[1])):
                pass


# What it sees of a server that does it wrong


@asynccontextmanager
async def wrong(what: str) -> AsyncIterator[int]:
    """Run a server that does something wrong with one of three messages."""
    here: set[ServerConnection] = set()
    said: list[Any] = []

    async def serving(socket: ServerConnection) -> None:
        try:
            async for text in socket:
                join_ref, ref, topic, event, payload = json.loads(text)
                response: dict[str, Any] = {}
                if event == "phx_join":
                    here.add(socket)
                    response = {"epoch": "e", "offset": len(said), "recovered": False}
                elif event == "new_message":
                    said.append(payload["content"])
                    response = {"id": str(len(said)), "epoch": "e", "offset": len(said)}
                reply = {"status": "ok", "response": response}
                await socket.send(json.dumps([join_ref, ref, topic, "phx_reply", reply]))
                if event == "new_message" and len(said) % 3 == 0:
                    await tell(topic, len(said) - 2, what)
        finally:
            here.discard(socket)

    async def tell(topic: str, first: int, what: str) -> None:
        if what == "late" and first == 4:
            time.sleep(0.5)  # noqa: ASYNC251 # nobody runs meanwhile, the load neither
        order = {
            "right": [0, 1, 2],
            "late": [0, 1, 2],
            "lost": [0, 2],
            "doubled": [0, 1, 1, 2],
            "reordered": [1, 0, 2],
        }[what]
        for socket in here:
            for each in order:
                content = said[first + each - 1]
                message = {"room_id": topic[5:], "epoch": "e", "offset": first + each, "content": content}
                await socket.send(json.dumps([None, None, topic, "new_message", message], separators=(",", ":")))

    async with serve(serving, "127.0.0.1", 0, subprotocols=None) as server:
        yield next(iter(server.sockets)).getsockname()[1]


@pytest.mark.parametrize(
    "answer",
    [
        '["1","1","t","phx_reply",{}]',
        '["1","1","t","phx_reply",{"status":"error","response":{}}]',
        '["phx_reply"',
        '"phx_reply"',
    ],
)
async def test_a_server_that_speaks_something_else_lets_nobody_in(answer: str) -> None:
    async def serving(socket: ServerConnection) -> None:
        async for _ in socket:
            await socket.send(answer)

    async with serve(serving, "127.0.0.1", 0) as server:
        crew = Crew(Target("127.0.0.1", next(iter(server.sockets)).getsockname()[1]), 1)
        crew.add(crew.room(0)).comes(crew.now())
        while not crew.refused:  # noqa: ASYNC110 # it tells nobody
            await asyncio.sleep(0.01)
        assert crew.inside == 0
        await crew.leave()
    assert set(crew.refused) == {"not understood"}


@pytest.mark.parametrize("what", ["right", "lost", "doubled", "reordered"])
async def test_what_a_server_does_wrong_is_counted(what: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("chatx.cli.load.loads.SEEN_S", 0.5)
    async with wrong(what) as port:
        course = Course()
        crew = Crew(Target("127.0.0.1", port), 1)
        await fanout(Target("127.0.0.1", port), crew, Plan(clients=3, rate=60, seconds=1, size=16), course)
    # What is said last, and is no third one, is told to nobody.
    unsaid = crew.said % 3 * 3
    found = {"lost": crew.totals.lost - unsaid, "doubled": crew.totals.doubled, "reordered": crew.totals.reordered}
    assert crew.said == crew.acknowledged >= 30
    assert found == {name: (crew.said // 3 * 3 if name == what else 0) for name in found}


async def test_a_time_counts_from_when_a_message_was_due_where_the_load_was_late_with_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("chatx.cli.load.loads.SEEN_S", 0.1)
    async with wrong("late") as port:
        crew = Crew(Target("127.0.0.1", port), 1)
        await fanout(Target("127.0.0.1", port), crew, Plan(clients=3, rate=60, seconds=1, size=16), Course())
    # Some 24 of 60 were due more than 0.1 s before it was over; from when they were said, few took long.
    assert crew.delivered.at_most(0.7) > 0.1
