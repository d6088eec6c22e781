"""Who may come in to a NATS server, and what they may do there: credentials, TLS, permissions of subjects."""

from __future__ import annotations

import asyncio
import base64
import json
import logging
import secrets
from pathlib import Path

import nkeys
import pytest
import trustme

from chatx import ConfigError
from chatx.cluster.backplane import BackplaneAway
from chatx.cluster.nats import NatsBackplane
from chatx.cluster.nats_options import NatsOptions
from tests.cluster.links import WITHIN_S, hears, new_boot, until
from tests.nats import NatsServer


async def echo(payload: bytes) -> bytes:
    return payload


async def gets_in(options: NatsOptions) -> None:
    """Look whether a node gets in, hears itself and is answered."""
    link = NatsBackplane(new_boot(), options)
    await link.connect(WITHIN_S)
    try:
        heard: list[bytes] = []
        await link.subscribe("live.1.proom", heard.append)
        await link.serve(echo)
        await hears(link, "live.1.proom", heard)
        assert await link.request(link.boot, b"x", WITHIN_S) == b"x"
    finally:
        await link.close()


async def stays_out(options: NatsOptions, within_s: float = 1.0) -> str:
    """Return why a node does not get in, as it is known after so many seconds."""
    with pytest.raises(BackplaneAway) as caught:
        await NatsBackplane(new_boot(), options).connect(within_s)
    return str(caught.value)


def restart(server: NatsServer, *lines: str) -> None:
    server.stop()
    server.configure(*lines)
    server.start()


@pytest.mark.process
async def test_a_user_in_the_url_or_a_token_gets_in(current_nats: NatsServer) -> None:
    url = f"nats://{current_nats.user}:{current_nats.password}@127.0.0.1:{current_nats.port}"
    await gets_in(NatsOptions(servers=(url,)))
    restart(current_nats, "authorization { token: s3cret }")
    await gets_in(NatsOptions(servers=(current_nats.url,), token="s3cret"))
    assert "Authorization" in await stays_out(NatsOptions(servers=(current_nats.url,), token="other"), 4)


@pytest.mark.process
async def test_an_nkey_gets_in(own_nats: NatsServer, tmp_path: Path) -> None:
    seed = bytes(nkeys.encode_seed(secrets.token_bytes(32), nkeys.PREFIX_BYTE_USER))
    public = nkeys.from_seed(bytearray(seed)).public_key.decode()
    file = tmp_path / "node.nk"
    file.write_bytes(seed)
    restart(own_nats, f"authorization {{ users: [ {{ nkey: {public} }} ] }}")
    await gets_in(NatsOptions(servers=(own_nats.url,), credentials=str(file)))
    file.write_bytes(bytes(nkeys.encode_seed(secrets.token_bytes(32), nkeys.PREFIX_BYTE_USER)))
    assert "look at" in await stays_out(NatsOptions(servers=(own_nats.url,), credentials=str(file)), 4)


class Key:
    """A key of NATS's own kind, and what it vouches for."""

    def __init__(self, kind: int) -> None:
        self.seed = bytes(nkeys.encode_seed(secrets.token_bytes(32), kind))
        self.public: str = nkeys.from_seed(bytearray(self.seed)).public_key.decode()

    def vouches(self, other: Key, name: str, **claims: object) -> str:
        """Return a JWT in which this one says who another is."""
        body = {"jti": secrets.token_hex(8), "iat": 0, "iss": self.public, "sub": other.public, "name": name}
        head = {"typ": "JWT", "alg": "ed25519-nkey"}
        signed = ".".join(encoded(json.dumps(part).encode()) for part in (head, {**body, "nats": claims}))
        return f"{signed}.{encoded(nkeys.from_seed(bytearray(self.seed)).sign(signed.encode()))}"


def encoded(part: bytes) -> str:
    return base64.urlsafe_b64encode(part).decode().rstrip("=")


@pytest.mark.process
async def test_a_file_of_credentials_gets_in(own_nats: NatsServer, tmp_path: Path) -> None:
    operator, account, user = (
        Key(kind) for kind in (nkeys.PREFIX_BYTE_OPERATOR, nkeys.PREFIX_BYTE_ACCOUNT, nkeys.PREFIX_BYTE_USER)
    )
    limits = dict.fromkeys(("subs", "conn", "leaf", "imports", "exports", "data", "payload"), -1) | {"wildcards": True}
    restart(
        own_nats,
        f"operator: {operator.vouches(operator, 'operator', type='operator', version=2)}",
        "resolver: MEMORY",
        f"resolver_preload: {{ {account.public}: "
        f"{operator.vouches(account, 'account', type='account', version=2, limits=limits)} }}",
    )
    file = tmp_path / "node.creds"
    options = NatsOptions(servers=(own_nats.url,), credentials=str(file))
    unlimited = {"subs": -1, "data": -1, "payload": -1}
    claims = {"pub": {"allow": ["cx.chatx.>"]}, "sub": {"allow": ["cx.chatx.>"]}, **unlimited}
    for line_end in ("\n", "\r\n"):
        lines = (
            "-----BEGIN NATS USER JWT-----",
            account.vouches(user, "node", type="user", version=2, **claims),
            "------END NATS USER JWT------",
            "",
            "************************* IMPORTANT *************************",
            "-----BEGIN USER NKEY SEED-----",
            user.seed.decode(),
            "------END USER NKEY SEED------",
            "",
        )
        file.write_bytes(line_end.join(lines).encode())
        await gets_in(options)
    stranger = Key(nkeys.PREFIX_BYTE_USER).seed.decode()
    file.write_text(file.read_text().replace(user.seed.decode(), stranger))
    refused = await stays_out(options)
    assert "look at the user in cluster_url, or at cluster_credentials" in refused
    assert stranger not in refused


@pytest.mark.parametrize(
    "holds, said",
    [
        (None, "cannot be read: .*No such file"),
        ("", "holds no NATS credentials"),
        ("hidden", "holds no NATS credentials"),
        ("SUAhidden", "holds no NATS credentials"),
        ("-----BEGIN NATS USER JWT-----\nhidden", "holds no NATS credentials"),
        ("-----BEGIN NATS USER JWT-----\nhidden\n------END NATS USER JWT------", "holds no NATS credentials"),
        ("\0" * 100_000, "holds no NATS credentials"),
    ],
    ids=["none", "empty", "a word", "no seed", "cut off", "no seed behind", "zeros"],
)
def test_a_file_that_holds_no_credentials_is_refused(holds: str | None, said: str, tmp_path: Path) -> None:
    file = tmp_path / "node.creds"
    if holds is not None:
        file.write_text(holds)
    with pytest.raises(ConfigError, match=said) as caught:
        NatsBackplane(new_boot(), NatsOptions(servers=("nats://host",), credentials=str(file)))
    assert "hidden" not in str(caught.value)
    assert str(file) in str(caught.value)


async def test_nothing_is_said_in_clear_where_tls_is_asked_for() -> None:
    said = asyncio.get_running_loop().create_future()

    async def strip(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Do as somebody in between does, who takes out what asks for TLS."""
        told = {"server_id": "x", "version": "2.10.0", "max_payload": 1_048_576, "auth_required": True}
        writer.write(f"INFO {json.dumps(told)}\r\n".encode())
        if not said.done():
            said.set_result(await reader.read(4096))
        writer.close()

    serving = await asyncio.start_server(strip, "127.0.0.1", 0)
    async with serving:
        port = serving.sockets[0].getsockname()[1]
        options = NatsOptions(servers=(f"tls://127.0.0.1:{port}",), user="node", password="s3cret")
        refused = await stays_out(options)
        assert "it does not speak TLS, which tls:// or a TLS file asks for" in refused
        assert await asyncio.wait_for(said, WITHIN_S) == b""


@pytest.mark.process
async def test_tls_is_spoken_and_both_ends_are_checked(own_nats: NatsServer, tmp_path: Path) -> None:
    authority, stranger = trustme.CA(), trustme.CA()
    own, node = authority.issue_cert("127.0.0.1", "localhost"), authority.issue_cert("node")
    for name, blob in {
        "ca": authority.cert_pem,
        "stranger": stranger.cert_pem,
        "server": own.private_key_and_cert_chain_pem,
        "node": node.private_key_and_cert_chain_pem,
    }.items():
        blob.write_to_path(tmp_path / f"{name}.pem")
    pem = {each: str(tmp_path / f"{each}.pem") for each in ("ca", "stranger", "server", "node")}
    restart(
        own_nats,
        f"tls {{ cert_file: {pem['server']}, key_file: {pem['server']}, ca_file: {pem['ca']}, verify: true }}",
    )
    servers = (own_nats.url.replace("nats:", "tls:"),)
    node_files = {"tls_certificate": pem["node"], "tls_key": pem["node"]}
    await gets_in(NatsOptions(servers=servers, tls_ca=pem["ca"], **node_files))
    assert "certificate" in await stays_out(NatsOptions(servers=servers, tls_ca=pem["stranger"], **node_files), 4)
    await stays_out(NatsOptions(servers=servers, tls_ca=pem["ca"]))


@pytest.mark.process
async def test_the_subjects_of_one_cluster_are_all_that_a_node_needs(
    own_nats: NatsServer, caplog: pytest.LogCaptureFixture
) -> None:
    may = '{ publish: ["cx.test.>"], subscribe: ["cx.test.hb", "cx.test.live.>", "cx.test.n.*.rpc", "cx.test.in.>"] }'
    restart(
        own_nats,
        f"authorization {{ users: [ {{ user: {own_nats.user}, password: {own_nats.password},",
        f"permissions: {may} }} ] }}",
    )
    await gets_in(own_nats.options())
    # What the server refuses to be subscribed is no link, rather than one that is deaf and seems well.
    link = NatsBackplane(new_boot(), own_nats.options())
    await link.connect(WITHIN_S)
    subscribed = await link.subscribe("secret", print)
    await until(lambda: link.state == "away")
    with pytest.raises(BackplaneAway, match="permissions violation for subscription"):
        link.publish("hb", b"")
    subscribed.end()
    await until(lambda: link.state == "connected")
    await link.close()
    other = NatsBackplane(
        new_boot(),
        NatsOptions(servers=(own_nats.url,), user=own_nats.user, password=own_nats.password, cluster="other"),
    )
    await other.connect(WITHIN_S)
    with caplog.at_level(logging.ERROR, "chatx"):
        other.publish("hb", b"lost")
        other.publish("hb", b"lost")
        await until(lambda: "does not let this node publish" in caplog.text)
    assert other.state == "connected"
    await other.close()


@pytest.mark.parametrize(
    "wrong, said",
    [
        ({"servers": ()}, "at least one URL"),
        ({"servers": ("http://user:secret@host",)}, "http://host is no NATS server"),
        ({"servers": ("nats://",)}, "no NATS server"),
        ({"servers": ("nats://host:99999",)}, "no NATS server"),
        ({"cluster": "a.b"}, "no cluster's name"),
        ({"cluster": ""}, "no cluster's name"),
        ({"user": "u"}, "belong together"),
        ({"user": "u", "password": "p", "token": "t"}, "give one of them"),
        ({"tls_key": "k"}, "belong together"),
        ({"tls_ca": "no/such/file"}, "no/such/file"),
    ],
)
def test_options_that_make_no_sense_are_refused(wrong: dict[str, object], said: str) -> None:
    with pytest.raises(ConfigError, match=said) as caught:
        NatsBackplane(new_boot(), NatsOptions(**{"servers": ("nats://host",), **wrong}))  # type: ignore[arg-type]
    assert "secret" not in str(caught.value)


def test_options_show_no_secret() -> None:
    secret = base64.b32encode(secrets.token_bytes(10)).decode()
    options = NatsOptions(servers=(f"nats://user:{secret}@host",), user="u", password=secret, token=secret)
    assert secret not in repr(options) + str(options)
