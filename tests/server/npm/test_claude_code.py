"""Claude Code's own command line, in whole sessions."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import MakeModel

from ..conftest import ANSWER, Running, Serve
from .conftest import WINDOW, Claude, asked, call, png

pytestmark = pytest.mark.npm
TOOLS = ("--tools", "Read,Write,Agent", "--allowedTools", "Read,Write,Agent")


def test_a_session_with_tools_and_three_models(
    claude: Claude, serve: Serve, scripted: MakeModel, tmp_path: Path
) -> None:
    work = tmp_path / "work"
    (work / "note.txt").write_text("Remember the milk.")
    both = call("Write", file_path=str(work / "out.txt"), content="It is written.")
    both += "\n" + call("Read", file_path=str(work / "note.txt"))
    agents = "\n".join(
        call("Agent", description=name, prompt=f"Be {name}.", subagent_type=name)
        for name in ("quick", "careful")
    )
    options: dict[str, Any] = {"context_window": WINDOW, "tools": True}
    running = serve(
        models={
            "large": scripted(both, later=[agents, "All of it is done."], **options),
            "middle": scripted("The middle one has answered.", **options),
            "small": scripted("The small one has answered.", **options),
        }
    )
    kinds = {"quick": "haiku", "careful": "sonnet"}
    session = claude(
        running,
        "opus",
        "Do it.",
        *TOOLS,
        *("--agents", json.dumps({
            name: {"description": name, "prompt": f"You are {name}.", "model": model}
            for name, model in kinds.items()
        })),
        ANTHROPIC_DEFAULT_OPUS_MODEL="large",
        ANTHROPIC_DEFAULT_SONNET_MODEL="middle",
        ANTHROPIC_DEFAULT_HAIKU_MODEL="small",
    )  # fmt: skip
    assert (work / "out.txt").read_text() == "It is written."
    results = session.told("tool_result")
    assert any("Remember the milk." in result for result in results)
    assert session.result["result"] == "All of it is done." and not session.result["is_error"]
    assert {*asked(running)} == {"large", "middle", "small"}
    notes = json.dumps(session.lines)
    assert "The middle one has answered." in notes and "The small one has answered." in notes
    # What was in the prompt of the first turn was computed once.
    usage = session.result["modelUsage"]["large"]
    assert usage["cacheReadInputTokens"] > usage["inputTokens"]


def test_a_tool_that_is_searched_for(claude: Claude, serve: Serve, scripted: MakeModel) -> None:
    search = call("ToolSearch", query="select:NotebookEdit", max_results=5)
    running = serve(
        models={"finder": scripted(search, later=["Found."], context_window=WINDOW, tools=True)}
    )
    tools = ("--tools", "ToolSearch,NotebookEdit", "--allowedTools", "ToolSearch")
    session = claude(running, "finder", "Find it.", *tools)
    assert session.result["result"] == "Found."
    assert asked(running) == ["finder"] * 2  # it was not asked again without the reference
    assert any("NotebookEdit" in result for result in session.told("tool_result"))


def test_an_image_does_not_end_a_session(
    claude: Claude, serve: Serve, scripted: MakeModel, tmp_path: Path
) -> None:
    picture = tmp_path / "work" / "red.png"
    picture.write_bytes(png())
    look = call("Read", file_path=str(picture))
    running = serve(
        models={
            "blind": scripted(look, later=["I cannot see it."], context_window=WINDOW, tools=True)
        }
    )
    session = claude(running, "blind", "Look.", "--tools", "Read", "--allowedTools", "Read")
    assert session.result["result"] == "I cannot see it." and not session.result["is_error"]
    assert asked(running) == ["blind"] * 2


def test_a_prompt_that_is_too_long_makes_it_compact(
    claude: Claude, serve: Serve, scripted: MakeModel
) -> None:
    # Each byte is a token here. The first prompt has some 14,000, and each call adds 3,700.
    calls = [call("Bash", command=f"seq {n}000 {n}740", description="Count") for n in range(1, 7)]
    summary = "<summary>\nIt was counted.\n</summary>"
    running = serve(
        models={
            "narrow": scripted(
                calls[0],
                later=[*calls[1:], summary, "I know the numbers."],
                turn=(
                    '6 if "Respond with plain text only" in messages[-1].content'
                    ' else 7 if "It was counted." in messages | map(attribute="content") | join'
                    ' else messages | selectattr("role", "equalto", "assistant") | list | length'
                ),
                context_window=33_700,
                tools=True,
            )
        }
    )
    session = claude(running, "narrow", "Count.", "--tools", "Bash", "--allowedTools", "Bash")
    assert session.result["result"] == "I know the numbers."
    assert [line for line in session.lines if line.get("subtype") == "compact_boundary"]


def test_a_fallbacks_answer_is_told_and_not_taken(
    claude: Claude, serve: Serve, scripted: MakeModel
) -> None:
    narrow = {"model": scripted("No.", context_window=4096), "fallbacks": ["paris"]}
    running = serve(
        models={
            "narrow": narrow,
            "marked": {**narrow, "on_fallback": "mark"},
            "paris": scripted(ANSWER, context_window=WINDOW),
        }
    )
    session = claude(running, "narrow", "Hi.", "--tools", "Read", CLAUDE_CODE_MAX_RETRIES="3")
    assert session.result["is_error"] and session.result["api_error_status"] == 502
    assert "narrow gave no full answer" in session.result["result"]
    # Asked as a stream, and at most once more without; `x-should-retry: false` ends it.
    assert len(asked(running)) <= 2
    marked = claude(running, "marked", "Hi.", "--tools", "Read")
    assert marked.result["result"] == ANSWER


def test_what_takes_up_the_context(claude: Claude, serve: Serve, scripted: MakeModel) -> None:
    running = serve(models={"paris": scripted(ANSWER, context_window=WINDOW, tools=True)})
    session = claude(running, "paris", "/context")
    assert not session.result["is_error"]
    counted = [event for event in running.backend.events() if event.kind == "request.started"]
    assert not counted  # counting asks no model
    assert "System prompt" in session.result["result"]


@pytest.mark.parametrize("model", ["rome", "claude-opus-5"])
def test_a_model_that_is_not_served(claude: Claude, paris: Running, model: str) -> None:
    session = claude(paris, model, "Hi.", "--tools", "Read")
    assert session.result["is_error"] and session.result["api_error_status"] == 404
