"""What tests of applications built on chatx share with chatx's own tests."""

from chatx.testing.client import ChatClient
from chatx.testing.contracts import check_auth, check_moderation, check_notifier, check_persistence
from chatx.testing.loop import VirtualLoop, run_virtual

__all__ = [
    "ChatClient",
    "VirtualLoop",
    "check_auth",
    "check_moderation",
    "check_notifier",
    "check_persistence",
    "run_virtual",
]
