"""Which names are public, and whether each has a docstring, as the source has them."""

import ast
import importlib
import inspect
from collections.abc import Iterator
from functools import cache
from typing import Any

PACKAGES = ("chatx", "chatx.client", "chatx.gateway", "chatx.testing")
"""Packages that export what their modules define: all in `__all__` is public."""

MODULES = (
    "chatx.adapters.memory_log",
    "chatx.adapters.outbox",
    "chatx.adapters.protocols",
    "chatx.adapters.room_log",
    "chatx.adapters.sqlite",
    "chatx.integrations.html",
    "chatx.integrations.starlette",
    "chatx.testing.faulty_log",
    "chatx.testing.pytest_plugin",
)
"""Modules to import from: all that they define without an underscore is public."""

SINGLE = ("chatx.telemetry.Handler",)
"""Names of other modules that the signatures of public ones need."""

INTERNAL = {
    "chatx.CallbackSubscription.cut",
    "chatx.Chat.engine",
    "chatx.Connection.cut",
    "chatx.Connection.end",
    "chatx.Message.target",
    "chatx.Subscription.cut",
    "chatx.Subscription.end",
    "chatx.client.Room.tell",
    "chatx.client.Room.wake",
    "chatx.adapters.outbox.NOTIFICATION_STATES",
    "chatx.adapters.outbox.check_outbox",
    "chatx.adapters.outbox.has_outbox",
    "chatx.adapters.outbox.keeps_some",
    "chatx.adapters.room_log.check_log",
    "chatx.adapters.room_log.is_log",
    "chatx.adapters.room_log.misplaced",
    "chatx.gateway.NativeServer.answer",
    "chatx.gateway.NativeServer.exchange",
    "chatx.gateway.NativeServer.greet",
    "chatx.gateway.NativeServer.is_health",
    "chatx.gateway.NativeServer.is_poll",
    "chatx.gateway.NativeServer.lost",
    "chatx.gateway.NativeServer.opened",
    "chatx.gateway.NativeServer.part",
    "chatx.gateway.NativeServer.refuses",
    "chatx.gateway.NativeServer.scope_of",
    "chatx.gateway.NativeServer.speaks",
    "chatx.testing.pytest_plugin.ChatFactory",
    "chatx.testing.pytest_plugin.T",
}
"""Public by their spelling, and of use to chatx only."""


def public_names() -> dict[str, bool]:
    """Each public name, with the methods and properties of classes; whether it has a docstring."""
    names: dict[str, bool] = {}
    for package in PACKAGES:
        # `Identity` is of `chatx`, where it is documented; `chatx.gateway` has it too.
        known = {name.rpartition(".")[2] for name in names}
        names |= {f"{package}.{name}": has for name, has in _exported(package).items() if name not in known}
    exported = {name.rpartition(".")[2] for name in names}
    for module in MODULES:
        names |= {f"{module}.{name}": has for name, has in defined(module).items() if name not in exported}
    for name in SINGLE:
        module, _, short = name.rpartition(".")
        names[name] = defined(module)[short]
    things = {name: _imported(name) for name in names}
    for name, thing in things.items():
        names |= {f"{name}.{member}": has for member, has in _members(thing, list(things.values()))}
    return {name: has for name, has in names.items() if name not in INTERNAL}


@cache
def defined(module: str) -> dict[str, bool]:
    """What a module defines at its top level without an underscore; whether it has a docstring."""
    body = ast.parse(inspect.getsource(importlib.import_module(module))).body
    found = {}
    for statement, following in zip(body, [*body[1:], None], strict=True):
        match statement:
            case ast.ClassDef(name=name) | ast.FunctionDef(name=name) | ast.AsyncFunctionDef(name=name):
                found[name] = ast.get_docstring(statement) is not None
            case ast.Assign(targets=[ast.Name(id=name)]) | ast.AnnAssign(target=ast.Name(id=name)):
                # A constant's docstring is the string below it.
                found[name] = isinstance(following, ast.Expr) and isinstance(
                    getattr(following.value, "value", None), str
                )
    return {name: has for name, has in found.items() if not name.startswith("_")}


def _exported(package: str) -> dict[str, bool]:
    module = importlib.import_module(package)
    imports = {
        alias.name: node.module or ""
        for node in ast.walk(ast.parse(inspect.getsource(module)))
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    return {name: defined(imports[name])[name] for name in module.__all__}


def _imported(name: str) -> Any:
    module, _, short = name.rpartition(".")
    return getattr(importlib.import_module(module), short)


def _members(thing: Any, public: list[Any]) -> Iterator[tuple[str, bool]]:
    if not inspect.isclass(thing):
        return
    for kind in thing.__mro__:
        # What a base has that is public itself is documented there.
        if kind.__module__.startswith("chatx.") and (kind is thing or kind not in public):
            for name, member in vars(kind).items():
                if not name.startswith("_") and (inspect.isroutine(member) or isinstance(member, property)):
                    yield name, bool(inspect.getdoc(member))
