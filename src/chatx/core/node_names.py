"""What a cluster and a node may be called: a cluster's name is part of subjects, a node's of what people read."""

from __future__ import annotations

import re
from typing import Final

from chatx.errors import ConfigError

CLUSTER_NAME: Final = r"\A[A-Za-z0-9_-]{1,32}\Z"
"""What a cluster's name looks like: one token of a subject."""

NODE_NAME: Final = r"\A[A-Za-z0-9](?:[A-Za-z0-9._-]{0,62}[A-Za-z0-9])?\Z"
"""What a node's name looks like: a host's name fits. It is in records and logs, and never in a subject."""

BOOT_ID: Final = r"\A[0-9a-z]{16,32}\Z"
"""What the id of one life of a node looks like: one token of a subject. Later ones sort behind earlier ones."""


def valid_cluster_name(value: object) -> str:
    """Return the name of a cluster, or refuse it.

    Raises:
        ConfigError: It is not 1 to 32 of the ASCII letters and digits, `-` and `_`.
    """
    return _valid("cluster_name", value, CLUSTER_NAME, "1 to 32 ASCII letters, digits, '-' and '_'")


def valid_node_name(value: object) -> str:
    """Return the name of a node, or refuse it.

    Raises:
        ConfigError: It is not 1 to 64 of the ASCII letters and digits, `.`, `-` and `_`, with a letter or a digit at
            both ends.
    """
    expected = "1 to 64 ASCII letters, digits, '.', '-' and '_', with a letter or a digit at both ends"
    return _valid("node_name", value, NODE_NAME, expected)


def _valid(option: str, value: object, pattern: str, expected: str) -> str:
    if type(value) is not str:
        raise ConfigError(f"{option} is of type {type(value).__name__}; it must be a str of {expected}.")
    if re.search(pattern, value) is None:
        raise ConfigError(f"{option} is {value[:80]!r}; it must be {expected}.")
    return value
