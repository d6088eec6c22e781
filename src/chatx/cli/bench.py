"""`chatx bench`: measure a server, with its own or with one that runs."""

from __future__ import annotations

import argparse
import asyncio
import json
import resource
import secrets
import shutil
import signal
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING

from chatx.cli.command import command, fail
from chatx.errors import ConfigError
from chatx.extras import needs

if TYPE_CHECKING:
    from chatx.cli.command import Commands
    from chatx.cli.load.loads import Plan
    from chatx.cli.load.target import Target

HELP = """
examples:
  chatx bench fanout                                     1,000 clients read one room; takes less than a minute
  chatx bench storm --clients 2000                       all come at once, are cut off at once, and come back
  chatx bench soak --minutes 10                          they come, go, are cut off and read slowly, with a store
  chatx bench fanout --threshold 'p99<50ms' --json       for a program: the exit status says whether it was kept
  chatx bench fanout --workers 2                         of several processes
  CHATX_SECRET=... chatx bench fanout --url https://chat.example.org --elsewhere     of a server of yours that runs

Without --url a `chatx serve` is begun for it, which limits nobody in how fast they talk; no CHATX_* variable reaches
it. With it the server's own limits hold. Its clients show tokens signed with CHATX_SECRET, or, without that, name
themselves with the parameter user_id, as --insecure-user-param lets them.

A time counts from when a message was to be said, also where the load or the server was late. Figures that a threshold
may be of:
{names}.
Times take us, ms or s; memory KiB, MiB or GiB. Always to be kept are lost==0, doubled==0, reordered==0 and
unanswered==0; in a soak also task_growth<=0, descriptor_growth<=0 and memory_growth<=64MiB: what there is more when
nobody is left than before anybody came.

exit status: 0 measured, and all kept; 1 something was not kept, nothing could be measured, or the server ended;
2 wrong options; 130 cut short by Ctrl+C or SIGTERM, with what there was until then
"""

DESCRIPTORS = 256
"""Files that are open beside those of clients."""

_UNWRAPPED = 1000
"""Columns where nobody reads it on a terminal: a program looks for whole lines."""

_UNLIMITED = {
    "CHATX_RATE_LIMIT": "{ messages_per_sec = 1e9, burst = 1000000000 }",
    "CHATX_HISTORY_BYTES_PER_SEC": str(2**30),
}
_SOAKED = {"CHATX_DURABILITY": "stored", "CHATX_ROOM_IDLE_MS": "5000"}


def add_to(commands: Commands) -> None:
    """Add the command."""
    from textwrap import wrap

    from chatx.cli.load.report import NAMES
    from chatx.cli.load.thresholds import threshold

    parser = command(
        commands,
        "bench",
        summary="measure what a server carries, and whether it loses anything",
        description="Measure a server as its clients see it: what they wait for, and what they lose.",
        epilog=HELP.format(names="\n".join(wrap(", ".join(NAMES), 116))),
        run=run,
    )
    parser.add_argument("load", choices=("fanout", "storm", "soak"), help="what is done")
    parser.add_argument("--clients", type=_number(1, 100_000), help="clients (default: 1000, and 2000 in a soak)")
    parser.add_argument("--rate", type=_rate, help="messages a second (default: 20, and 200 in a soak)")
    long = parser.add_mutually_exclusive_group()
    long.add_argument("--seconds", type=_number(1, 86_400), help="how long they talk (default: 20)")
    long.add_argument("--minutes", type=_number(1, 1440), help="the same, in minutes (default: 10 in a soak)")
    parser.add_argument("--rooms", type=_number(1, 10_000), help="rooms (default: 1, and 100 in a soak)")
    parser.add_argument("--size", type=_number(1, 4096), default=64, help="bytes of a message (default: 64)")
    parser.add_argument("--workers", type=_number(1, 64), default=1, help="workers of the server that is begun")
    parser.add_argument("--url", help="a server that runs, as http://localhost:4000 (default: one is begun)")
    parser.add_argument("--elsewhere", action="store_true", help="let --url be on another machine: it is yours to load")
    parser.add_argument(
        "--threshold", type=threshold, nargs="+", action="extend", default=[], metavar="BOUND",
        help="what must be kept, as 'p99<50ms'",
    )  # fmt: skip
    parser.add_argument("--seed", type=_number(0, 2**32), help="of what is random (default: another each time)")
    parser.add_argument("--json", action="store_true", help="print one JSON object")


def run(options: argparse.Namespace) -> int:
    """Measure, print what was found, and return the exit status."""
    from chatx.cli.load.report import NAMES, SIZES, TIMES
    from chatx.cli.load.target import Target
    from chatx.cli.load.thresholds import SIZE_UNITS, TIME_UNITS

    if unknown := sorted({each.name for each in options.threshold} - set(NAMES)):
        return fail(f"There is no figure {', '.join(unknown)}; there are {', '.join(NAMES)}.")
    for each in options.threshold:
        units = TIME_UNITS if each.name in TIMES else SIZE_UNITS if each.name in SIZES else {"": 1.0}
        if each.unit not in units and (each.unit or each.bound):
            wanted = f"one of {', '.join(units)}" if "" not in units else "none"
            return fail(f"--threshold {each.text!r} has the unit {each.unit!r}; of {each.name} it is {wanted}.")
    if options.url is not None and options.workers > 1:
        return fail("--workers is for the server that is begun; with --url there is none.")
    if options.load == "fanout" and options.rooms not in (None, 1):
        return fail("A fan-out is in one room; leave --rooms out, or take a storm or a soak.")
    plan = _plan(options)
    if plan.rooms > plan.clients:
        return fail(f"--rooms {plan.rooms} are more than --clients {plan.clients}: each room has somebody in it.")
    try:
        with needs("gateway", "chatx bench"):
            import starlette  # noqa: F401 # the server needs it; said here, it is said once
        target = None if options.url is None else Target.of(options.url, elsewhere=options.elsewhere)
    except ConfigError as error:
        return fail(error)
    if (reason := _lift(plan.clients)) is not None:
        return fail(reason, 1)
    loop: Callable[[], asyncio.AbstractEventLoop] | None = None
    try:
        import uvloop

        loop = uvloop.new_event_loop
    except ImportError:
        pass
    with asyncio.Runner(loop_factory=loop) as runner:
        return runner.run(_measure(options, plan, target))


async def _measure(options: argparse.Namespace, plan: Plan, target: Target | None) -> int:
    from chatx.cli.load import loads
    from chatx.cli.load.phases import NotIn
    from chatx.cli.load.reached import reached
    from chatx.cli.load.report import ALWAYS, SOAKED, document, figures, text, versions
    from chatx.cli.load.server import NotServed, serving

    stopped = asyncio.Event()
    loop = asyncio.get_running_loop()
    for each in (signal.SIGINT, signal.SIGTERM):
        if signal.getsignal(each) is not signal.SIG_IGN:
            loop.add_signal_handler(each, stopped.set)
    kind: str = options.load
    variables = _UNLIMITED | (_SOAKED if kind == "soak" else {})
    begun = ["--workers", str(options.workers)] if options.workers > 1 else []
    own = serving(begun, variables, stores=kind == "soak") if target is None else reached(target)
    course, crew, whole = loads.Course(), None, False
    ended: str | None = None
    try:
        async with own as measured:
            from chatx.cli.load.crew import Crew

            crew = Crew(measured.target, secrets.randbits(32) if options.seed is None else options.seed)
            work = asyncio.ensure_future(getattr(loads, kind)(measured.target, crew, plan, course))
            stopping = asyncio.ensure_future(stopped.wait())
            await asyncio.wait((work, stopping, measured.ended), return_when=asyncio.FIRST_COMPLETED)
            stopping.cancel()
            ended = measured.ended.result() if measured.ended.done() else None
            work.cancel()
            await asyncio.wait((work,))
            whole = not work.cancelled()
            if whole:
                work.result()
    except (NotServed, NotIn) as error:
        return fail(str(error), 1)
    found = figures(crew, course)
    bounds = (*ALWAYS, *(SOAKED if kind == "soak" and course.after is not None else ()), *options.threshold)
    kept = {each.text: each.holds(found) for each in bounds} if whole else {}  # half a load keeps nothing
    if whole and not course.complete:
        kept["everybody sees everything"] = False
    told = versions()
    if options.json:
        print(json.dumps(document(kind, crew, course, plan, told, kept, whole=whole)))
    else:
        width = shutil.get_terminal_size().columns if sys.stdout.isatty() else _UNWRAPPED
        print("\n" + text(kind, crew, course, plan, told, kept, whole=whole, width=width))
    sys.stdout.flush()
    if ended is not None:
        return fail(ended, 1)
    if not whole:
        return 130
    return 0 if all(kept.values()) else 1


def _plan(options: argparse.Namespace) -> Plan:
    from chatx.cli.load.loads import Plan

    soaks = options.load == "soak"
    seconds = options.seconds or (options.minutes * 60 if options.minutes else 600 if soaks else 20)
    clients = options.clients or (2000 if soaks else 1000)
    rooms = options.rooms or (min(100, max(1, clients // 2)) if soaks else 1)
    return Plan(
        clients=clients,
        rate=options.rate or (200.0 if soaks else 20.0),
        seconds=float(seconds),
        size=options.size,
        rooms=1 if options.load == "fanout" else rooms,
        churn=5.0 if soaks else 0.0,
        cuts=2.0 if soaks else 0.0,
        slow=min(20, (clients - rooms) // 4) if soaks else 0,
        rest_s=(20.0 if options.url is None else 90.0) if soaks else 0.0,
    )


def _lift(clients: int) -> str | None:
    """Let this process have a file open for each client; return why that cannot be."""
    wanted = 2 * clients + DESCRIPTORS  # those that have just left are there for a moment still
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        if hard != resource.RLIM_INFINITY and hard < wanted:
            return (
                f"{clients} clients take {wanted} open files, and {hard} are allowed; raise `ulimit -n`, or take fewer."
            )
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
    return None


def _number(least: int, most: int) -> Callable[[str], int]:
    def number(text: str) -> int:
        if not text.isdecimal() or not least <= int(text) <= most:
            raise argparse.ArgumentTypeError(f"{text!r} is none; give a whole number from {least:,} to {most:,}")
        return int(text)

    return number


def _rate(text: str) -> float:
    try:
        rate = float(text)
    except ValueError:
        rate = 0.0
    if not 0.1 <= rate <= 100_000:
        raise argparse.ArgumentTypeError(f"{text!r} is none; give a number from 0.1 to 100,000")
    return rate
