"""What a model can do, from its files alone: nothing is loaded, downloaded or imported."""

from __future__ import annotations

import ast
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from typing import Any

from .added_tokens import named_tokens
from .architectures import parse
from .chat import ChatTemplate, call_markers, is_harmony, thinking_markers
from .spec import ModelFiles, Task


@dataclass(frozen=True, kw_only=True)
class ModelCard:
    """What is known of a model before it is loaded.

    Attributes:
        name: as it was requested.
        task: "generate" or "embed".
        architecture: its model type.
        context_window: tokens it can attend to; for an embedding model, of one text.
        max_output: the most tokens of an answer, if that is less; None if only the context window
            limits it.
        chat: it has a chat template, so it takes messages.
        tools: it can be offered tools.
        native_tools: its template shows tools, and calls in its own format can be read.
        thinking: it has markers for thinking.
        fingerprint: identifies its weights; see `Provenance.fingerprint`.
        revision: commit of the repository it came from, or "".
        sampling: its own defaults (temperature and so on) for calls that give none; if empty, the
            default is greedy.
        weight_bytes: bytes of all its tensors, adapters included.
    """

    name: str
    task: Task
    architecture: str
    context_window: int
    max_output: int | None
    chat: bool
    tools: bool
    native_tools: bool
    thinking: bool
    fingerprint: str
    revision: str
    sampling: Mapping[str, float] = field(default_factory=dict)
    weight_bytes: int = 0


def make_card(files: ModelFiles) -> ModelCard:
    """The card of a verified model."""
    template = files.chat.template
    tokenizer = _Tokenizer(template, named_tokens(files.path))
    chat = (template is not None or bool(files.chat.renderer)) and files.spec.task == "generate"
    known = _infer("_infer_tool_parser", tokenizer) or call_markers(template)
    native = chat and "tools" in str(template) and (known or is_harmony(template))
    thinking = _infer("_infer_thinking", tokenizer) or (None,)
    return ModelCard(
        name=files.spec.name,
        task=files.spec.task,
        architecture=str(files.config["model_type"]),
        context_window=files.context_window,
        max_output=None,
        chat=chat,
        tools=chat,
        native_tools=bool(native),
        thinking=chat and bool(thinking[0] or thinking_markers(tokenizer.added, template)),
        fingerprint=files.fingerprint,
        revision=files.revision,
        sampling=files.sampling,
        weight_bytes=files.weight_bytes,
    )


@dataclass(frozen=True)
class _Tokenizer:
    """As much of a tokenizer as mlx-lm needs to find out what a model can do."""

    chat_template: ChatTemplate | None
    added: Mapping[str, int]

    def get_vocab(self) -> Mapping[str, int]:
        return self.added

    def encode(self, text: str, **_: Any) -> tuple[int, ...]:
        return ()


def _infer(name: str, tokenizer: _Tokenizer) -> Any:
    """The result of the mlx-lm function of this name for a tokenizer; None without it."""
    function = _functions().get(name)
    return None if function is None else function(tokenizer)


@cache
def _functions() -> dict[str, Any]:
    """The private functions of mlx_lm.tokenizer_utils that look at a tokenizer.

    They are extracted from its source, because importing it would import MLX.
    """
    wanted = ("_infer_tool_parser", "_infer_thinking", "_is_xtml_vocab")
    body: list[ast.stmt] = [
        node
        for node in parse("tokenizer_utils.py").body
        if isinstance(node, ast.FunctionDef) and node.name in wanted
    ]
    names: dict[str, Any] = {}
    exec(compile(ast.Module(body, []), "mlx_lm/tokenizer_utils.py", "exec"), names)
    return names
