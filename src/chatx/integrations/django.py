"""Who opens a socket, by the session of Django's that their browser has.

    from chatx.integrations.django import django_authenticate

    socket = chat.asgi(authenticate=django_authenticate)

Django is imported when the first socket comes, so this module may be imported before it is set up.

Rules:
1. What `django.contrib.auth.get_user` lets in is let in: the cookie, the engine and the backends are those of the
   settings, and a changed password ends the session. An inactive user is refused, whatever the backend says.
2. Nothing is written: a handshake has no response that could carry a new cookie.
3. The database is asked in a thread, the one that Django keeps for such code; its connections are let go of as they are
   around a request.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from types import SimpleNamespace
from typing import Any

from chatx.extras import needs_distribution
from chatx.gateway.entry.handshake import Handshake, Identity


def primary_key(user: Any) -> str:
    """Return a user's primary key as text: it stays when they change their name."""
    return str(user.pk)


async def django_authenticate(handshake: Handshake, *, user_id: Callable[[Any], str] = primary_key) -> Identity | None:
    """Return the identity of whoever is signed in, until their session ends, or None; an `authenticate`.

    Args:
        handshake: The handshake.
        user_id: Returns the id in the chat of one of Django's users; `functools.partial` gives another. It is called
            where the database may be asked.

    Raises:
        InvalidMessage: `user_id` returned no valid id.
        ConfigError: Django is not installed.
        Exception: What Django raises, where it is not set up or its database fails; the handshake is then refused.
    """

    def identify() -> Identity | None:
        user, expires_at = _signed_in(handshake)
        return None if user is None else Identity(user_id(user), expires_at=expires_at)

    found: Identity | None = await _asked(identify)
    return found


async def user_of(handshake: Handshake) -> Any:
    """Return the active user whose session the handshake has, or None; for an `authenticate` of your own.

    Raises:
        ConfigError: Django is not installed.
        Exception: As `django_authenticate`.
    """
    return await _asked(lambda: _signed_in(handshake)[0])


async def _asked(question: Callable[[], Any]) -> Any:
    with needs_distribution("django", "chatx.integrations.django"):
        from asgiref.sync import sync_to_async
        from django.db import close_old_connections

    def ask() -> Any:
        close_old_connections()
        try:
            return question()
        finally:
            close_old_connections()

    return await sync_to_async(ask, thread_sensitive=True)()


class _Session(dict[str, Any]):
    """What one of Django's sessions holds, to be read only.

    `get_user` writes where a session was signed with a former `SECRET_KEY`: the next request does that as well, and has
    a response for the new cookie.
    """

    def flush(self) -> None:
        """Keep the session; the next request ends it."""

    def cycle_key(self) -> None:
        """Keep the key."""


def _signed_in(handshake: Handshake) -> tuple[Any, float | None]:
    """Return the user and the end of the session in Unix time, or None and None."""
    from django.conf import settings
    from django.contrib.auth import get_user

    key = handshake.cookies.get(settings.SESSION_COOKIE_NAME)
    if not key:
        return None, None
    store = import_module(settings.SESSION_ENGINE).SessionStore(key)
    session = _Session(store.items())
    user = get_user(SimpleNamespace(session=session))
    if not user.is_authenticated or not user.is_active:
        return None, None
    return user, _end_of(store, key)


def _end_of(store: Any, key: str) -> float:
    """Return when a session ends, in Unix time: as its row says, or without a row the latest that it may end."""
    at = None
    if hasattr(store, "model"):
        at = store.model.objects.filter(session_key=key).values_list("expire_date", flat=True).first()
    return float((at or store.get_expiry_date()).timestamp())
