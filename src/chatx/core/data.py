"""The JSON object that travels with a message: immutable, all the way down, and weighed once.

It reads, compares and encodes as the plain dicts and lists that it is made of, so an application passes it on as it is.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NoReturn, Self

import msgspec


def _immutable(self: object, *_: object, **__: object) -> NoReturn:
    raise TypeError("A message's data cannot be changed; make a copy with copy.deepcopy(...) or dict(...).")


class Data(dict[str, Any]):
    """A JSON object that nobody can change.

    Attributes:
        text: The object as compact JSON.
        weight: The bytes that it counts for against bounds in bytes.
    """

    __slots__ = ("text", "weight")

    text: str
    weight: int

    @classmethod
    def of(cls, value: Mapping[str, Any]) -> Self:
        """Return a JSON object, which was validated, as one that cannot be changed."""
        text = msgspec.json.encode(value)
        return cls.from_text(text.decode())

    @classmethod
    def from_text(cls, text: str) -> Self:
        """Return the object that was kept as compact JSON."""
        value = msgspec.json.decode(text)
        weight = len(text)
        frozen = cls()
        for key, each in value.items():
            dict.__setitem__(frozen, key, each)
        frozen.text, frozen.weight = text, weight
        return frozen

    def __hash__(self) -> int:  # type: ignore[override]
        return hash(self.text)

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self).from_text, (self.text,)
