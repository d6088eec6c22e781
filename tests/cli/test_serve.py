"""`chatx serve` as a process: who gets in, what it answers beside the socket, how it goes away."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
import resource
import signal
import ssl
import sys
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives import serialization
from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed, InvalidStatus

from chatx.cli import main
from chatx.gateway.native.exchanges import MAX_EXCHANGES
from tests.gateway.real_client import RealClient, real_client
from tests.process import Served, free_port, run, serve

SECRET = "0123456789abcdef0123456789abcdef"
ADMIN = "admin-token-of-this-test"


def ask(server: Served, path: str, token: str | None = None, method: str = "GET") -> tuple[int, str]:
    """Return the status and the body of an answer."""
    headers = {} if token is None else {"Authorization": f"Bearer {token}"}
    request = urllib.request.Request(server.url + path, headers=headers, method=method)
    try:
        with urllib.request.urlopen(request, timeout=10) as response:
            return response.status, response.read().decode()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read().decode()


async def no_longer_ready(server: Served) -> None:
    async with asyncio.timeout(10):
        while (await asyncio.to_thread(ask, server, "/readyz"))[0] != 503:
            pass


def token_of(*arguments: str, secret: str = SECRET) -> str:
    """Return what `chatx token` prints."""
    made = run("token", *arguments, CHATX_SECRET=secret)
    assert (made.returncode, made.stderr) == (0, "")
    return made.stdout.strip()


def entries(output: str) -> list[dict[str, Any]]:
    """Return what was logged as JSON."""
    return [json.loads(line) for line in output.splitlines()]


@contextlib.asynccontextmanager
async def with_token(server: Served, token: str, **options: Any) -> Any:
    """Connect as somebody with a token, as phoenix.js does."""
    offered = "base64url.bearer.phx." + base64.urlsafe_b64encode(token.encode()).decode().rstrip("=")
    url = f"ws://localhost:{server.port}/socket/websocket?vsn=2.0.0"
    async with connect(url, subprotocols=["phoenix", offered], **options) as connection:  # type: ignore[list-item]
        yield RealClient(connection)


# The life of a server


@pytest.mark.process
async def test_it_starts_with_nothing_but_the_insecure_option_and_chats() -> None:
    with serve("--insecure-user-param") as server:
        async with real_client(server.port, "ada") as ada, real_client(server.port, "bob") as bob:
            await asyncio.gather(ada.ask("room:a", "phx_join"), bob.ask("room:a", "phx_join"))
            await ada.ask("room:a", "new_message", {"content": "hello"})
            assert [each["user_id"] for each in await bob.wait_for_messages(1)] == ["ada"]
        with pytest.raises(InvalidStatus):  # without a name there is nobody
            async with connect(f"ws://localhost:{server.port}/socket/websocket?vsn=2.0.0"):
                pass
        status, output = server.stop()

    assert status == 0
    logged = entries(output)
    assert [each["level"] for each in logged if "INSECURE" in each["message"]] == ["warning"]
    assert logged[-1]["message"] == "Stopped."
    assert {each["level"] for each in logged} == {"info", "warning"}


@pytest.mark.process
def test_what_its_lines_are_about_stands_in_fields_too() -> None:
    with serve("--insecure-user-param", CHATX_ADMIN_TOKEN="s3cret") as server:
        _, output = server.stop()
    always = {"time", "level", "logger", "message"}
    fields = [{name: value for name, value in each.items() if name not in always} for each in entries(output)]
    assert {"code": "insecure_user_param"} in fields
    assert {"code": "short_admin_token"} in fields
    assert {"scheme": "http", "address": f"127.0.0.1:{server.port}"} in fields
    assert {"path": "/socket"} in fields
    assert fields[-3:] == [{"signal": "SIGTERM"}, {"sockets": 0}, {}]


@pytest.mark.process
@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM])
async def test_a_signal_drains_it(how: signal.Signals, tmp_path: Path) -> None:
    store = f"sqlite:///{tmp_path / 'chat.db'}"
    with serve("--insecure-user-param", "--store", store) as server:
        async with contextlib.AsyncExitStack() as stack:
            clients = [await stack.enter_async_context(real_client(server.port, f"user{n}")) for n in range(20)]
            await asyncio.gather(*(client.ask("room:a", "phx_join") for client in clients))
            said = [await client.ask("room:a", "new_message", {"content": "last words"}) for client in clients]
            server.process.send_signal(how)
            for client in clients:
                seen = await client.wait_for_messages(20)
                assert [each["offset"] for each in seen] == [each["offset"] for each in said]
                with pytest.raises(ConnectionClosed):
                    await client.wait_for(lambda _: False)
                assert client.connection.close_code == 1012
        status, _ = await asyncio.to_thread(server.wait)
        assert status == 0
        # What was said last was saved before it ended, and the stream goes on.
        server.restart()
        async with real_client(server.port, "late") as late:
            head = await late.ask("room:a", "phx_join", {"epoch": said[0]["epoch"], "offset": 18})
            assert (head["recovered"], head["offset"]) == (True, 20)
            assert [each["offset"] for each in await late.wait_for_messages(2)] == [19, 20]


@pytest.mark.process
async def test_while_it_drains_it_is_alive_and_not_ready_and_refuses_sockets_and_joins() -> None:
    # Somebody who neither reads nor answers a close keeps it draining; the timeout ends that.
    with serve("--insecure-user-param", CHATX_DRAIN_TIMEOUT_MS="4000") as server:
        url = f"ws://localhost:{server.port}/socket/websocket?vsn=2.0.0&user_id=stuck"
        reading, writing = await asyncio.open_connection("localhost", server.port)
        writing.write(
            f"GET {url.partition(str(server.port))[2]} HTTP/1.1\r\nHost: localhost:{server.port}\r\n"
            "Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n"
            "Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n".encode()
        )
        assert b" 101 " in await reading.readline()
        server.process.send_signal(signal.SIGTERM)
        await no_longer_ready(server)
        assert (await asyncio.to_thread(ask, server, "/healthz"))[0] == 200
        with pytest.raises(InvalidStatus) as refused:
            async with real_client(server.port, "ada"):
                pass
        assert refused.value.response.status_code == 503
        status, output = await asyncio.to_thread(server.wait)
        writing.close()

    assert status == 0
    times = {each["message"]: each["time"] for each in entries(output)}
    assert "Stopped." in times


@pytest.mark.process
async def test_a_second_signal_ends_it_at_once_and_says_so() -> None:
    with serve("--insecure-user-param", CHATX_DRAIN_TIMEOUT_MS="600000") as server:
        async with real_client(server.port, "ada", close_timeout=0.1) as ada:
            await ada.ask("room:a", "phx_join")
            ada.connection.transport.pause_reading()  # it does not answer the close
            server.process.send_signal(signal.SIGTERM)
            await no_longer_ready(server)
            status, output = await asyncio.to_thread(server.stop)

    assert status == 1
    assert "second signal" in entries(output)[-1]["message"]


@pytest.mark.process
def test_it_raises_its_limit_of_open_files() -> None:
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    limited = ["bash", "-c", 'ulimit -S -n 64; exec "$@"', "bash", sys.executable, "-m", "chatx"]
    with serve("--insecure-user-param", command=limited) as server:
        figures = ask(server, "/metrics")[1]

    (said,) = [line.split()[1] for line in figures.splitlines() if line.startswith("process_max_fds ")]
    assert float(said) == hard > 64


# Who gets in


@pytest.mark.process
async def test_a_token_says_who_it_is_and_which_rooms_and_nobody_comes_without_one() -> None:
    with serve(CHATX_SECRET=SECRET) as server:
        async with with_token(server, token_of("alice", "--rooms", "lobby", "help-*")) as alice:
            await alice.ask("room:lobby", "phx_join")
            await alice.ask("room:help-me", "phx_join")
            await alice.ask("room:lobby", "new_message", {"content": "hi"})
            assert (await alice.wait_for_messages(1))[0]["user_id"] == "alice"
            ref = await alice.push("room:board", "phx_join")
            refused = await alice.wait_for(lambda each: each.event == "phx_reply" and each.ref == ref)
            assert refused.payload["response"]["code"] == "unauthorized"
        # The header and the parameter, for clients that have no subprotocol.
        token = token_of("bob")
        url = f"ws://localhost:{server.port}/socket/websocket?vsn=2.0.0"
        async with connect(url, additional_headers={"Authorization": f"Bearer {token}"}):
            pass
        async with connect(f"{url}&token={token}"):
            pass
        forged = token_of("alice", secret="another secret of thirty-two bytes")
        for bad in (forged, token[:-1], "", "x"):
            with pytest.raises(InvalidStatus) as no:
                async with with_token(server, bad):
                    pass
            assert no.value.response.status_code == 403
        with pytest.raises(InvalidStatus):
            async with real_client(server.port, "alice"):  # the parameter of the insecure option
                pass
        status, output = server.stop()

    assert status == 0
    assert token not in output
    assert forged not in output


@pytest.mark.process
async def test_an_expired_token_ends_the_socket_and_a_new_one_in_band_keeps_it() -> None:
    with serve(CHATX_SECRET=SECRET) as server:
        # A process each: what expires is made last, and with the time that the others take on a loaded machine.
        fresh, bobs, adas = (
            token_of("ada", "--ttl", "1h"),
            token_of("bob", "--ttl", "8s"),
            token_of("ada", "--ttl", "8s"),
        )
        async with with_token(server, adas) as ada, with_token(server, bobs) as bob:
            await asyncio.gather(ada.ask("room:a", "phx_join"), bob.ask("room:a", "phx_join"))
            await ada.ask("room:a", "access_token", {"token": fresh})
            with pytest.raises(ConnectionClosed):
                await bob.wait_for(lambda _: False)
            assert bob.connection.close_code == 4001
            await ada.ask("room:a", "new_message", {"content": "still here"})


@pytest.mark.process
async def test_to_develop_a_page_that_has_its_own_name_for_this_machine_does_not_get_in() -> None:
    with serve("--insecure-user-param") as server:
        for host, status in (("evil.example", 403), ("localhost.evil.example", 403), ("127.0.0.1", 101)):
            reading, writing = await asyncio.open_connection("127.0.0.1", server.port)
            writing.write(
                f"GET /socket/websocket?vsn=2.0.0&user_id=ada HTTP/1.1\r\nHost: {host}:{server.port}\r\n"
                f"Origin: http://{host}:{server.port}\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
                "Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n".encode()
            )
            assert f" {status} ".encode() in await reading.readline()
            writing.close()


@pytest.mark.process
async def test_to_develop_nobody_comes_in_through_a_proxy() -> None:
    with serve("--insecure-user-param") as server:
        for name in ("X-Forwarded-For", "Forwarded", "X-Forwarded-Host", "X-Real-IP", "Via"):
            with pytest.raises(InvalidStatus) as refused:
                async with real_client(server.port, "ada", additional_headers={name: "for=192.0.2.1"}):
                    pass
            assert refused.value.response.status_code == 403


@pytest.mark.process
def test_white_space_around_the_admin_token_is_no_part_of_it_and_a_short_one_is_warned_of() -> None:
    with serve("--insecure-user-param", CHATX_ADMIN_TOKEN=" s3cret\n") as server:
        assert ask(server, "/rooms", "s3cret")[0] == 200
        _, output = server.stop()
    (said,) = [each["message"] for each in entries(output) if "CHATX_ADMIN_TOKEN" in each["message"]]
    assert "fewer than 16 bytes" in said
    assert "s3cret" not in output


@pytest.mark.process
async def test_pages_of_other_origins_come_in_where_they_are_named() -> None:
    with serve("--insecure-user-param", "--origin", "https://example.org") as server:
        async with real_client(server.port, "ada", origin="https://example.org"):
            pass
        with pytest.raises(InvalidStatus):
            async with real_client(server.port, "ada", origin="https://example.com"):
                pass


@pytest.mark.process
async def test_a_silent_socket_is_closed_after_the_time_that_is_given() -> None:
    with serve("--insecure-user-param", "--idle-timeout", "0.5") as server:
        async with real_client(server.port, "ada") as silent:
            await silent.connection.wait_closed()
            assert silent.connection.close_code == 1001


# Beside the socket


@pytest.mark.process
async def test_operators_see_health_figures_and_rooms() -> None:
    with serve("--insecure-user-param", CHATX_ADMIN_TOKEN=ADMIN) as server:
        assert ask(server, "/healthz") == (200, '{"status":"alive"}')
        assert ask(server, "/readyz") == (200, '{"status":"ready"}')
        async with real_client(server.port, "ada") as ada:
            for room in ("b", "a/b c", "ü"):
                await ada.ask(f"room:{room}", "phx_join")
            await ada.ask("room:b", "new_message", {"content": "hi"})
            figures = ask(server, "/metrics")[1]
            assert "\nchatx_sockets 1.0\n" in figures
            assert "\nchatx_messages_sent_total 1.0\n" in figures
            assert "\nprocess_resident_memory_bytes " in figures
            for path in ("/rooms", "/rooms/b", "/rooms/none"):
                assert ask(server, path)[0] == ask(server, path, "wrong")[0] == 401
            rooms = json.loads(ask(server, "/rooms", ADMIN)[1])
            assert [each["id"] for each in rooms["rooms"]] == ["a/b c", "b", "ü"]
            one = json.loads(ask(server, "/rooms/a%2Fb%20c", ADMIN)[1])
            assert (one["id"], one["members"], list(one["presence"])) == ("a/b c", 1, ["ada"])
            assert ask(server, "/rooms/none", ADMIN)[0] == 404
        assert ask(server, "/")[0] == 404
        assert ask(server, "/rooms", ADMIN, "POST")[0] == 405
        for path, status in (("/api", 404), ("/api/rooms/a%0Ab/messages", 400)):
            assert json.loads(ask(server, path, ADMIN)[1])["status"] == status


@pytest.mark.process
async def test_health_is_told_whatever_else_is_asked() -> None:
    with serve("--insecure-user-param") as server:
        async with contextlib.AsyncExitStack() as stack:
            for _ in range(MAX_EXCHANGES):
                _, writing = await asyncio.open_connection("localhost", server.port)
                stack.callback(writing.close)
                writing.write(b"POST /healthz HTTP/1.1\r\nHost: localhost\r\nContent-Length: 9\r\n\r\n")
            for path in ("/metrics", "/healthz"):
                assert (await asyncio.to_thread(ask, server, path))[0] == 200
            assert (await asyncio.to_thread(ask, server, "/readyz"))[0] == 200


@pytest.mark.process
def test_without_an_admin_token_the_rooms_are_shut() -> None:
    with serve("--insecure-user-param") as server:
        for token in (None, "", "x"):
            status, body = ask(server, "/rooms", token)
            assert status == 403
            assert "CHATX_ADMIN_TOKEN" in body


@pytest.mark.process
async def test_adapters_of_the_configuration_are_found_in_the_current_folder(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(ADAPTERS)
    (tmp_path / "chatx.toml").write_text('[chatx]\nauth = "mine:Auth"\nmoderation = "mine:Moderation"\n')
    script = Path(sys.executable).parent / "chatx"
    with serve("--insecure-user-param", "--config", "chatx.toml", cwd=tmp_path, command=[str(script)]) as server:
        async with real_client(server.port, "ada") as ada:
            await ada.ask("room:open", "phx_join")
            for topic, event, payload, code in (
                ("room:shut", "phx_join", {}, "unauthorized"),
                ("room:open", "new_message", {"content": "spam"}, "blocked"),
            ):
                ref = await ada.push(topic, event, payload)
                reply = await ada.wait_for(lambda each: each.event == "phx_reply" and each.ref == ref)  # noqa: B023
                assert reply.payload["response"]["code"] == code


@pytest.mark.process
async def test_files_of_the_current_folder_do_not_take_the_place_of_modules_that_are_installed(tmp_path: Path) -> None:
    for name in ("resource", "uvloop", "jwt", "starlette"):
        (tmp_path / f"{name}.py").write_text("raise SystemExit('taken from the wrong place')")
    script = Path(sys.executable).parent / "chatx"
    with serve("--insecure-user-param", cwd=tmp_path, command=[str(script)]) as server:
        assert ask(server, "/readyz")[0] == 200


ADAPTERS = """
class Auth:
    def authorize(self, user_id, room_id, action):
        return room_id == "open"


class Moderation:
    def check(self, content):
        return content != "spam"
"""


# TLS


@pytest.mark.process
async def test_it_speaks_tls(certificate: tuple[Path, Path]) -> None:
    chain, key = certificate
    trusted = ssl.create_default_context(cafile=str(chain))
    with serve("--insecure-user-param", "--tls-cert", str(chain), "--tls-key", str(key)) as server:
        url = f"wss://localhost:{server.port}/socket/websocket?vsn=2.0.0&user_id=ada"
        origin = f"https://localhost:{server.port}"
        async with connect(url, ssl=trusted, origin=origin) as connection:  # type: ignore[arg-type]
            client = RealClient(connection)
            await client.ask("room:a", "phx_join")
            await client.ask("room:a", "new_message", {"content": "in private"})
            server.process.send_signal(signal.SIGTERM)
            with pytest.raises(ConnectionClosed):
                await client.wait_for(lambda _: False)
            assert connection.close_code == 1012
        assert (await asyncio.to_thread(server.wait))[0] == 0


# What it does not begin with


@pytest.mark.parametrize(
    "arguments, environment, status, named",
    [
        ([], {}, 2, ["CHATX_SECRET is not set", "--insecure-user-param"]),
        (
            ["--insecure-user-param", "--host", "0.0.0.0"],
            {},
            2,
            ["0.0.0.0 is not this machine's own", "--host localhost"],
        ),
        (["--insecure-user-param", "--host", "192.0.2.1"], {}, 1, ["--host 192.0.2.1"]),
        (["--insecure-user-param", "--config", "none.toml"], {}, 2, ["none.toml cannot be read"]),
        (["--insecure-user-param", "--store", "mysql://db"], {}, 2, ["no store mysql://db", "sqlite:///"]),
        (["--insecure-user-param", "--store", "sqlite://host/x"], {}, 2, ["names a host"]),
        (["--insecure-user-param", "--store", "sqlite:///"], {}, 2, ["names no file"]),
        (["--insecure-user-param", "--origin", "example.org"], {}, 2, ["'example.org'", "https://example.org"]),
        (["--insecure-user-param", "--idle-timeout", "0"], {}, 2, ["idle_timeout_s is 0.0", "over 0"]),
        (["--insecure-user-param", "--idle-timeout", "nan"], {}, 2, ["idle_timeout_s is nan", "over 0"]),
        (["--insecure-user-param", "--forwarded-allow-ips", "proxy"], {}, 2, ["forwarded_allow_ips", "proxy"]),
        (
            ["--insecure-user-param", "--tls-cert", "cert.pem"],
            {},
            2,
            ["--tls-cert and --tls-key", "--tls-key is missing"],
        ),
        (
            ["--insecure-user-param", "--tls-cert", __file__, "--tls-key", "y"],
            {},
            2,
            ["chatx: --tls-key y cannot be read"],
        ),
        (
            ["--insecure-user-param", "--tls-cert", "x", "--tls-key", __file__],
            {},
            2,
            ["chatx: --tls-cert x cannot be read"],
        ),
        (["--insecure-user-param", "--tls-cert", "x", "--tls-key", "y"], {}, 2, ["--tls-cert x", "No such file"]),
        (["--insecure-user-param"], {"CHATX_ROOM_QUEUE_LIMIT": "0"}, 2, ["room_queue_limit", "at least 1"]),
        (["--insecure-user-param"], {"CHATX_NONSENSE": "0"}, 2, ["CHATX_NONSENSE"]),
        ([], {"CHATX_SECRET": "\udcff" * 40}, 2, ["CHATX_SECRET", "UTF-8"]),
        (
            [],
            {"CHATX_SECRET": "-----BEGIN PUBLIC KEY-----\nMFkw\n-----END PUBLIC KEY-----"},
            2,
            ["CHATX_SECRET", "key"],
        ),
        (["--insecure-user-param"], {"CHATX_ADMIN_TOKEN": "\udcff" * 40}, 2, ["CHATX_ADMIN_TOKEN", "UTF-8"]),
        (
            ["--insecure-user-param", "--store", "sqlite://me:hunter2@db/x"],
            {},
            2,
            ["store sqlite://db/x", "names a host"],
        ),
        (["--insecure-user-param", "--store", "pg://me:hunter2@db/x"], {}, 2, ["no store pg://db/x", "sqlite:///"]),
    ],
)
def test_what_is_wrong_is_said_and_nothing_is_served(
    arguments: list[str],
    environment: dict[str, str],
    status: int,
    named: list[str],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    quiet_logging: None,
) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    # Should it come so far, it ends: nothing may be served.
    monkeypatch.setattr("chatx.cli.serve._serve", None)

    assert main(["serve", "--port", str(free_port()), *arguments]) == status
    printed = capsys.readouterr()
    assert printed.out == ""
    said = printed.err.splitlines()[-1]
    assert said.startswith("chatx: ")
    assert "hunter2" not in printed.err
    for each in named:
        assert each in said


def test_all_that_is_wrong_is_said_at_once(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, quiet_logging: None
) -> None:
    monkeypatch.setenv("CHATX_NONSENSE", "0")
    monkeypatch.setattr("chatx.cli.serve._serve", None)

    arguments = ["--port", "4998", "--tls-cert", "x", "--origin", "a", "https://b/c", "--forwarded-allow-ips", "proxy"]
    assert main(["serve", *arguments]) == 2
    said = [line.split()[1] for line in capsys.readouterr().err.splitlines()]
    assert said == ["CHATX_SECRET", "TLS", "CHATX_NONSENSE", "The", "The", "forwarded_allow_ips:"]


@pytest.mark.process
def test_an_encrypted_key_is_an_error_and_no_question(certificate: tuple[Path, Path]) -> None:
    chain, key = certificate
    plain = serialization.load_pem_private_key(key.read_bytes(), None)
    key.write_bytes(
        plain.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.BestAvailableEncryption(b"passphrase"),
        )
    )
    refused = run("serve", "--insecure-user-param", "--tls-cert", str(chain), "--tls-key", str(key))

    assert refused.returncode == 2
    assert "has a passphrase" in refused.stderr.splitlines()[-1]


def test_a_store_and_a_configured_persistence_are_one_too_many(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], quiet_logging: None
) -> None:
    config = tmp_path / "chatx.toml"
    config.write_text('[chatx]\npersistence = "tests.testing.stores:MemoryStore"\n')
    store = tmp_path / "chat.db"
    arguments = ["serve", "--insecure-user-param", "--port", "4997", "--config", str(config), "--store", str(store)]

    assert main(arguments) == 2
    assert "store and persistence are both given" in capsys.readouterr().err
    assert not store.exists()
