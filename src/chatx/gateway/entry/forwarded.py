"""Who a client is behind proxies that are trusted to say so.

`X-Forwarded-For` and `X-Forwarded-Proto` are read, as nearly every proxy writes them, each in the forms that are seen:
with ports, brackets and quotes, and in several header fields. `Forwarded` (RFC 7239) is not: a proxy that does not know
it hands on what a client wrote there.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import lru_cache
from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network

from chatx.errors import ConfigError

_SCHEMES = {"http": "http", "https": "https", "ws": "http", "wss": "https"}

# An IPv6 address has brackets where a port follows it; without them its colons are its own.
_HOP = re.compile(r"\[(?P<six>[^\[\]]+)\](?::\d{1,5})?|(?P<four>\d+\.\d+\.\d+\.\d+)(?::\d{1,5})?|(?P<plain>[^\[\]]+)")


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
        """Return the address of the client: the last one in the chain that is not a trusted proxy's.

        What is no address, such as `unknown` or `_hidden`, ends the chain: then it is the proxy's before it.

        Args:
            peer: The address that the connection comes from; None where there is none, as on a Unix socket.
            headers: By lower-case name; the fields of one name joined by commas.
        """
        if peer is None or not self._trusts(peer):
            return peer
        for hop in reversed(headers.get("x-forwarded-for", "").split(",")):
            if not hop.strip():
                continue  # an empty element of a list is none; RFC 9110, section 5.6.1
            address = _address(hop)
            if address is None:
                break
            peer = address
            if not self._trusts(address):
                break
        return peer

    def scheme(self, peer: str | None, headers: Mapping[str, str], own: str) -> str:
        """Return `http` or `https`, as the client sees it: the first that is said, by the proxy nearest to it."""
        if peer is None or not self._trusts(peer):
            return own
        said = headers.get("x-forwarded-proto", "").split(",")
        first = next((each for each in map(_bare, said) if each), "")
        return _SCHEMES.get(first.lower(), own)

    def _trusts(self, address: str) -> bool:
        if self._all or not self._networks:
            return self._all
        parsed = _parsed(address)
        return parsed is not None and any(parsed in network for network in self._networks)


def _bare(text: str) -> str:
    return text.strip().strip('"').strip()


def _address(hop: str) -> str | None:
    """Return the address of one hop, without its port, or None where it is none."""
    found = _HOP.fullmatch(_bare(hop))
    parsed = _parsed(found["six"] or found["four"] or found["plain"]) if found is not None else None
    return str(parsed) if parsed is not None else None


@lru_cache(maxsize=4096)  # peers and proxies are the same again and again
def _parsed(text: str) -> IPv4Address | IPv6Address | None:
    try:
        parsed = ip_address(text.partition("%")[0])  # a zone means something on its own machine only
    except ValueError:
        return None
    if isinstance(parsed, IPv6Address) and parsed.ipv4_mapped is not None:
        return parsed.ipv4_mapped  # as a socket tells it that listens for both versions
    return parsed
