"""The topics of rooms: `room:<room_id>`."""

from __future__ import annotations

from typing import Final

PREFIX: Final = "room:"
"""What the topic of a room begins with."""

# As in Phoenix's binary frames, whose lengths are one byte. No valid room id is lost: those have up to 128.
MAX_TOPIC_LENGTH: Final = 255


def room_topic(room_id: str) -> str:
    """Return the topic of a room."""
    return PREFIX + room_id


def room_id_of(topic: str) -> str | None:
    """Return the id of the room whose topic this is, not yet validated, or None where it is no room's."""
    if len(topic) > MAX_TOPIC_LENGTH or not topic.startswith(PREFIX):
        return None
    return topic[len(PREFIX) :] or None
