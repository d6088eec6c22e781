"""A part whose extra is missing says so; the others work."""

import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import chatx.gateway
from chatx import Chat, ConfigError
from chatx.extras import needs

ROOT = Path(__file__).parents[1]
MODULE = re.compile(r"(?:current)?module:: (chatx[.a-z_]*)")

BLOCKER = """
import sys

class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in MISSING:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Blocker())
"""


def without(missing: str, code: str) -> str:
    """Return what a fresh interpreter prints that cannot import distributions, named with blanks between them."""
    program = f"MISSING = {missing.split()}\n{BLOCKER}\n{code}"
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=False)
    assert run.returncode == 0, run.stderr
    return run.stdout


@pytest.mark.process
@pytest.mark.parametrize(
    "missing,name", [("websockets", "NativeServer"), ("jwt", "sign"), ("prometheus_client", "Metrics")]
)
def test_a_public_name_of_the_gateway_says_which_extra_it_needs(missing: str, name: str) -> None:
    said = without(
        missing,
        f"from chatx import ConfigError\ntry:\n    from chatx.gateway import {name}\n"
        "except ConfigError as error:\n    print(error)",
    )
    assert f"chatx.gateway.{name} needs {missing}" in said
    assert "pip install 'chatx-engine[gateway]'" in said


@pytest.mark.process
def test_the_live_page_says_which_extra_it_needs() -> None:
    said = without(
        "starlette",
        "from chatx import Chat, ConfigError\ntry:\n    Chat().live('a', str, user_id='u')\nexcept ConfigError as e:\n"
        "    print(e)",
    )
    assert "chat.live() needs starlette" in said
    assert "chatx-engine[gateway]" in said


IMPORTED = """
from chatx import ConfigError
try:
    import {module}
except ConfigError as error:
    print(error)
"""


@pytest.mark.process
@pytest.mark.parametrize(
    "module, missing, extra",
    [
        ("chatx.adapters.postgres_log", "asyncpg", "postgres"),
        ("chatx.client", "websockets", "client"),
        ("chatx.cluster.nats", "nats", "cluster"),
        ("chatx.integrations.starlette", "starlette", "gateway"),
        ("chatx.testing.pytest_plugin", "pytest", "testing"),
    ],
)
def test_a_module_that_is_imported_by_its_name_says_which_extra_it_needs(module: str, missing: str, extra: str) -> None:
    said = without(missing, IMPORTED.format(module=module))
    assert said == (
        f"{module} needs {missing}, which is not installed; install the extra: pip install 'chatx-engine[{extra}]'.\n"
    )


@pytest.mark.process
@pytest.mark.parametrize("function", ["user_of", "django_authenticate"])
@pytest.mark.parametrize("missing", ["django", "asgiref"])
def test_what_is_djangos_may_be_imported_and_says_that_it_needs_django_when_it_is_called(
    function: str, missing: str
) -> None:
    said = without(
        missing,
        f"""
import asyncio
from chatx import ConfigError
from chatx.gateway import Handshake
from chatx.integrations.django import {function}
try:
    asyncio.run({function}(Handshake({{}}, {{}}, {{}}, None, (), {{}})))
except ConfigError as error:
    print(error)
""",
    )
    assert f"chatx.integrations.django needs {missing}" in said
    assert said.endswith("install it: pip install django.\n")


@pytest.mark.process
def test_every_module_that_the_reference_names_can_be_imported_or_says_what_it_needs() -> None:
    pages = Path(__file__).parents[1] / "docs" / "reference"
    modules = {found for page in pages.glob("*.rst") for found in MODULE.findall(page.read_text())}
    assert {"chatx", "chatx.integrations.starlette", "chatx.testing"} <= modules
    said = without(
        "starlette uvicorn fastapi websockets h11 jwt prometheus_client pytest django asgiref uvloop anyio",
        f"""
from importlib import import_module
from chatx import ConfigError
for module in {sorted(modules)}:
    try:
        import_module(module)
    except ConfigError as error:
        print(error)
""",
    )
    assert all("pip install 'chatx-engine[" in line for line in said.splitlines())


@pytest.mark.process
@pytest.mark.parametrize("missing", ["websockets", "uvicorn", "starlette", "h11", "jwt"])
def test_the_socket_under_another_server_needs_nothing_of_what_is_missing(missing: str) -> None:
    said = without(missing, "from chatx import Chat\nprint(Chat().asgi(authenticate=lambda handshake: None))")
    assert "ChatApp" in said


def test_a_module_of_ours_that_is_missing_is_a_fault_and_not_an_extra() -> None:
    with pytest.raises(ModuleNotFoundError), needs("gateway", "this"):
        import chatx.nowhere  # type: ignore[import-not-found]  # that is the point  # noqa: F401


def test_what_is_refused_for_another_reason_is_told_as_it_is() -> None:
    with pytest.raises(ConfigError, match=r"^no$"), needs("gateway", "this"):
        raise ConfigError("no")


def test_of_two_that_need_it_the_one_that_was_called_is_named() -> None:
    with (
        pytest.raises(ConfigError, match=r"^outer needs nowhere_at_all") as told,
        needs("gateway", "outer"),
        needs("gateway", "inner"),
    ):
        import nowhere_at_all  # type: ignore[import-not-found]  # that is the point  # noqa: F401
    assert isinstance(told.value.__cause__, ModuleNotFoundError)


def test_a_missing_module_that_nobody_names_is_told_as_it_is() -> None:
    with pytest.raises(ModuleNotFoundError, match="something"), needs("gateway", "this"):
        raise ModuleNotFoundError("something is not there")


@pytest.mark.process
def test_the_package_itself_loads_nothing_before_a_name_is_asked_for() -> None:
    said = without(
        "msgspec",
        """
import sys, chatx, chatx.cli
print(sorted(name for name in sys.modules if name.startswith("chatx")))
print(chatx.__version__)
""",
    )
    assert said == f"['chatx', 'chatx.cli']\n{chatx.__version__}\n"


def test_every_public_name_is_handed_on_and_no_other() -> None:
    everything: dict[str, object] = {}
    exec("from chatx import *", everything)
    assert set(chatx.__all__) <= set(everything)
    assert set(chatx.__all__) <= set(dir(chatx))
    with pytest.raises(AttributeError, match="'chatx' has no attribute 'nothing_like_it'"):
        _ = chatx.nothing_like_it  # type: ignore[attr-defined]  # that is the point


def test_what_is_installed_is_handed_on() -> None:
    assert set(chatx.gateway.__all__) <= set(dir(chatx.gateway))
    for name in chatx.gateway.__all__:
        assert getattr(chatx.gateway, name) is not None
    with pytest.raises(AttributeError, match="nothing_like_it"):
        _ = chatx.gateway.nothing_like_it
    assert Chat().asgi(authenticate=lambda handshake: None) is not None


def test_the_extra_all_holds_every_other_but_those_of_this_repository() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras: dict[str, list[str]] = project["optional-dependencies"]
    (held,) = extras["all"]
    named = re.fullmatch(rf"{project['name']}\[([\w,]+)\]", held)
    assert named is not None
    assert set(named[1].split(",")) == {name for name in extras if name != "all" and not name.startswith("dev")}
