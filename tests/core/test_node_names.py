"""What clusters and nodes may be called."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from chatx.core.node_names import valid_cluster_name, valid_node_name
from chatx.errors import ConfigError


@pytest.mark.parametrize("name", ["c", "chat-prod_2", "x" * 32])
def test_cluster_name_is_one_token_of_a_subject(name: str) -> None:
    assert valid_cluster_name(name) == name


@pytest.mark.parametrize("name", ["a", "web-1", "web-1.example.com", "x" * 64, "a_b"])
def test_node_name_may_be_that_of_a_host(name: str) -> None:
    assert valid_node_name(name) == name


@pytest.mark.parametrize("name", ["", "a.b", "a b", "*", ">", "a\n", "é", "x" * 33, None, 7, b"chat"])
def test_bad_cluster_name_is_refused_with_what_is_allowed(name: object) -> None:
    with pytest.raises(ConfigError, match=r"cluster_name is .*1 to 32 ASCII letters"):
        valid_cluster_name(name)


@pytest.mark.parametrize("name", ["", ".a", "a.", "-", "a b", "a\n", "é", "x" * 65, None, 7, ["a"]])
def test_bad_node_name_is_refused_with_what_is_allowed(name: object) -> None:
    with pytest.raises(ConfigError, match=r"node_name is .*1 to 64 ASCII letters"):
        valid_node_name(name)


@given(st.text())
def test_an_accepted_cluster_name_is_safe_in_a_subject(name: str) -> None:
    try:
        valid_cluster_name(name)
    except ConfigError:
        return
    assert re.fullmatch(r"[A-Za-z0-9_-]+", name)
