"""Whoever is signed in to Django is let in: on the site that the page shows, served, and asked in process."""

from __future__ import annotations

import asyncio
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

import httpx2 as httpx
import pytest
from starlette.applications import Starlette
from starlette.routing import Mount
from starlette.testclient import TestClient
from starlette.websockets import WebSocketDisconnect
from websockets.exceptions import ConnectionClosed, InvalidStatus

from chatx import Chat, Identity
from chatx.gateway.entry.handshake import Handshake, handshake_of
from chatx.integrations.django import django_authenticate, user_of
from tests.gateway.frameworks import environment, running, write
from tests.gateway.real_client import RealClient, real_client
from tests.process import ENVIRONMENT

# On the main Python only: Django leaves the connections of threads that have ended to the collector, of which Python
# 3.13 tells, in whichever test comes next.
pytestmark = pytest.mark.slow

SETTINGS = """
ALLOWED_HOSTS = ["*"]
DATABASES = {"default": {"ENGINE": "django.db.backends.sqlite3", "NAME": "db.sqlite3"}}
INSTALLED_APPS = ["django.contrib.auth", "django.contrib.contenttypes", "django.contrib.sessions"]
LOGIN_REDIRECT_URL = "/"
MIDDLEWARE = [
    "django.contrib.sessions.middleware.SessionMiddleware",
    "django.middleware.csrf.CsrfViewMiddleware",
    "django.contrib.auth.middleware.AuthenticationMiddleware",
]
PASSWORD_HASHERS = ["django.contrib.auth.hashers.MD5PasswordHasher"]
ROOT_URLCONF = "mysite.urls"
SECRET_KEY = "of no use"
TEMPLATES = [
    {
        "BACKEND": "django.template.backends.django.DjangoTemplates",
        "OPTIONS": {
            "loaders": [
                (
                    "django.template.loaders.locmem.Loader",
                    {"registration/login.html": "<form method=post>{% csrf_token %}{{ form }}</form>"},
                )
            ]
        },
    }
]
"""
URLS = """
from django.contrib.auth.views import LoginView
from django.http import HttpResponse
from django.middleware.csrf import get_token
from django.urls import path

from mysite import views

urlpatterns = [
    path("", lambda request: HttpResponse(get_token(request))),
    path("login", LoginView.as_view()),
    path("logout", views.sign_out),
    path("rooms/<room_id>/messages", views.say),
    path("orders/<int:number>/packed", views.packed),
]
"""
USERS = "from django.contrib.auth.models import User"


def in_django(folder: Path, code: str) -> None:
    """Run code in a process of its own, in which Django is set up."""
    subprocess.run(
        [sys.executable, "-c", f"import django\ndjango.setup()\n{code}"],
        cwd=folder,
        env=environment(folder) | {"DJANGO_SETTINGS_MODULE": "mysite.settings"},
        check=True,
        timeout=50,
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    write(folder)
    (folder / "mysite" / "settings.py").write_text(SETTINGS, encoding="utf-8")
    (folder / "mysite" / "urls.py").write_text(URLS, encoding="utf-8")
    people = "\n".join(f"User.objects.create_user({name!r}, password='secret')" for name in ("ada", "bob", "eve"))
    in_django(
        folder,
        f"from django.core.management import call_command\ncall_command('migrate', verbosity=0)\n{USERS}\n{people}",
    )
    return folder


@pytest.fixture(scope="module")
def port(folder: Path) -> Iterator[int]:
    with running("uvicorn", "mysite.asgi", folder) as port:
        yield port


class Browser(httpx.AsyncClient):
    """A browser that signs in as people do, through Django's own view."""

    def __init__(self, port: int) -> None:
        super().__init__(base_url=f"http://localhost:{port}")
        self._port = port

    async def sign_in(self, name: str) -> None:
        form = (await self.get("/login")).text
        (token,) = re.findall('csrfmiddlewaretoken" value="([^"]+)"', form)
        answer = await self.post("/login", data={"username": name, "password": "secret", "csrfmiddlewaretoken": token})
        assert answer.status_code == 302, answer.text

    async def submit(self, path: str, **data: str) -> httpx.Response:
        token = (await self.get("/")).text
        return await self.post(path, data=data, headers={"X-CSRFToken": token})

    def socket(self) -> Any:
        cookie = "; ".join(f"{name}={value}" for name, value in self.cookies.items())
        return real_client(self._port, "somebody-else", additional_headers={"Cookie": cookie} if cookie else {})


async def check_refused(browser: Browser) -> None:
    with pytest.raises(InvalidStatus) as refused:
        async with browser.socket():
            pass
    assert refused.value.response.status_code == 403


async def close_code(client: RealClient) -> int | None:
    with pytest.raises(ConnectionClosed):
        await client.wait_for(lambda _: False)
    return client.connection.close_code


@pytest.mark.process
async def test_whoever_is_signed_in_chats_and_views_of_both_kinds_send(port: int) -> None:
    async with Browser(port) as ada:
        await check_refused(ada)
        assert (await ada.submit("/rooms/general/messages", content="hello")).status_code == 401
        await ada.sign_in("ada")
        async with ada.socket() as client:
            await client.ask("room:general", "phx_join")
            await client.ask("room:general", "new_message", {"content": "from the socket"})
            answers = [
                await ada.submit("/rooms/general/messages", content="from an async view"),
                await ada.submit("/orders/7/packed"),
            ]
            messages = await client.wait_for_messages(3)
        refused = await ada.submit("/rooms/general/messages", content="a" * 5_000)

    assert [(each["user_id"], each["content"]) for each in messages] == [
        ("1", "from the socket"),
        ("1", "from an async view"),
        ("shop", "Order 7 is packed."),
    ]
    assert [each.json()["id"] for each in answers] == [each["id"] for each in messages[1:]]
    assert (refused.status_code, refused.json()["code"]) == (413, "message_too_large")


@pytest.mark.process
async def test_whoever_signs_out_is_cut_off_and_the_old_cookie_is_worth_nothing(port: int) -> None:
    async with Browser(port) as bob:
        await bob.sign_in("bob")
        cookie = bob.cookies["sessionid"]
        async with bob.socket() as client:
            await client.ask("room:general", "phx_join")
            await bob.submit("/logout")
            assert await close_code(client) == 4003
        bob.cookies.set("sessionid", cookie)
        await check_refused(bob)
        bob.cookies.set("sessionid", "made-up")
        await check_refused(bob)


@pytest.mark.process
@pytest.mark.parametrize("change", ["is_active = False", "set_password('another')"])
async def test_whoever_is_inactive_or_has_another_password_is_refused(port: int, folder: Path, change: str) -> None:
    async with Browser(port) as eve:
        await eve.sign_in("eve")
        async with eve.socket() as client:
            await client.ask("room:general", "phx_join")
        change_and_back = f"{USERS}\neve = User.objects.get(username='eve')\neve.%s\neve.save()"
        await asyncio.to_thread(in_django, folder, change_and_back % change)
        await check_refused(eve)
        await asyncio.to_thread(in_django, folder, (change_and_back % "is_active = True\neve.set_password('secret')"))


@pytest.mark.process
async def test_under_daphne_the_first_socket_starts_the_chat(folder: Path) -> None:
    chat = folder / "mysite" / "chat.py"
    code = chat.read_text(encoding="utf-8")
    chat.write_text(code.replace("django_authenticate)", "django_authenticate, autostart=True)"), encoding="utf-8")
    try:
        with running("daphne", "mysite.asgi", folder) as port:
            async with Browser(port) as ada:
                await ada.sign_in("ada")
                early = await ada.submit("/rooms/general/messages", content="too early")
                assert (early.status_code, early.json()["code"]) == (503, "closed")
                async with ada.socket() as client:
                    await client.ask("room:general", "phx_join")
                    await ada.submit("/orders/7/packed")
                    (message,) = await client.wait_for_messages(1)
                    assert message["content"] == "Order 7 is packed."
    finally:
        chat.write_text(code, encoding="utf-8")


# In process


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """Django with a database that has one user; the value overrides settings."""
    import django
    from django.conf import settings

    namespace: dict[str, Any] = {}
    exec(SETTINGS, namespace)
    configured = {name: value for name, value in namespace.items() if name.isupper()}
    configured["DATABASES"]["default"]["NAME"] = str(tmp_path_factory.mktemp("django") / "db.sqlite3")
    settings.configure(**configured)
    django.setup()
    from django.contrib.auth.models import User
    from django.core.management import call_command
    from django.db import connections
    from django.test import override_settings

    call_command("migrate", verbosity=0)
    User.objects.create_user("ada", password="secret")
    yield override_settings
    connections.close_all()


def sign_in(*, seconds: int | None = None) -> str:
    """Sign ada in with a new session, which ends in so many seconds; the value is the cookie."""
    from django.conf import settings
    from django.contrib.auth import login
    from django.contrib.auth.models import User
    from django.http import HttpRequest

    request = HttpRequest()
    request.session = import_module(settings.SESSION_ENGINE).SessionStore()
    login(request, User.objects.get(username="ada"), settings.AUTHENTICATION_BACKENDS[0])
    if seconds is not None:
        request.session.set_expiry(seconds)
    request.session.save()
    return str(request.session.session_key)


def shown(cookie: str, name: str = "sessionid") -> Handshake:
    """Return the handshake of a browser with this session."""
    return handshake_of({"headers": [(b"cookie", f"{name}={cookie}".encode())]})


ENGINES = ("db", "cached_db", "cache", "signed_cookies")


@pytest.mark.parametrize("engine", ENGINES)
async def test_each_engine_says_who_it_is_and_until_when(site: Any, engine: str) -> None:
    with site(SESSION_ENGINE=f"django.contrib.sessions.backends.{engine}", SESSION_COOKIE_NAME="mine"):
        cookie = await asyncio.to_thread(sign_in, seconds=1_000)
        identity = await django_authenticate(shown(cookie, "mine"))
        assert identity is not None
        assert identity.user_id == "1"
        assert identity.expires_at == pytest.approx(time.time() + 1_000, abs=60)
        assert await django_authenticate(shown(cookie)) is None
        assert await django_authenticate(shown(cookie[:-1], "mine")) is None


async def test_the_end_is_that_of_the_session_and_not_a_new_one_of_the_same_length(site: Any) -> None:
    from django.contrib.sessions.models import Session

    with site():
        cookie = await asyncio.to_thread(sign_in)
        at = datetime.now(UTC) + timedelta(seconds=300)
        await Session.objects.filter(session_key=cookie).aupdate(expire_date=at)
        assert await django_authenticate(shown(cookie)) == Identity("1", expires_at=at.timestamp())
        await Session.objects.filter(session_key=cookie).aupdate(expire_date=at - timedelta(seconds=301))
        assert await django_authenticate(shown(cookie)) is None


async def test_another_id_of_the_user_and_the_user_alone(site: Any) -> None:
    with site():
        handshake = shown(await asyncio.to_thread(sign_in))
        named = partial(django_authenticate, user_id=lambda user: user.get_username())
        identity = await named(handshake)
        assert identity is not None
        assert identity.user_id == "ada"
        assert (await user_of(handshake)).get_username() == "ada"
        assert await user_of(handshake_of({"headers": []})) is None


async def test_an_inactive_user_is_refused_even_where_the_backend_takes_everybody(site: Any) -> None:
    from django.contrib.auth.models import User

    with site(AUTHENTICATION_BACKENDS=["django.contrib.auth.backends.AllowAllUsersModelBackend"]):
        handshake = shown(await asyncio.to_thread(sign_in))
        await User.objects.filter(username="ada").aupdate(is_active=False)
        try:
            assert await user_of(handshake) is None
        finally:
            await User.objects.filter(username="ada").aupdate(is_active=True)


async def test_a_session_of_a_former_secret_key_lets_in_and_is_left_as_it_was(site: Any) -> None:
    """Django gives it a new key at the next request, whose response takes that to the browser."""
    from django.contrib.sessions.models import Session

    with site():
        cookie = await asyncio.to_thread(sign_in)
    before = await Session.objects.aget(session_key=cookie)
    with site(SECRET_KEY="another", SECRET_KEY_FALLBACKS=["of no use"]):
        assert await user_of(shown(cookie)) is not None
    with site(SECRET_KEY="another"):
        assert await user_of(shown(cookie)) is None
    after = await Session.objects.aget(session_key=cookie)
    assert (after.session_data, after.expire_date) == (before.session_data, before.expire_date)


def test_where_django_fails_the_handshake_alone_is_refused(site: Any, caplog: pytest.LogCaptureFixture) -> None:
    chat = Chat()
    app = Starlette(routes=[Mount("/", chat.asgi(authenticate=django_authenticate))], lifespan=chat.lifespan)
    headers = {"cookie": "sessionid=anything", "origin": "http://testserver"}
    with site(SESSION_ENGINE="mysite.no_such_engine"), TestClient(app) as client:
        with pytest.raises(WebSocketDisconnect), client.websocket_connect("/websocket", headers=headers):
            pass
        assert chat.statistics().running
    assert "No module named 'mysite'" in caplog.text


def test_the_module_needs_django_when_it_is_asked_only() -> None:
    code = "import sys, chatx.integrations.django; sys.exit('django' in sys.modules or 'asgiref' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=50, env=ENVIRONMENT)
