"""HTML for the events of a room, safe as it is: a `render` for `Chat.live` to use, to wrap or to copy.

The class names and `data-` attributes are for your style sheet and scripts. Times are UTC, for a script to turn into
the reader's own. The first of the people has how many there are, as `data-count`.
"""

from __future__ import annotations

from datetime import UTC, datetime
from html import escape
from typing import Final

from chatx.core.message import Event, Gap, Message, PresenceState
from chatx.integrations.spans import spans

PEOPLE_LIMIT = 200
"""People shown by name; the number of the others follows."""

TINTS: Final = 8
"""How many colours tell people apart; `data-tint` is 0 to 7, and always the same for a user."""


def render(event: Event, *, me: str = "") -> str:
    """Return an event as HTML: a message as an `article`, a gap as a `div`, who is here as `li` items, others as "".

    Args:
        event: The event.
        me: The user who reads it; that user's own messages have the class `own`, and their name is hidden there.
    """
    match event:
        case Message():
            return _message(event, me)
        case Gap():
            return '<div class="divider divider-hole"><span>Some messages may be missing here</span></div>'
        case PresenceState():
            return _people(list(event.presences), me)
    return ""


def text(content: str) -> str:
    """Return text as HTML that shows it and does nothing else, between tags as well as in a quoted attribute."""
    # A parser makes a bare carriage return a newline; a reference it leaves.
    return escape(content).replace("\r", "&#13;")


def marked(content: str) -> str:
    """Return a message's content as HTML in which links are links and what stands in backticks is code.

    Only `http` and `https` are linked, to a page of its own that is told nothing of this one. Everything else is as
    `text` shows it. It is for between tags, where white space is kept (`white-space: pre-wrap`).
    """
    return "".join(_MARKED[kind](text(part)) for kind, part in spans(content))


_MARKED: Final = {
    "text": "{}".format,
    # From left to right, whatever stands around it.
    "link": '<a href="{0}" target="_blank" rel="noopener noreferrer" dir="ltr">{0}</a>'.format,
    "code": '<code dir="auto">{}</code>'.format,
}


def _message(message: Message, me: str) -> str:
    at = datetime.fromtimestamp(message.inserted_at / 1000, UTC)
    own = message.user_id == me
    return (
        f'<article class="message lead{" own" if own else ""}" data-message-id="{text(message.id)}"'
        f' data-user-id="{text(message.user_id)}">'
        f"{_avatar(message.user_id)}"
        f'<header class="message-head">'
        f'<bdi class="message-author" data-tint="{_tint(message.user_id)}"{" hidden" if own else ""}>'
        f"{text(message.user_id)}</bdi>"
        f"{_you(own)} "
        f'<time class="message-time" datetime="{at:%Y-%m-%dT%H:%M:%S}Z">{at:%Y-%m-%d %H:%M} UTC</time>'
        f"</header>"
        f'<p class="message-text" dir="auto">{marked(message.content)}</p>'
        f"</article>"
    )


def _people(names: list[str], me: str) -> str:
    # The reader first, then by name.
    names.sort(key=lambda name: (name != me, name.casefold(), name))
    # The script of the live page reads it there, whatever part of them is shown.
    count = f' data-count="{len(names)}"'
    items = [
        f'<li class="person"{"" if place else count} data-user-id="{text(name)}">'
        f'{_avatar(name)}<bdi class="person-name">{text(name)}</bdi>{_you(name == me)}</li>'
        for place, name in enumerate(names[:PEOPLE_LIMIT])
    ]
    others = len(names) - PEOPLE_LIMIT
    if others > 0:
        items.append(f'<li class="people-rest">and {others} other{"s" if others > 1 else ""}</li>')
    # Never an empty text: nobody is here, and the page shall show so.
    return "".join(items) or f'<li class="people-rest"{count}>Nobody is here</li>'


def _avatar(name: str) -> str:
    return f'<span class="avatar" aria-hidden="true" data-tint="{_tint(name)}">{text(name[:1].upper())}</span>'


def _you(own: bool) -> str:
    return '<span class="message-you">you</span>' if own else ""


def _tint(name: str) -> int:
    value = 7
    for character in name:
        value = (value * 31 + ord(character)) % 65_521
    return value % TINTS
