"""What is said where a part of chatx is asked for whose extra is not installed."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from chatx.errors import ConfigError


@contextmanager
def needs(extra: str, what: str) -> Iterator[None]:
    """Import within it what an extra brings.

    Args:
        extra: Its name, such as `gateway`.
        what: What needs it, for the error, such as `chat.asgi()`.

    Raises:
        ConfigError: A distribution is missing; it names the extra, and how to install it.
    """
    try:
        yield
    except ModuleNotFoundError as error:
        if error.name is None or error.name.partition(".")[0] == "chatx":
            raise  # a fault of ours, which no installation mends
        raise ConfigError(
            f"{what} needs {error.name}, which is not installed; install the extra: "
            f"pip install 'chatx-engine[{extra}]'."
        ) from error
