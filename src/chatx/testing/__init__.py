"""What tests of applications built on chatx share with chatx's own tests."""

from chatx.testing.client import ChatClient
from chatx.testing.contracts.answering import check_auth, check_moderation, check_notifier
from chatx.testing.contracts.persistence import check_persistence
from chatx.testing.contracts.room_log import check_room_log
from chatx.testing.loop import VirtualLoop, run_virtual
from chatx.testing.seeded import SeededLoop, run_seeded

__all__ = [
    "ChatClient",
    "SeededLoop",
    "VirtualLoop",
    "check_auth",
    "check_moderation",
    "check_notifier",
    "check_persistence",
    "check_room_log",
    "run_seeded",
    "run_virtual",
]
