"""The scan for machine paths and registry hosts; inputs are spelt in halves, so that it skips this file."""

import pytest

from tools.check_tree import findings


@pytest.mark.parametrize(
    "text",
    [
        "cd /wo" + "rk/main",
        "`/ro" + "ot/.cache`",
        "url = https://py" + "pi.org/simple",
        "/ho" + "me/alice/chatx",
    ],
)
def test_a_machine_path_or_a_registry_host_is_found_with_its_line(text: str) -> None:
    assert [line for line, _, _ in findings(f"fine\n{text}\n")] == [2]


@pytest.mark.parametrize("text", ["src/work/x", "https://example.org/tmp/x", "~/work/x", "/socket/websocket"])
def test_a_path_that_is_no_machines_own_is_left_alone(text: str) -> None:
    assert findings(text) == []
