"""The link between nodes that a chat's options ask for."""

from __future__ import annotations

from typing import Protocol
from urllib.parse import unquote, urlsplit

from chatx.cluster.backplane import Backplane
from chatx.cluster.jetstream import AsksBroker, JetStream
from chatx.cluster.nats_options import NatsOptions
from chatx.config import ChatConfig
from chatx.extras import needs


class Link(Backplane, AsksBroker, Protocol):
    """A link to the other nodes over a broker that may have a log."""


def stream_of(config: ChatConfig, link: AsksBroker) -> JetStream:
    """Return the stream in which the nodes' log is, of which it is not known whether it is there."""
    return JetStream(link, config.cluster_name, config.cluster_replicas)


def link_of(config: ChatConfig, boot: str) -> Link:
    """Return the link of one life of a node, which is not connected yet.

    Raises:
        ConfigError: The options do not fit together, a file that they name cannot be used, or the client is not
            installed.
    """
    options = options_of(config)
    options.check()
    # Only who has nodes needs a client.
    with needs("cluster", f"cluster_strategy {config.cluster_strategy!r}"):
        from chatx.cluster.nats import NatsBackplane

    return NatsBackplane(boot, options)


def options_of(config: ChatConfig) -> NatsOptions:
    """Return how NATS is reached; a user and a password are those of whichever URL has some."""
    urls = [each.strip() for each in (config.cluster_url or "").split(",") if each.strip()]
    named = (parts for parts in map(urlsplit, urls) if parts.username is not None)
    user, password = next(((parts.username, parts.password) for parts in named), (None, None))
    return NatsOptions(
        servers=tuple(_without_user(each) for each in urls),
        cluster=config.cluster_name,
        user=None if user is None or password is None else unquote(user),
        password=None if password is None else unquote(password),
        token=unquote(user) if user is not None and password is None else None,
        credentials=config.cluster_credentials,
        tls_ca=config.cluster_ca,
        tls_certificate=config.cluster_cert,
        tls_key=config.cluster_key,
    )


def _without_user(url: str) -> str:
    scheme, _, rest = url.partition("://")
    return f"{scheme}://{rest.rpartition('@')[2]}".rstrip("/")
