"""The JSON object that travels with a message: checked like content, and immutable all the way down.

It reads, compares and encodes as the plain dicts and lists that it looks like, so an application passes it on as it is;
`copy.deepcopy` makes one that can be changed.

Rules:
1. What is accepted comes out equal. So numbers that JavaScript would round are refused, and those that JSON has no word
   for.
2. Texts are held to what content is held to: well-formed Unicode, no control characters but newline, return and tab.
3. It is weighed once: by its JSON, and by what its nested objects cost in memory beyond that.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any, Final, NoReturn, Self

from msgspec import json

from chatx.errors import ChatError, InvalidMessage, MessageTooLarge

DATA_DEPTH: Final = 32
"""The deepest nesting of objects and lists, the outermost object counted."""

# 2**53 - 1 is the largest number up to which JavaScript holds every whole one.
_MOST: Final = 2**53 - 1

# Control characters (Unicode Cc) but \n, \r and \t.
_CONTROL: Final = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f]")

# What an object or a list costs beside its JSON, and each value in it, in bytes of memory.
_CONTAINER_BYTES: Final = 128
_VALUE_BYTES: Final = 48


def _immutable(self: object, *_: object, **__: object) -> NoReturn:
    raise TypeError("The data of a message cannot be changed; change a copy: copy.deepcopy(message.data).")


class DataList(list[Any]):
    """A list within `Data`."""

    __slots__ = ()

    def __hash__(self) -> int:  # type: ignore[override]  # it cannot change
        return hash(tuple(self))

    def __copy__(self) -> list[Any]:
        return list(self)

    def __deepcopy__(self, _: object) -> list[Any]:
        return [_thawed(each) for each in self]

    def __reduce__(self) -> tuple[Any, ...]:
        return DataList, (list(self),)


class Data(dict[str, Any]):
    """A JSON object that nobody can change; the ones within it are alike.

    Attributes:
        text: The outermost object as compact JSON; empty in those within it.
        weight: The bytes that it counts for against bounds in bytes; 0 in those within it.
    """

    __slots__ = ("text", "weight")

    text: str
    weight: int

    def __init__(self, pairs: Mapping[str, Any], text: str = "", weight: int = 0) -> None:
        super().__init__(pairs)
        self.text = text
        self.weight = weight

    @classmethod
    def of(cls, value: Mapping[str, Any]) -> Self:
        """Return a JSON object that needs no checking, as one that nobody can change."""
        return cls.from_text(json.encode(value).decode())

    @classmethod
    def from_text(cls, text: str) -> Self:
        """Return the object that was kept as its `text`: it was checked when it was accepted.

        Raises:
            msgspec.DecodeError: It is not JSON.
            ValueError: It is no object.
        """
        value = json.decode(text)
        if not isinstance(value, dict):
            raise ValueError(f"The data is a {type(value).__name__}, and must be a JSON object.")
        counts = [0, 0]
        return cls({key: _kept(each, counts) for key, each in value.items()}, text, _weight(text, *counts))

    def __hash__(self) -> int:  # type: ignore[override]  # it cannot change
        return hash(frozenset(self.items()))

    def __copy__(self) -> dict[str, Any]:
        return dict(self)

    def __deepcopy__(self, _: object) -> dict[str, Any]:
        return {key: _thawed(each) for key, each in self.items()}

    def __reduce__(self) -> tuple[Any, ...]:
        return Data, (dict(self), self.text, self.weight)


for _name in ("append", "extend", "insert", "remove", "pop", "clear", "sort", "reverse"):
    setattr(DataList, _name, _immutable)
for _name in ("__setitem__", "__delitem__", "__iadd__", "__imul__"):
    setattr(DataList, _name, _immutable)
for _name in ("__setitem__", "__delitem__", "__ior__", "clear", "pop", "popitem", "setdefault", "update"):
    setattr(Data, _name, _immutable)


def valid_data(value: object, limit: int) -> Data | None:
    """Return what travels with a message as what nobody can change, or refuse it.

    Args:
        value: A mapping that is a JSON object, or None.
        limit: The most bytes of compact JSON it may have.

    Raises:
        InvalidMessage: It is no JSON object: another type, or within it one that JSON has no word for, a number that is
            not exact everywhere, a text that is no content, or a nesting deeper than `DATA_DEPTH`.
        MessageTooLarge: More than `limit` bytes.
    """
    if value is None:
        return None
    if type(value) is Data and value.text:
        if len(value.text.encode()) > limit:
            raise _too_large(len(value.text.encode()), limit)
        return value
    if not isinstance(value, Mapping):
        raise InvalidMessage(f"data is of type {type(value).__name__}; give a dict that is a JSON object.")
    try:
        frozen, values, containers = _frozen(value, "data", limit)
    except ChatError:
        raise
    except Exception as error:  # of a class of its own, which reads as it likes
        raise InvalidMessage(f"data cannot be read: {type(error).__name__}; give plain dicts and lists.") from error
    encoded = json.encode(frozen)
    if len(encoded) > limit:
        raise _too_large(len(encoded), limit)
    text = encoded.decode()
    # The outermost object counts for itself.
    return Data(frozen, text, _weight(text, values - 1, containers - 1))


def _kept(value: Any, counts: list[int]) -> Any:
    """Return a value that JSON was decoded to as what nobody can change; count it, and what is in it."""
    counts[0] += 1
    if isinstance(value, dict):
        counts[1] += 1
        return Data({key: _kept(each, counts) for key, each in value.items()})
    if isinstance(value, list):
        counts[1] += 1
        return DataList([_kept(each, counts) for each in value])
    return value


def _weight(text: str, values: int, containers: int) -> int:
    size = len(text) if text.isascii() else len(text.encode())
    return size + values * _VALUE_BYTES + containers * _CONTAINER_BYTES


def _too_large(size: int | str, limit: int) -> MessageTooLarge:
    return MessageTooLarge(f"data has {size} bytes of JSON, and {limit} are allowed; send less, or a link to it.")


def _frozen(value: object, path: str, limit: int) -> tuple[Any, int, int]:
    """Return a value of JSON as what nobody can change, and how many values and containers are in it.

    No more is looked at than `limit` bytes can hold; 0 is no limit.
    """
    counts = [0, 0]

    def text(value: str, path: str) -> str:
        if type(value) is not str:
            value = str.__str__(value)  # a subclass may answer otherwise than it reads
        if limit and len(value) > limit:
            raise _too_large(f"more than {len(value)}", limit)
        if not value.isprintable():
            found = _CONTROL.search(value)
            if found is not None:
                raise InvalidMessage(
                    f"{path} has the control character U+{ord(found[0]):04X} at character {found.start()}; "
                    "only newline, return and tab are allowed."
                )
            try:
                value.encode()
            except UnicodeEncodeError as error:
                raise InvalidMessage(
                    f"{path} has a lone surrogate at character {error.start}, which is not text; "
                    "send well-formed Unicode."
                ) from None
        return value

    def freeze(value: object, path: str, depth: int) -> Any:
        counts[0] += 1
        if limit and counts[0] > limit:
            raise _too_large(f"more than {limit}", limit)
        if value is None or value is True or value is False:
            return value
        if isinstance(value, str):
            return text(value, path)
        if isinstance(value, int):
            value = int.__int__(value)
            if not -_MOST <= value <= _MOST:
                raise InvalidMessage(f"{path} is a whole number beyond ±{_MOST}, which clients round; give it as text.")
            return value
        if isinstance(value, float):
            value = float.__float__(value)
            if not math.isfinite(value):
                raise InvalidMessage(f"{path} is {value}, which JSON has no word for; give a finite number, or text.")
            return value
        if not isinstance(value, (Mapping, list, tuple)):
            raise InvalidMessage(
                f"{path} is of type {type(value).__name__}; JSON has objects, lists, texts, numbers, true, false, null."
            )
        if depth >= DATA_DEPTH:
            raise InvalidMessage(f"data is nested more than {DATA_DEPTH} deep; make it flatter.")
        counts[1] += 1
        if not isinstance(value, Mapping):
            return DataList([freeze(each, f"{path}[{place}]", depth + 1) for place, each in enumerate(value)])
        pairs: dict[str, Any] = {}
        for key, each in value.items():
            if not isinstance(key, str):
                raise InvalidMessage(f"{path} has the key {key!r:.100}; the keys of JSON objects are texts.")
            name = text(key, f"a key of {path}")
            pairs[name] = freeze(each, f"{path}.{name[:50]}", depth + 1)
        return Data(pairs)

    frozen = freeze(value, path, 0)
    return frozen, counts[0], counts[1]


def _thawed(value: Any) -> Any:
    return value.__deepcopy__(None) if isinstance(value, (Data, DataList)) else value
