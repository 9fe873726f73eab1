"""Items of the Responses API as messages: what a reader of the conversation is shown."""

from __future__ import annotations

from typing import Any

import pytest

from rune.corpus import items
from tests.corpus.samples import diff_of, item, printed


@pytest.mark.parametrize(
    ("given", "name", "arguments"),
    [
        (item("shell_call", "a", action={"commands": ["cd src", "ls"]}), "shell", {"command": "cd src\nls"}),
        (item("local_shell_call", "a", action={"command": ["ls", "-l"]}), "shell", {"command": ["ls", "-l"]}),
        (item("shell_call", "a", action=None), "shell", {}),
        (item("custom_tool_call", "a", name="apply_patch", input="x"), "apply_patch", {"input": "x"}),
        (
            item("apply_patch_call", "a", operation=diff_of("update_file", "a.py", "@@\n-x\n+y\n", move_to="b.py")),
            "apply_patch",
            {
                "input": "*** Begin Patch\n*** Update File: a.py\n*** Move to: b.py\n@@\n-x\n+y\n*** End Patch"
            },
        ),
        (
            item("apply_patch_call", "a", operation=diff_of("delete_file", "a.py")),
            "apply_patch",
            {"input": "*** Begin Patch\n*** Delete File: a.py\n*** End Patch"},
        ),
        (item("apply_patch_call", "a", operation={"type": "rename"}), "apply_patch", {"input": ""}),
    ],
)  # fmt: skip
def test_every_call_is_one_of_a_function(given: dict[str, Any], name: str, arguments: dict[str, Any]) -> None:
    made = items.message(given)
    assert made == {"type": "function_call", "call_id": "a", "name": name, "arguments": arguments}


@pytest.mark.parametrize(
    ("output", "text"),
    [
        ([printed("one\n"), printed("two\n")], "one\ntwo"),
        ([printed("one\n", 3)], "one\nexit code 3"),
        (
            [{"stdout": "out\n", "stderr": "err\n", "outcome": {"type": "exit", "exit_code": 1}}],
            "out\nerr\nexit code 1",
        ),
        ([printed("half", kind="timeout")], "half\ntimed out"),
        ([3, {"stdout": 3}, {}], ""),
        ("as text", "as text"),
    ],
)
def test_what_a_shell_printed_is_its_answer(output: Any, text: str) -> None:
    made = items.message(item("shell_call_output", "a", output=output))
    assert made == {"type": "function_call_output", "call_id": "a", "output": text, "failed": False}


@pytest.mark.parametrize("kind", ["reasoning", "web_search_call", "compaction", "item_reference", "mcp_list_tools"])
def test_what_is_no_part_of_the_talk_is_left_out(kind: str) -> None:
    assert items.message({"type": kind, "id": "x"}) is None


@pytest.mark.parametrize("given", [{"role": "user"}, {"type": "message", "role": "user"}, {"type": ["reasoning"]}])
def test_a_message_stays_as_it_is(given: dict[str, Any]) -> None:
    assert items.message(given) is given
