"""What travels with a message: what is accepted comes out equal and cannot be changed, and the rest is refused."""

import copy
import enum
import json
import pickle
from collections.abc import Callable
from types import MappingProxyType
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from chatx import InvalidMessage, MessageTooLarge
from chatx.core.data import DATA_DEPTH, Data, valid_data

texts = st.text(st.characters(exclude_categories=["Cs", "Cc"]), max_size=8)
values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**53) + 1, 2**53 - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | texts,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(texts, inner, max_size=4),
    max_leaves=12,
)
objects = st.dictionaries(texts, values, max_size=5)


def valid(value: object, limit: int = 4096) -> Data:
    data = valid_data(value, limit)
    assert data is not None
    return data


@given(objects)
def test_what_is_accepted_comes_out_equal(value: dict[str, Any]) -> None:
    data = valid(value, 10**6)
    assert data == value
    assert json.loads(json.dumps(data)) == value
    assert json.loads(data.text) == value
    assert msgspec.json.decode(msgspec.json.encode(data)) == value
    assert Data.from_text(data.text) == data
    assert (Data.from_text(data.text).text, Data.from_text(data.text).weight) == (data.text, data.weight)
    assert hash(Data.from_text(data.text)) == hash(data)
    assert data.weight >= len(data.text.encode())
    again = pickle.loads(pickle.dumps(data))
    assert (again, again.text, again.weight) == (data, data.text, data.weight)
    assert type(again) is Data


@given(objects)
def test_a_deep_copy_can_be_changed_and_the_data_cannot(value: dict[str, Any]) -> None:
    data = valid(value, 10**6)
    copied = copy.deepcopy(data)
    assert (type(copied), copied) == (dict, value)
    copied["more"] = [1]
    copied["more"].append(2)
    assert data == value


CHANGES: list[Callable[[Any], object]] = [
    lambda data: data.update(a=1),
    lambda data: data.__setitem__("a", 1),
    lambda data: data.__delitem__("list"),
    lambda data: data.pop("list"),
    lambda data: data.popitem(),
    lambda data: data.clear(),
    lambda data: data.setdefault("a", 1),
    lambda data: data.__ior__({"a": 1}),
    lambda data: data["list"].append(1),
    lambda data: data["list"].extend([1]),
    lambda data: data["list"].__setitem__(0, 2),
    lambda data: data["list"].__delitem__(0),
    lambda data: data["list"].__iadd__([1]),
    lambda data: data["list"].__imul__(2),
    lambda data: data["list"].insert(0, 1),
    lambda data: data["list"].remove(1),
    lambda data: data["list"].pop(),
    lambda data: data["list"].clear(),
    lambda data: data["list"].sort(),
    lambda data: data["list"].reverse(),
    lambda data: data["list"][1].update(c=1),
]


@pytest.mark.parametrize("change", CHANGES)
def test_nothing_in_it_can_be_changed(change: Callable[[Any], object]) -> None:
    data = valid({"list": [1, {"b": 2}]})
    with pytest.raises(TypeError, match="cannot be changed"):
        change(data)
    assert data == {"list": [1, {"b": 2}]}


def test_it_does_not_change_with_what_it_was_made_of() -> None:
    inner = [1]
    data = valid({"a": inner})
    inner.append(2)
    assert data == {"a": [1]}


class Colour(enum.StrEnum):
    RED = "red"


class Number(enum.IntEnum):
    ONE = 1


def test_subclasses_of_what_json_has_become_what_json_has() -> None:
    data = valid(MappingProxyType({"colour": Colour.RED, "number": Number.ONE, "pair": (1, 2)}))
    assert data == {"colour": "red", "number": 1, "pair": [1, 2]}
    assert data.text == '{"colour":"red","number":1,"pair":[1,2]}'
    assert [type(each) for each in (data["colour"], data["number"])] == [str, int]


def nested(depth: int) -> dict[str, Any]:
    return {"a": nested(depth - 1)} if depth > 1 else {}


WRONG: dict[str, tuple[Any, str]] = {
    "a list": ([1], "data is of type list"),
    "a text": ("{}", "data is of type str"),
    "bytes": ({"a": b"x"}, "data.a is of type bytes"),
    "a set": ({"a": {1}}, "data.a is of type set"),
    "an object": ({"a": object()}, "data.a is of type object"),
    "a key": ({1: 2}, "data has the key 1"),
    "nan": ({"a": float("nan")}, "data.a is nan"),
    "infinite": ({"a": [float("-inf")]}, r"data.a\[0\] is -inf"),
    "huge": ({"a": 2**53}, "data.a is a whole number beyond"),
    "surrogate": ({"a": "x\ud83d"}, "data.a has a lone surrogate at character 1"),
    "surrogate in a key": ({"\ud83d": 1}, "a key of data has a lone surrogate"),
    "control": ({"a": {"b": ["\x00"]}}, r"data.a.b\[0\] has the control character U\+0000"),
    "deep": (nested(DATA_DEPTH + 1), f"more than {DATA_DEPTH} deep"),
}


@pytest.mark.parametrize("kind", WRONG)
def test_the_rest_is_refused_and_the_error_says_where(kind: str) -> None:
    value, said = WRONG[kind]
    with pytest.raises(InvalidMessage, match=said):
        valid_data(value, 4096)


def test_none_is_nothing_and_the_deepest_nesting_is_accepted() -> None:
    assert valid_data(None, 10) is None
    assert valid(nested(DATA_DEPTH)) == nested(DATA_DEPTH)
    data = valid({"a": 1})
    assert valid_data(data, 100) is data


@pytest.mark.parametrize("value", [{"a": "x" * 20}, {"a": [0] * 20}, {"é" * 20: 1}, {str(n): n for n in range(9)}])
def test_more_bytes_than_allowed_are_refused(value: dict[str, Any]) -> None:
    size = len(json.dumps(value, separators=(",", ":"), ensure_ascii=False).encode())
    assert valid_data(value, size) == value
    for given_ in (value, valid(value)):
        with pytest.raises(MessageTooLarge):
            valid_data(given_, size - 1)


def test_no_more_is_looked_at_than_the_limit_can_hold() -> None:
    looked: list[int] = []

    class Endless(dict[str, Any]):
        def items(self) -> Any:
            for number in range(10**9):
                looked.append(number)
                yield str(number), number

    with pytest.raises(MessageTooLarge):
        valid_data(Endless(), 100)
    assert len(looked) <= 101


class Raises(dict[str, Any]):
    def items(self) -> Any:
        raise RuntimeError("password=hunter2")


class Pairs(dict[str, Any]):
    def items(self) -> Any:
        return [("a", 1, 2)]


class Whole(int):
    def __int__(self) -> int:
        return 10**30


class Text(str):
    __slots__ = ()

    def isprintable(self) -> bool:
        return True

    def __len__(self) -> int:
        return 1


@pytest.mark.parametrize("value", [Raises(a=1), Pairs(a=1), {"a": Raises(a=1)}])
def test_a_mapping_that_cannot_be_read_is_refused_without_what_it_raised(value: Any) -> None:
    with pytest.raises(InvalidMessage, match="cannot be read") as caught:
        valid_data(value, 100)
    assert "hunter2" not in str(caught.value)


def test_a_subclass_of_a_text_or_a_number_is_taken_for_what_it_is() -> None:
    data = valid_data({"n": Whole(5), "t": Text("ok")}, 100)
    assert data == {"n": 5, "t": "ok"}
    assert data is not None
    assert type(data["n"]) is int
    assert type(data["t"]) is str
    with pytest.raises(InvalidMessage, match="control character"):
        valid_data({"t": Text("\x00")}, 100)
    with pytest.raises(MessageTooLarge):
        valid_data({"t": Text("x" * 200)}, 100)
