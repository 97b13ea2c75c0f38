"""How many prompt tokens are computed over the turns of a chat, and how many have to be.

    python -m benchmarks.turn_tokens [--turns 10] [--architectures llama gpt_oss mamba ...]
        [--models 1 2] [--prefix-cache 1GiB]

Tiny models with random weights, one or two in turn. In each turn a model thinks and calls a tool,
gets its result, thinks and answers. Its template shows the thinking of the current turn and drops
that of earlier ones, so each turn parts from what was computed where the last one began to answer.
Printed are the tokens of all prompts, those that were computed, and the least: what follows the
longest beginning that the same model has read or written before. No system can do with fewer.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mlx_guarded_llm import Backend
from mlx_guarded_llm.testing.tiny import make_tiny_model

ARCHITECTURES = ("llama", "gpt_oss", "gemma3_text", "gemma2", "mamba")
ANSWER = 24  # tokens
TOOL = {
    "type": "function",
    "function": {
        "name": "look",
        "description": "Look at the sea.",
        "parameters": {"type": "object", "properties": {"far": {"type": "boolean"}}},
    },
}
# As Qwen 3's: the thinking of the current turn is shown, that of earlier ones is dropped.
TEMPLATE = """\
{%- set asked = namespace(last=-1) %}
{%- for message in messages %}
    {%- if message.role == 'user' %}{%- set asked.last = loop.index0 %}{%- endif %}
{%- endfor %}
{%- for tool in tools or [] %}{{- tool | tojson }}{{- '\\n' }}{%- endfor %}
{%- for message in messages %}
    {{- '<|im_start|>' + message.role + '\\n' }}
    {%- if message.reasoning_content and loop.index0 > asked.last %}
        {{- '<think>\\n' + message.reasoning_content + '\\n</think>\\n' }}
    {%- endif %}
    {{- message.content or '' }}
    {%- for item in message.tool_calls or [] %}
        {%- set tool_call = item.function %}
        {{- '<tool_call>\\n{"name": "' + tool_call.name + '", "arguments": ' }}
        {{- tool_call.arguments }}
        {{- '}\\n</tool_call>' }}
    {%- endfor %}
    {{- '<|im_end|>\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\nOPENING' }}{%- endif %}
"""


@dataclass
class Counted:
    """Prompt tokens, summed over requests."""

    prompt: int = 0
    computed: int = 0
    least: int = 0

    @property
    def ratio(self) -> float:
        return self.computed / self.least


@dataclass
class Chat:
    """A conversation with one model, and the tokens that the model has read or written."""

    backend: Backend
    model: str
    number: int
    counted: Counted = field(default_factory=Counted)
    _messages: list[dict[str, Any]] = field(default_factory=list)
    _known: list[list[int]] = field(default_factory=list)

    def turn(self, number: int) -> None:
        """Ask, let the model look, and hear what it says."""
        if not self._messages:
            system = f"You keep light {self.number}, and say what you see in few words."
            self._messages.append({"role": "system", "content": system})
        question = f"Day {number}. What is there to see, and what will you do about it?"
        self._messages.append({"role": "user", "content": question})
        call = {"name": "look", "arguments": '{"far": true}'}
        self._messages += [
            {
                "role": "assistant",
                "content": "",
                "reasoning_content": self._answer(),
                "tool_calls": [{"id": "call00001", "type": "function", "function": call}],
            },
            {"role": "tool", "tool_call_id": "call00001", "content": f"A ship, {number} miles."},
        ]
        thought = self._answer()
        said = {"content": "A ship. I trim the wick.", "reasoning_content": thought}
        self._messages.append({"role": "assistant", **said})

    def _answer(self) -> str:
        prompt = self.backend.tokens(self.model, self._messages, tools=[TOOL])
        result = self.backend.generate(
            self.model, self._messages, tools=[TOOL], max_tokens=ANSWER, logprobs=True
        )
        known = max((_common(prompt[:-1], tokens) for tokens in self._known), default=0)
        assert result.usage.prompt_tokens == len(prompt)
        self.counted.prompt += len(prompt)
        self.counted.computed += len(prompt) - result.usage.cached_tokens
        self.counted.least += len(prompt) - known
        self._known.append([*prompt, *(logprob.token for logprob in result.logprobs)])
        return "It may be fog, or a ship. I have to look. " * 2


def count(
    folder: Path, architecture: str, *, opens: bool, models: int, turns: int, **options: Any
) -> Counted:
    """Count the tokens of chats with models of one architecture, which take turns.

    Args:
        folder: where the models are made.
        opens: the template opens the thinking, instead of the model.
        **options: of the `Backend`.
    """
    template = TEMPLATE.replace("OPENING", "<think>\\n" if opens else "")
    total = Counted()
    with Backend(offline=True, **options) as backend:
        chats = [
            Chat(backend, str(_model(folder / f"{number}", architecture, number, template)), number)
            for number in range(models)
        ]
        for turn in range(turns):
            for chat in chats:
                chat.turn(turn)
        for chat in chats:
            total.prompt += chat.counted.prompt
            total.computed += chat.counted.computed
            total.least += chat.counted.least
    return total


def _model(folder: Path, architecture: str, seed: int, template: str) -> Path:
    return make_tiny_model(
        folder,
        architecture=architecture,
        seed=seed,
        context_window=16384,
        chat_template=template,
        thinking=True,
        tools=True,
    )


def _common(one: Sequence[int], other: Sequence[int]) -> int:
    shorter = min(len(one), len(other))
    return next((i for i in range(shorter) if one[i] != other[i]), shorter)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--turns", type=int, default=10)
    parser.add_argument("--architectures", nargs="+", default=ARCHITECTURES)
    parser.add_argument("--models", type=int, nargs="+", default=(1, 2))
    parser.add_argument("--prefix-cache", default="1GiB")
    args = parser.parse_args()
    print("model, thinking opened by        models    prompts   computed      least    ratio")
    for architecture in args.architectures:
        for opens in (True, False):
            for models in args.models:
                with tempfile.TemporaryDirectory() as scratch:
                    counted = count(
                        Path(scratch),
                        architecture,
                        opens=opens,
                        models=models,
                        turns=args.turns,
                        prefix_cache=args.prefix_cache,
                    )
                by = "template" if opens else "model"
                print(
                    f"{architecture + ', ' + by:32} {models:6} {counted.prompt:10} "
                    f"{counted.computed:10} {counted.least:10} {counted.ratio:8.2f}",
                    flush=True,
                )


if __name__ == "__main__":
    main()
