"""The link between nodes that a chat's options ask for."""

from __future__ import annotations

from urllib.parse import unquote, urlsplit

from chatx.cluster.backplane import Backplane
from chatx.cluster.nats_options import NatsOptions
from chatx.config import ChatConfig
from chatx.errors import ConfigError


def link_of(config: ChatConfig, boot: str) -> Backplane:
    """Return the link of one life of a node, which is not connected yet.

    Raises:
        ConfigError: The options do not fit together, or what it needs is not installed.
    """
    options = options_of(config)
    options.check()
    # Only who has nodes needs a client.
    from chatx.cluster.nats import NatsBackplane

    return NatsBackplane(boot, options)


def options_of(config: ChatConfig) -> NatsOptions:
    """Return how NATS is reached; a user and a password are those of the first URL that has some.

    Raises:
        ConfigError: URLs have different users.
    """
    urls = [each.strip() for each in (config.cluster_url or "").split(",") if each.strip()]
    users = {(parts.username, parts.password) for parts in map(urlsplit, urls) if parts.username is not None}
    if len(users) > 1:
        raise ConfigError("The URLs of cluster_url name different users; a node is one user on all servers.")
    user, password = next(iter(users), (None, None))
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
