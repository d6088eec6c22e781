"""The wire: Phoenix Channels as a state machine without I/O, and the servers that drive it.

The public names are handed on from here, each imported when it is first asked for: a part whose extra is not installed
is in nobody's way.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from chatx.extras import needs

if TYPE_CHECKING:
    from chatx.gateway.api.access import ApiAuthenticate
    from chatx.gateway.api.app import ApiApp
    from chatx.gateway.asgi.app import ChatApp
    from chatx.gateway.entry.handshake import Answer, Authenticate, Handshake, Identity
    from chatx.gateway.entry.tokens import SignedTokens, sign
    from chatx.gateway.native.server import NativeServer
    from chatx.gateway.operations.app import HEALTH, operations_app
    from chatx.gateway.operations.metrics import Metrics, Sockets

__all__ = [
    "HEALTH",
    "Answer",
    "ApiApp",
    "ApiAuthenticate",
    "Authenticate",
    "ChatApp",
    "Handshake",
    "Identity",
    "Metrics",
    "NativeServer",
    "SignedTokens",
    "Sockets",
    "operations_app",
    "sign",
]

_HOMES = {
    "entry.handshake": ("Answer", "Authenticate", "Handshake", "Identity"),
    "entry.tokens": ("SignedTokens", "sign"),
    "api.access": ("ApiAuthenticate",),
    "api.app": ("ApiApp",),
    "asgi.app": ("ChatApp",),
    "native.server": ("NativeServer",),
    "operations.app": ("HEALTH", "operations_app"),
    "operations.metrics": ("Metrics", "Sockets"),
}


def __getattr__(name: str) -> Any:
    for home, names in _HOMES.items():
        if name in names:
            with needs("gateway", f"chatx.gateway.{name}"):
                found = globals()[name] = getattr(import_module(f"chatx.gateway.{home}"), name)
            return found
    raise AttributeError(f"module 'chatx.gateway' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
