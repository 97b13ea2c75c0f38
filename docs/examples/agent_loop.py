"""An agent that calls tools on a local model, and says which model gave each answer.

    python docs/examples/agent_loop.py [MODEL] [QUESTION]

It needs langchain: `pip install "langchain-mlx-guarded[agents]" "mlx-guarded-llm[grammar]"`.
"""

# ruff: noqa: T201 - a script that prints
from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from typing import Any, Literal

from langchain.agents import create_agent
from langchain.agents.middleware import (
    AgentMiddleware,
    ModelRequest,
    ModelResponse,
    wrap_model_call,
)
from langchain_core.language_models import BaseChatModel
from langchain_core.messages import BaseMessage

from langchain_mlx_guarded import ChatMLXGuarded
from langchain_mlx_guarded.middleware import GuardedModelMiddleware
from mlx_guarded_llm import Backend, taint

Handler = Callable[[ModelRequest[Any]], ModelResponse[Any]]

INHABITANTS = {"Paris": 2_100_000, "Lyon": 520_000, "Nice": 350_000}


def inhabitants(city: Literal["Paris", "Lyon", "Nice"]) -> str:
    """How many people live in a city."""
    return f"{INHABITANTS[city]:,} people live in {city}."


@wrap_model_call
def look_it_up_first(request: ModelRequest[Any], handler: Handler) -> ModelResponse[Any]:
    """A tool call first, text afterwards: small models rarely choose well for themselves.

    The forced call is held to the tool's schema, so its city is one of the three.
    """
    looked_up = any(message.type == "tool" for message in request.messages)
    return handler(request.override(tool_choice="none" if looked_up else "any"))


def ask(
    chat: ChatMLXGuarded,
    question: str,
    *,
    fallbacks: Sequence[BaseChatModel] = (),
) -> dict[str, Any]:
    """Let an agent answer a question.

    Args:
        chat: the agent's model.
        question: about the number of inhabitants of a city.
        fallbacks: models that answer when that model does not; their answers are marked.

    Returns:
        The agent's state, with "messages"; "guard" says where each answer came from.
    """
    guarded = GuardedModelMiddleware(fallbacks=fallbacks, on_fallback="mark")
    middleware: list[AgentMiddleware[Any, Any]] = [guarded, look_it_up_first]
    agent: Any = create_agent(
        chat,
        tools=[inhabitants],
        system_prompt="Answer in one short sentence, with the facts of the tools.",
        middleware=middleware,
    )
    state: dict[str, Any] = agent.invoke({"messages": [("user", question)]})
    return state


def show(messages: Sequence[BaseMessage]) -> None:
    """Print each message, which model gave it, and whether it rests on a marked one."""
    for message, step in zip(messages, taint(messages), strict=True):
        calls = getattr(message, "tool_calls", [])
        print(f"{message.type:>6}: {message.text or [(c['name'], c['args']) for c in calls]}")
        if guard := message.response_metadata.get("guard"):
            print(f"        by {guard['served_model']} in {len(guard['attempts'])} attempt(s)")
        if step:
            print(f"        not as asked: {step.own}, rests on {step.inherited}")


def main(model: str = "smollm2-135m", question: str = "How many people live in Paris?") -> None:
    """Ask, and print the conversation."""
    with Backend() as backend:
        chat = ChatMLXGuarded(model=model, backend=backend, max_tokens=64)
        show(ask(chat, question)["messages"])


if __name__ == "__main__":
    main(*sys.argv[1:])
