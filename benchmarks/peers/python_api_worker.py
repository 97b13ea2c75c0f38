"""Runs inside a peer's environment: answers chats through its Python API.

    python -P python_api_worker.py NAME FOLDER

Reads requests as JSON lines and writes what comes of them as JSON lines. Knows nothing of
this repository, which is not installed there.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Iterator, Mapping
from importlib import import_module
from typing import Any, Protocol

Request = dict[str, Any]


class Face(Protocol):
    """A peer's API."""

    tokenizer: Any

    def stream(self, request: Request) -> Iterator[str]: ...

    def whole(self, request: Request) -> str: ...


class LlamaIndex:
    """llama-index-llms-mlx, with the chat template applied as its users have to."""

    def __init__(self, folder: str) -> None:
        from mlx_lm import load

        model, self.tokenizer = load(folder)[:2]
        self.llm = import_module("llama_index.llms.mlx").MLXLLM(
            model_name=folder,
            model=model,
            tokenizer=self.tokenizer,
            messages_to_prompt=self._prompt,
        )

    def stream(self, request: Request) -> Iterator[str]:
        options = request["options"]
        names = ("top_p", "repetition_penalty")
        self.llm.generate_kwargs = {
            "temp": options.get("temperature", 0.0),
            **{name: options[name] for name in names if name in options},
        }
        for response in self.llm.stream_chat(self._messages(request)):
            yield response.delta

    def whole(self, request: Request) -> str:
        from mlx_lm.sample_utils import make_logits_processors, make_sampler

        options = request["options"]
        self.llm.generate_kwargs = {
            "sampler": make_sampler(
                options.get("temperature", 0.0),
                top_p=options.get("top_p", 0.0),
                top_k=options.get("top_k", 0),
                min_p=options.get("min_p", 0.0),
            ),
            "logits_processors": make_logits_processors(
                repetition_penalty=options.get("repetition_penalty"),
                presence_penalty=options.get("presence_penalty"),
                frequency_penalty=options.get("frequency_penalty"),
            ),
        }
        return str(self.llm.chat(self._messages(request)).message.content)

    def _messages(self, request: Request) -> list[Any]:
        from llama_index.core.llms import ChatMessage

        seed(request["options"])
        self.llm.max_new_tokens = request["max_tokens"]  # a call does not take it
        return [ChatMessage(role=m["role"], content=m["content"]) for m in request["messages"]]

    def _prompt(self, messages: list[Any]) -> str:
        plain = [{"role": m.role.value, "content": m.content} for m in messages]
        text = self.tokenizer.apply_chat_template(plain, tokenize=False, add_generation_prompt=True)
        return str(text)


class LangChain:
    """langchain-mlx: `ChatMLX` over `MLXPipeline`."""

    def __init__(self, folder: str) -> None:
        package = import_module("langchain_mlx")
        self.pipeline = package.MLXPipeline.from_model_id(folder)
        self.tokenizer = self.pipeline.tokenizer
        self.chat = package.ChatMLX(llm=self.pipeline)

    def stream(self, request: Request) -> Iterator[str]:
        for chunk in self.chat.stream(self._set(request)):
            yield str(chunk.content)

    def whole(self, request: Request) -> str:
        return str(self.chat.invoke(self._set(request)).content)

    def _set(self, request: Request) -> list[tuple[str, str]]:
        options = dict(request["options"])
        seed(options)
        names = ("top_p", "top_k", "min_p", "repetition_penalty")
        self.pipeline.pipeline_kwargs = {
            "temp": options.get("temperature", 0.0),
            "max_tokens": request["max_tokens"],
            **{name: options[name] for name in names if name in options},
        }
        return [(m["role"], m["content"]) for m in request["messages"]]


def seed(options: Request) -> None:
    if "seed" in options:
        import mlx.core as mx

        mx.random.seed(options["seed"])


FACES: Mapping[str, Callable[[str], Face]] = {
    "llama-index-llms-mlx": LlamaIndex,
    "langchain-mlx": LangChain,
}


def main() -> None:
    replies = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what a library prints is no reply

    def reply(**event: Any) -> None:
        print(json.dumps(event), file=replies, flush=True)

    name, folder = sys.argv[1:]
    face = FACES[name](folder)
    trial = {"messages": [{"role": "user", "content": "Hi"}], "max_tokens": 2, "options": {}}
    note = ""
    try:
        list(face.stream(trial))
    except Exception as error:
        note = f"does not stream ({type(error).__name__}: {error}): asked for whole answers"
        face.whole(trial)
    reply(ready=True, note=note)
    for line in sys.stdin:
        request = json.loads(line)
        text = ""
        try:
            for piece in [face.whole(request)] if note else face.stream(request):
                if piece:
                    text += piece
                    reply(piece=piece)
        except Exception as error:
            reply(error=f"{type(error).__name__}: {error}")
        else:
            # Another reading of the text may have more tokens than were generated.
            tokens = len(face.tokenizer.encode(text, add_special_tokens=False))
            reply(tokens=min(tokens, request["max_tokens"]))


if __name__ == "__main__":
    main()
