"""Who a client is behind proxies that are trusted to say so."""

from __future__ import annotations

from collections.abc import Mapping
from ipaddress import IPv6Address, ip_address, ip_network

from chatx.errors import ConfigError


class Proxies:
    """The proxies whose `X-Forwarded-For` and `X-Forwarded-Proto` are believed.

    Args:
        allowed: Addresses and networks, such as `127.0.0.1` and `10.0.0.0/8`; `*` is all.

    Raises:
        ConfigError: One of them is no address.
    """

    def __init__(self, allowed: tuple[str, ...]) -> None:
        self._all = "*" in allowed
        try:
            self._networks = [ip_network(each, strict=False) for each in allowed if each != "*"]
        except ValueError as error:
            raise ConfigError(
                f"forwarded_allow_ips: {error}; give addresses or networks such as 10.0.0.0/8, or '*' for all."
            ) from error

    def client(self, peer: str | None, headers: Mapping[str, str]) -> str | None:
        """Return the address of the client: the last one in the chain that is not a trusted proxy's."""
        if peer is None or not self._trusts(peer):
            return peer
        for hop in reversed(headers.get("x-forwarded-for", "").split(",")):
            address = hop.strip()
            if not _is_address(address):
                break
            peer = address
            if not self._trusts(address):
                break
        return peer

    def scheme(self, peer: str | None, headers: Mapping[str, str], own: str) -> str:
        """Return `http` or `https`, as the client sees it."""
        said = headers.get("x-forwarded-proto", "").strip().lower()
        return said if said in ("http", "https") and peer is not None and self._trusts(peer) else own

    def _trusts(self, address: str) -> bool:
        if self._all:
            return True
        if not _is_address(address):
            return False
        parsed = ip_address(address)
        if isinstance(parsed, IPv6Address) and parsed.ipv4_mapped is not None:
            parsed = parsed.ipv4_mapped  # as a socket tells it that listens for both versions
        return any(parsed in network for network in self._networks)


def _is_address(text: str) -> bool:
    try:
        ip_address(text)
    except ValueError:
        return False
    return True
