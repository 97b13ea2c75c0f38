"""Codex's own command line, in whole sessions."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.conftest import MakeModel

from ..conftest import ANSWER, Running, Serve
from .conftest import WINDOW, Codex, asked, call, png

pytestmark = pytest.mark.npm


def test_a_session_with_tools(
    codex: Codex, serve: Serve, scripted: MakeModel, tmp_path: Path
) -> None:
    work = tmp_path / "work"
    (work / "note.txt").write_text("Remember the milk.")
    both = call("exec_command", cmd="echo It is written. > out.txt")
    both += "\n" + call("exec_command", cmd="cat note.txt")
    running = serve(
        models={
            "worker": scripted(
                both, later=["All of it is done."], context_window=WINDOW, tools=True
            )
        }
    )
    session = codex(running, "worker", "Do it.")
    assert (work / "out.txt").read_text() == "It is written.\n"
    assert "Remember the milk." in session.said("command_execution")
    assert session.said("agent_message") == ["All of it is done."]
    usage = session.lines[-1]["usage"]
    assert usage["cached_input_tokens"] > usage["input_tokens"] / 3


def test_thinking_comes_back(codex: Codex, serve: Serve, scripted: MakeModel) -> None:
    thought = "<think>\nI look first.\n</think>\n\n" + call("exec_command", cmd="true")
    later = "<think>\nI have looked.\n</think>\n\nIt is true."
    running = serve(
        models={
            "thinker": scripted(
                thought, later=[later], thinking=True, tools=True, context_window=WINDOW
            )
        }
    )
    session = codex(running, "thinker", "Is it?", "-c", 'model_reasoning_summary="auto"')
    assert session.said("agent_message") == ["It is true."]
    assert [text.strip() for text in session.said("reasoning")] == [
        "I look first.",
        "I have looked.",
    ]


def test_an_image_does_not_end_a_session(
    codex: Codex, serve: Serve, scripted: MakeModel, tmp_path: Path
) -> None:
    picture = tmp_path / "work" / "red.png"
    picture.write_bytes(png())
    look = call("view_image", path=str(picture))
    running = serve(
        models={
            "blind": scripted(look, later=["I cannot see it."], context_window=WINDOW, tools=True)
        }
    )
    assert codex(running, "blind", "Look.").said("agent_message") == ["I cannot see it."]


def test_a_prompt_that_is_too_long_is_told(codex: Codex, serve: Serve, scripted: MakeModel) -> None:
    running = serve(models={"narrow": scripted(ANSWER, context_window=4096, tools=True)})
    session = codex(running, "narrow", "Hi.")
    assert "ran out of room in the model's context window" in session.failure
    assert not asked(running)


def test_a_conversation_is_made_shorter(
    codex: Codex, serve: Serve, scripted: MakeModel, tmp_path: Path
) -> None:
    (tmp_path / "work" / "long.txt").write_text("All that is in it.\n" * 400)
    running = serve(
        models={
            "worker": scripted(
                call("exec_command", cmd="cat long.txt"),
                later=["The file was read.", "I know what is in it."],
                turn=(
                    '1 if "CONTEXT CHECKPOINT" in messages[-1].content'
                    ' else 2 if "The file was read." in messages[-1].content else 0'
                ),
                context_window=WINDOW,
                tools=True,
            )
        }
    )
    # Each byte is a token here; the first prompt has some 28,000.
    limits = ("-c", "model_context_window=60000", "-c", "model_auto_compact_token_limit=32000")
    session = codex(running, "worker", "Read it.", *limits)
    assert session.said("agent_message")[-1] == "I know what is in it."  # of the summary


def test_a_fallbacks_answer_is_told_and_not_asked_for_again(
    codex: Codex, serve: Serve, scripted: MakeModel
) -> None:
    narrow = {"model": scripted("No.", context_window=4096), "fallbacks": ["paris"]}
    running = serve(
        models={
            "narrow": narrow,
            "marked": {**narrow, "on_fallback": "mark"},
            "paris": scripted(ANSWER, context_window=WINDOW),
        }
    )
    session = codex(running, "narrow", "Hi.")
    assert "narrow gave no full answer" in session.failure
    assert asked(running) == ["paris"]  # once; the prompt is too long for the other
    assert codex(running, "marked", "Hi.").said("agent_message") == [ANSWER]


def test_a_model_that_is_not_served(codex: Codex, paris: Running) -> None:
    assert "there is no model 'rome' here" in codex(paris, "rome", "Hi.").failure
