"""What the options and variables of `chatx serve` come to, or all that is wrong with them."""

from __future__ import annotations

import argparse
import os
from collections.abc import Mapping
from typing import NamedTuple

from chatx.chat import Chat
from chatx.cli.command import configuration
from chatx.cli.identity import admin_token, identity_source
from chatx.cli.tls import Certificate, certificate
from chatx.errors import Problems
from chatx.gateway.entry.forwarded import Proxies
from chatx.gateway.entry.origins import origins_of
from chatx.gateway.native.server import NativeServer
from chatx.gateway.operations.app import HEALTH
from chatx.gateway.wire.bounds import IDLE_TIMEOUT_S


class Served(NamedTuple):
    """What is served.

    Attributes:
        chat: The chat, which does not run yet.
        server: Its server, which does not listen yet.
        operator: The token of operators; empty where there is none.
        tls: The certificate, or None.
    """

    chat: Chat
    server: NativeServer
    operator: str
    tls: Certificate | None


def served(options: argparse.Namespace, variables: Mapping[str, str]) -> Served:
    """Return what is to be served.

    Args:
        options: Those of the command.
        variables: What takes the place of variables of the environment, by name.

    Raises:
        ConfigError: Something is wrong with them: all of it in one error.
    """
    problems = Problems()
    with problems.gathered():
        authenticate = identity_source(os.environ.get("CHATX_SECRET", ""), insecure=options.insecure_user_param)
    with problems.gathered():
        operator = admin_token(os.environ.get("CHATX_ADMIN_TOKEN", ""))
    with problems.gathered():
        tls = certificate(options.tls_cert, options.tls_key)
    with problems.gathered():
        config = configuration(options.config, options.store, variables)
    with problems.gathered():
        # The server makes its own, and its own proxies; here both are told with the others.
        origins_of(options.origin)
    with problems.gathered():
        Proxies(options.forwarded_allow_ips)
    problems.tell()
    chat = Chat(config=config)
    server = NativeServer(
        chat,
        authenticate=authenticate,
        origins=options.origin,
        health=HEALTH,
        ssl=None if tls is None else tls.context,
        forwarded_allow_ips=tuple(options.forwarded_allow_ips),
        idle_timeout_s=IDLE_TIMEOUT_S if options.idle_timeout is None else options.idle_timeout,
    )
    return Served(chat, server, operator, tls)
