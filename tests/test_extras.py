"""A part whose extra is missing says so; the others work."""

import subprocess
import sys

import pytest

import chatx.gateway
from chatx import Chat
from chatx.extras import needs


def without(missing: str, code: str) -> str:
    """Return what a fresh interpreter prints that cannot import a distribution."""
    program = f"import sys\nsys.modules[{missing!r}] = None\n{code}"
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


@pytest.mark.process
@pytest.mark.parametrize("missing", ["websockets", "uvicorn", "starlette", "h11", "jwt"])
def test_the_socket_under_another_server_needs_nothing_of_what_is_missing(missing: str) -> None:
    said = without(missing, "from chatx import Chat\nprint(Chat().asgi(authenticate=lambda handshake: None))")
    assert "ChatApp" in said


def test_a_module_of_ours_that_is_missing_is_a_fault_and_not_an_extra() -> None:
    with pytest.raises(ModuleNotFoundError), needs("gateway", "this"):
        import chatx.nowhere  # type: ignore[import-not-found]  # that is the point  # noqa: F401


def test_a_missing_module_that_nobody_names_is_told_as_it_is() -> None:
    with pytest.raises(ModuleNotFoundError, match="something"), needs("gateway", "this"):
        raise ModuleNotFoundError("something is not there")


def test_what_is_installed_is_handed_on() -> None:
    assert set(chatx.gateway.__all__) <= set(dir(chatx.gateway))
    for name in chatx.gateway.__all__:
        assert getattr(chatx.gateway, name) is not None
    with pytest.raises(AttributeError, match="nothing_like_it"):
        _ = chatx.gateway.nothing_like_it
    assert Chat().asgi(authenticate=lambda handshake: None) is not None
