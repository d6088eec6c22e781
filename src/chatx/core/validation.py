"""What is acceptable as content and as an id; everything else is refused before anything is allocated for it.

Content and ids are never rewritten: what is accepted comes out equal.
"""

from __future__ import annotations

import re
import unicodedata

from chatx.core.invisible import misplaced
from chatx.errors import InvalidMessage, MessageTooLarge

ID_LIMIT = 128
"""The largest id, in bytes of UTF-8."""

EPOCH_LIMIT = 128
"""The longest epoch that is taken from outside, in characters."""

# Control characters (Unicode Cc) but \n, \r and \t.
_CONTROL = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f]")


def valid_content(content: object, limit: int, *, may_be_empty: bool = False) -> str:
    """Return the content as text, or refuse it.

    Args:
        content: `str`, or UTF-8 in `bytes`.
        limit: The most bytes of UTF-8 it may have.
        may_be_empty: Whether there is data that says enough.

    Raises:
        InvalidMessage: Wrong type, empty, not UTF-8, a lone surrogate, or a control character but newline, return
            and tab.
        MessageTooLarge: More than `limit` bytes.
    """
    # Nearly every content, for the price of a few looks.
    if type(content) is str and content.isascii() and 0 < len(content) <= limit and content.isprintable():
        return content
    if isinstance(content, str):
        text = content
        if text.isascii():
            size = len(text)
        else:
            # A character is at least one byte: a huge text is refused without being encoded.
            if len(text) > limit:
                raise _too_large(f"at least {len(text)}", limit)
            try:
                size = len(text.encode())
            except UnicodeEncodeError as error:
                raise InvalidMessage(
                    f"The content has a lone surrogate at character {error.start}, which is not text; "
                    "send well-formed Unicode."
                ) from None
    elif isinstance(content, bytes):
        size = len(content)
        if size > limit:
            raise _too_large(str(size), limit)
        try:
            text = content.decode()
        except UnicodeDecodeError as error:
            raise InvalidMessage(
                f"The content is not valid UTF-8 at byte {error.start}; send text, or bytes of UTF-8."
            ) from None
    else:
        raise InvalidMessage(f"The content is of type {type(content).__name__}; send str, or bytes of UTF-8.")
    if size > limit:
        raise _too_large(str(size), limit)
    if not text and not may_be_empty:
        raise InvalidMessage("The content is empty; send at least one character, or data.")
    if not text.isprintable():
        found = _CONTROL.search(text)
        if found is not None:
            raise InvalidMessage(
                f"The content has the control character U+{ord(found[0]):04X} at character {found.start()}; "
                "only newline, return and tab are allowed."
            )
    # A subclass of str could answer differently later; what goes on is plain text.
    return text if type(text) is str else str.__str__(text)


def valid_id(value: object, name: str) -> str:
    """Return the id unchanged, or refuse it.

    Args:
        value: What was given.
        name: What to call it in the error, such as `room_id`.

    Raises:
        InvalidMessage: Not a `str`, empty, over 128 bytes of UTF-8, with a blank at an end, or with a control character
            or one that shows nothing where it stands; see `chatx.core.invisible`.
    """
    # Nearly every id, for the price of a few looks: this is asked for each message.
    if (
        type(value) is str
        and value.isascii()
        and value.isprintable()
        and 0 < len(value) <= ID_LIMIT
        and (" " not in value or value.strip() is value)
    ):
        return value
    if not isinstance(value, str):
        raise InvalidMessage(f"{name} is of type {type(value).__name__}; give str of 1 to {ID_LIMIT} bytes.")
    if not value or len(value) > ID_LIMIT:
        raise _bad_length(value, name)
    if not value.isascii():
        try:
            size = len(value.encode())
        except UnicodeEncodeError:
            raise InvalidMessage(f"{name} has a lone surrogate, which is not text; give well-formed Unicode.") from None
        if size > ID_LIMIT:
            raise _bad_length(value, name)
    found = misplaced(value)
    if found is not None:
        raise _misplaced(value, name, *found)
    return value if type(value) is str else str.__str__(value)


def valid_epoch(value: object) -> str:
    """Return an epoch unchanged, or refuse it. It is opaque, since a persistence adapter may have made it.

    Raises:
        InvalidMessage: Not a `str`, empty, over `EPOCH_LIMIT` characters, or with a lone surrogate.
    """
    if not isinstance(value, str):
        raise InvalidMessage(f"epoch is of type {type(value).__name__}; give that of a message or a join, or None.")
    if not 0 < len(value) <= EPOCH_LIMIT:
        raise InvalidMessage(
            f"epoch has {len(value)} characters, and 1 to {EPOCH_LIMIT} are allowed; give that of a message or a join."
        )
    try:
        value.encode()
    except UnicodeEncodeError:
        raise InvalidMessage(
            "epoch has a lone surrogate, which is not text; give that of a message or a join."
        ) from None
    return value


def _too_large(size: str, limit: int) -> MessageTooLarge:
    return MessageTooLarge(f"The content has {size} bytes, and the limit is {limit}; shorten it.")


def _bad_length(value: str, name: str) -> InvalidMessage:
    length = "is empty" if not value else f"has more than {ID_LIMIT} bytes"
    return InvalidMessage(f"{name} {length}; give 1 to {ID_LIMIT} bytes of UTF-8.")


def _misplaced(value: str, name: str, place: int, what: str) -> InvalidMessage:
    character = value[place]
    called = f"U+{ord(character):04X} {unicodedata.name(character, '')}".rstrip()
    where = {len(value) - 1: f"at its end, character {place}", 0: "at its beginning, character 0"}
    return InvalidMessage(f"{name} has {what} {called} {where.get(place, f'at character {place}')}; leave it out.")
