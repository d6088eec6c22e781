"""What chatx relies on in an adapter, as checks to run on your own.

    async def test_my_persistence_keeps_the_contract():
        await check_persistence(MyPersistence)

Each raises `AssertionError` with what was wrong, what was expected and what to do. The adapter is called the way the
engine calls it: through the same boundary, plain persistence and notifier methods in threads, async ones within a
timeout. Run them on a real loop; on virtual time a timeout comes at once where the adapter waits for a socket.
"""

from chatx.testing.contracts.answering import check_auth, check_moderation, check_notifier
from chatx.testing.contracts.persistence import check_persistence
from chatx.testing.contracts.room_log import check_room_log
from chatx.testing.contracts.texts import CONTENTS, USER_IDS

__all__ = [
    "CONTENTS",
    "USER_IDS",
    "check_auth",
    "check_moderation",
    "check_notifier",
    "check_persistence",
    "check_room_log",
]
