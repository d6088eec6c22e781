"""Who holds how much of what is bounded, by address: at the bound the oldest of whoever holds most gives way.

So a flood from one address pushes out its own, and never the few of somebody else. Every operation costs the same
however much is held. The bound itself is the holder's to keep; nothing is remembered of who holds nothing.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator
from typing import Generic, TypeVar

from chatx.gateway.entry.network import network_of

Item = TypeVar("Item", bound=Hashable)


class Shares(Generic[Item]):
    """Things of one kind, each of an address; the addresses of one IPv6 /64 are one, and so are those that have none.

    Among addresses that hold as many, the one that has held so many for longest is the first to give way.
    """

    __slots__ = ("_held", "_keys", "_levels", "_most")

    def __init__(self) -> None:
        self._keys: dict[Item, str] = {}
        self._held: dict[str, dict[Item, None]] = {}  # the oldest first
        # Who holds so many, from two on: where nobody holds more than one, the oldest of all things is first to go.
        self._levels: dict[int, dict[str, None]] = {}
        self._most = 0

    def __len__(self) -> int:
        """Return how many things are held."""
        return len(self._keys)

    def __contains__(self, item: Item) -> bool:
        """Return whether this thing is held."""
        return item in self._keys

    def __iter__(self) -> Iterator[Item]:
        """Iterate over the things that are held, the oldest first."""
        return iter(self._keys)

    def add(self, item: Item, address: str | None) -> None:
        """Hold one thing more; a thing that is held already keeps its age."""
        if item in self._keys:
            return
        key = _key(address)
        self._keys[item] = key
        held = self._held.get(key)
        if held is None:
            self._held[key] = {item: None}
            self._most = self._most or 1
            return
        held[item] = None
        count = len(held)
        if count > 2:
            self._leave(key, count - 1)
        level = self._levels.get(count)
        if level is None:
            level = self._levels[count] = {}
        level[key] = None
        self._most = max(self._most, count)

    def discard(self, item: Item) -> None:
        """Hold a thing no longer; harmless where it is not held."""
        key = self._keys.pop(item, None)
        if key is None:
            return
        held = self._held[key]
        del held[item]
        count = len(held)
        if not count:
            del self._held[key]
            if not self._held:
                self._most = 0
            return
        if count > 1:
            self._levels.setdefault(count, {})[key] = None
        self._leave(key, count + 1)
        if self._most > count and self._most not in self._levels:
            self._most = count

    def share(self, address: str | None) -> int:
        """Return how many things an address holds."""
        return len(self._held.get(_key(address), ()))

    @property
    def largest(self) -> int:
        """How many things the address holds that holds most."""
        return self._most

    def first_to_go(self) -> Item | None:
        """Return the oldest of the address that holds most, or None where nothing is held."""
        if self._most > 1:
            return next(iter(self._held[next(iter(self._levels[self._most]))]))
        return next(iter(self._keys), None)

    def _leave(self, key: str, count: int) -> None:
        """Count an address no longer among those that hold so many."""
        level = self._levels[count]
        del level[key]
        if not level:
            del self._levels[count]


def _key(address: str | None) -> str:
    return "" if address is None else network_of(address)
