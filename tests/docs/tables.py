"""The tables and listings of the documentation that are made from the code.

`python -m tests.docs.tables` writes them anew.
"""

import inspect
import re
from collections.abc import Callable, Iterable
from dataclasses import fields
from pathlib import Path

from msgspec.structs import fields as struct_fields

from chatx import ERRORS, ChatConfig, RateLimit, Statistics, telemetry
from chatx.client.options import Options
from chatx.gateway.operations import app as operations
from chatx.gateway.wire.closes import CLOSES
from chatx.gateway.wire.transitions import TRANSITIONS, Input
from tests.docs.markdown import PAGES, ROOT

_PLACE = re.compile(r"(?<=<!-- table: )(?P<name>\w+)( -->\n\n).*?(?=\n<!-- end of table -->)", re.DOTALL)


def options() -> str:
    """Every option of `ChatConfig`."""
    return _table(
        ("option", "default", "unit", "at least", "what"),
        (
            (
                f"`{option.name}`",
                f"`{_shown(option.default)}`",
                option.metadata.get("unit", "–"),
                str(option.metadata.get("least", "–")),
                option.metadata["doc"],
            )
            for option in fields(ChatConfig)
        ),
    )


def client_options() -> str:
    """Every option of the Python client, as the docstring has them."""
    documented = _documented(Options)
    return _table(
        ("option", "default", "what"),
        ((f"`{each.name}`", f"`{each.default:,}`", documented[each.name]) for each in struct_fields(Options)),
    )


def errors() -> str:
    """Every error, by code."""
    return _table(
        ("code", "exception", "retryable", "means"),
        (
            (f"`{code}`", f"`{error.__name__}`", "yes" if error.retryable else "no", error.summary)
            for code, error in ERRORS.items()
        ),
    )


def events() -> str:
    """Every telemetry event, as the module's docstring has them."""
    return "".join(f"{line}\n" for line in (telemetry.__doc__ or "").splitlines() if line.startswith("|"))


def statistics() -> str:
    """Every field of `Statistics`, as its docstring has them."""
    documented = _documented(Statistics)
    return _table(
        ("field", "what"),
        ((f"`{name}`", documented[name]) for name in Statistics.__struct_fields__),
    )


def transitions() -> str:
    """What comes of each input in each state of a topic."""
    return _table(
        ("input", *TRANSITIONS),
        (
            (given.value, *(_transition(state[given]) if given in state else "–" for state in TRANSITIONS.values()))
            for given in Input
        ),
    )


def server_routes() -> str:
    """What there is beside the native server's socket, as the module's docstring has it."""
    return "".join(f"{line}\n" for line in (operations.__doc__ or "").splitlines() if line.startswith("|"))


def closes() -> str:
    """Every close code of a socket."""
    return _table(("code", "when", "the client"), ((str(code), *close) for code, close in CLOSES.items()))


def client() -> str:
    """The example of a whole client."""
    return f"```py\n{(ROOT / 'examples' / 'client.py').read_text(encoding='utf-8')}```\n"


TABLES: dict[str, Callable[[], str]] = {
    table.__name__: table
    for table in (
        options,
        client_options,
        errors,
        events,
        statistics,
        transitions,
        server_routes,
        closes,
        client,
    )
}


def rewritten(text: str) -> str:
    """The page with its tables as the code has them now."""
    return _PLACE.sub(lambda place: f"{place['name']}{place[2]}{TABLES[place['name']]()}", text)


def _transition(transition: tuple[str, str]) -> str:
    state, effect = transition
    return f"{effect} → *{state}*"


def _shown(default: object) -> str:
    if isinstance(default, RateLimit):
        return f"RateLimit({default.messages_per_sec}, {default.burst})"
    return str(default) if isinstance(default, int | None) else repr(default).replace("'", '"')


def _documented(kind: type) -> dict[str, str]:
    """What a class's docstring says of each attribute."""
    found = re.findall(r"^ {4}(\w+): (.+(?:\n {8}.+)*)", inspect.getdoc(kind) or "", re.MULTILINE)
    return {name: " ".join(text.split()) for name, text in found}


def _table(header: tuple[str, ...], body: Iterable[tuple[str, ...]]) -> str:
    lines = [header, ("---",) * len(header), *body]
    return "".join(f"| {' | '.join(cells)} |\n" for cells in lines)


def main() -> None:
    """Write every table anew."""
    for page in PAGES:
        _rewrite(page)


def _rewrite(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    if (new := rewritten(text)) != text:
        page.write_text(new, encoding="utf-8")


if __name__ == "__main__":
    main()
