"""What is said where a part of chatx is asked for and what it needs is not installed."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from chatx.errors import ConfigError


@contextmanager
def needs(extra: str, what: str) -> Iterator[None]:
    """Import within it what an extra brings.

    Args:
        extra: Its name, such as `gateway`.
        what: What needs it, for the error, such as `chat.asgi()`. Of two that are asked within one another the outer
            one is named, which is what was called.

    Raises:
        ConfigError: A distribution is missing; it names the extra, and how to install it.
    """
    with _told(what, f"install the extra: pip install 'chatx-engine[{extra}]'"):
        yield


@contextmanager
def needs_distribution(name: str, what: str) -> Iterator[None]:
    """Import within it what no extra brings, since whoever uses `what` has it; as `needs`.

    Args:
        name: What to install, such as `django`.
        what: What needs it.

    Raises:
        ConfigError: It is missing.
    """
    with _told(what, f"install it: pip install {name}"):
        yield


@contextmanager
def _told(what: str, advice: str) -> Iterator[None]:
    try:
        yield
    except (ModuleNotFoundError, ConfigError) as error:
        missing = error.__cause__ if isinstance(error, ConfigError) else error
        if not isinstance(missing, ModuleNotFoundError):
            raise
        if missing.name is None or missing.name.partition(".")[0] == "chatx":
            raise  # a fault of ours, which no installation mends
        raise ConfigError(f"{what} needs {missing.name}, which is not installed; {advice}.") from missing
