"""How many sockets may be open, and opening: of one user, of one address, and handshakes at a time.

Rules:
1. Each handshake holds one `Place` from its first byte to the end of its socket; `Place.end` gives back all of it,
   once, however the socket ended. What is counted is forgotten at zero.
2. At a bound `Full` is raised, before anything else is asked or made.
3. At the bound of one user sockets that do not answer give way, see `Newcomers`: a phone that lost its network does not
   lock its user out. Nothing that is alive is ended for a newcomer.
4. At the bound of handshakes under way the oldest of the address that has most of them gives way to a newcomer whose
   address has fewer, or a slow `authenticate` and one address would shut everybody out.
5. A shell answers `Full` by refusing the handshake, with its `status` where it can, and never by opening the socket and
   closing it: an open socket sets the backoff of phoenix.js back to its first step, and the client would be here again
   after 10 ms.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from chatx.gateway.entry.network import network_of
from chatx.gateway.entry.shares import Shares

PENDING_HANDSHAKES = 1024
"""Handshakes under way at a time: begun, and not yet answered."""

TOO_MANY_REQUESTS = 429
UNAVAILABLE = 503

COME_BACK_S = 5.0
"""Seconds after which a client that was refused for a bound is told to come back, where nothing better is known."""


class Full(Exception):
    """A bound is reached.

    Attributes:
        status: The HTTP status that says so.
        reason: Which bound, and how to raise it; for the log.
        retry_after: Seconds after which the client may come back.
    """

    def __init__(self, status: int, reason: str, *, retry_after: float = COME_BACK_S) -> None:
        super().__init__(reason)
        self.status = status
        self.reason = reason
        self.retry_after = retry_after


class Occupant(Protocol):
    """Who is on a place: the handshake under way, and then the session."""

    @property
    def last_seen(self) -> float:
        """When the client last showed itself, by a clock that is the same for all occupants."""
        ...

    def ask(self) -> Callable[[], bool] | None:
        """Ask a client that has been silent for a while to show itself; a question under way is not asked again.

        Returns:
            What tells whether the client has shown itself since; None where it counts as alive.
        """
        ...

    def give_way(self) -> None:
        """End the connection in favour of a newcomer: of the same user, or of an address that has fewer handshakes."""
        ...


class Admission:
    """Counts the sockets of one gateway.

    Args:
        per_user: Open sockets of one user, at most; 0 is no bound.
        per_address: Sockets of one address, open or opening, at most; 0 is no bound. The addresses of one IPv6 /64
            count as one, since a single machine usually has all of them.
        pending: Handshakes under way, at most; at least 1.
        counted: What is counted, where it is something else than sockets; for the log.
    """

    def __init__(
        self, *, per_user: int, per_address: int, pending: int = PENDING_HANDSHAKES, counted: str = "sockets"
    ) -> None:
        self._counted = counted
        self._per_user = per_user
        self._per_address = per_address
        self._pending_limit = pending
        self._users: dict[str, tuple[Place, ...]] = {}  # the smallest there is: most have one
        self._addresses: dict[str, int] = {}
        self._pending: Shares[Place] = Shares()

    def __len__(self) -> int:
        """Return how many things are counted: handshakes under way, users, addresses."""
        return len(self._pending) + len(self._users) + len(self._addresses)

    def begin(self, address: str | None) -> Place:
        """Count a handshake and return its place; the address is None where there is none, as on a Unix socket.

        Raises:
            Full: Too many are under way and no address has more than this one would have, or too many sockets are of
                this address.
        """
        key = network_of(address) if address is not None and self._per_address else None
        if key is not None and self._addresses.get(key, 0) >= self._per_address:
            raise Full(
                TOO_MANY_REQUESTS,
                f"the address {key!r} has {self._per_address} {self._counted} already; "
                "raise max_connections_per_address if it is a proxy of many users.",
            )
        if len(self._pending) >= self._pending_limit:
            self._make_way(address)
        if key is not None:
            self._addresses[key] = self._addresses.get(key, 0) + 1
        place = Place(self, key)
        self._pending.add(place, address)
        return place

    def _make_way(self, address: str | None) -> None:
        oldest = self._pending.first_to_go()
        if oldest is None or self._pending.share(address) + 1 >= self._pending.largest:
            raise Full(
                UNAVAILABLE, f"{len(self._pending)} handshakes are under way, which is the bound; they come back."
            )
        oldest.give_way()

    def _admit(self, user_id: str, place: Place) -> None:
        if not self._per_user:
            return
        if not self.has_room(user_id):
            raise self.full(user_id)
        self._users[user_id] = (*self._users.get(user_id, ()), place)

    def has_room(self, user_id: str) -> bool:
        """Return whether one more socket of this user would be admitted."""
        return not self._per_user or len(self._users.get(user_id, ())) < self._per_user

    def full(self, user_id: str, *, retry_after: float = COME_BACK_S) -> Full:
        """Return the refusal of one more socket of this user."""
        return Full(
            TOO_MANY_REQUESTS,
            f"the user {user_id!r} has {self._per_user} {self._counted} already; "
            "raise max_connections_per_user if that is too few.",
            retry_after=retry_after,
        )

    def ask(self, user_id: str) -> dict[Place, Callable[[], bool]]:
        """Ask the user's sockets that have been silent for a while to show themselves.

        Returns:
            For each of them what tells whether it has done so since, the longest silent first.
        """
        asked: list[tuple[float, Place, Callable[[], bool]]] = []
        for place in self._users.get(user_id, ()):
            occupant = place.occupant
            answered = occupant.ask() if occupant is not None else None
            if occupant is not None and answered is not None:
                asked.append((occupant.last_seen, place, answered))
        asked.sort(key=lambda each: each[0])
        return {place: answered for _, place, answered in asked}

    def _release(self, place: Place, user_id: str | None, address: str | None) -> None:
        if user_id is None:
            self._pending.discard(place)
        elif self._per_user:
            left = tuple(each for each in self._users[user_id] if each is not place)
            if left:
                self._users[user_id] = left
            else:
                del self._users[user_id]
        if address is not None:
            _less(self._addresses, address)


class Place:
    """What one handshake, and then its socket, is counted as."""

    __slots__ = ("_address", "_admission", "_occupant", "_user_id")

    def __init__(self, admission: Admission, address: str | None) -> None:
        self._admission: Admission | None = admission
        self._address = address
        self._occupant: Occupant | None = None
        self._user_id: str | None = None

    def admit(self, user_id: str) -> None:
        """Count the place as a socket of this user's; its handshake is no longer under way.

        Raises:
            Full: The user has too many; `end` is still the caller's to call.
            RuntimeError: The place was admitted already, or has ended.
        """
        if self._admission is None or self._user_id is not None:
            raise RuntimeError("A place is admitted once, before it ends.")
        self._admission._admit(user_id, self)
        self._admission._pending.discard(self)
        self._user_id = user_id

    @property
    def ended(self) -> bool:
        """Whether the place was given back."""
        return self._admission is None

    def occupy(self, occupant: Occupant) -> None:
        """Name who is on the place until it ends, and may be asked to give way."""
        if self._admission is not None:
            self._occupant = occupant

    @property
    def occupant(self) -> Occupant | None:
        """Who is on the place; None where nobody is named yet, or the place has ended."""
        return self._occupant

    def give_way(self) -> None:
        """End the occupant, and give the place back at once, however long the connection takes to end."""
        occupant = self._occupant
        self.end()
        if occupant is not None:
            occupant.give_way()

    def end(self) -> None:
        """Give the place back; twice is harmless."""
        admission, self._admission = self._admission, None
        self._occupant = None
        if admission is not None:
            admission._release(self, self._user_id, self._address)


def _less(counts: dict[str, int], key: str) -> None:
    counts[key] -= 1
    if not counts[key]:
        del counts[key]
