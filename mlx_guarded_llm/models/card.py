"""What a model can do, told from its files: nothing is loaded, fetched or imported."""

from __future__ import annotations

import ast
import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from .architectures import parse
from .spec import ModelFiles, Task

_TEMPLATE_FILES = ("chat_template.jinja", "chat_template.json", "tokenizer_config.json")
_HEAD = 4 * 1024**2  # bytes of a tokenizer.json in which its added tokens are looked for


@dataclass(frozen=True, kw_only=True)
class ModelCard:
    """What is known of a model before it is loaded.

    Attributes:
        name: as it was asked for.
        task: "generate" or "embed".
        architecture: its model type.
        context_window: tokens it can attend to; of an embedding model, of one text.
        max_output: tokens of an answer at most, where that is less; None when only the
            context window bounds it.
        chat: it has a chat template, so it takes messages.
        tools: it can be offered tools.
        native_tools: its own template shows them to it, and mlx-lm reads its calls.
        thinking: it has markers for thinking.
        fingerprint: identifies its weights; see `Provenance.fingerprint`.
        revision: commit of the repository it came from, or "".
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


def make_card(files: ModelFiles) -> ModelCard:
    """The card of a verified model."""
    template = _template(files.path)
    tokenizer = _Tokenizer(template, _added_tokens(files.path))
    chat = template is not None and files.spec.task == "generate"
    native = chat and "tools" in str(template) and _infer("_infer_tool_parser", tokenizer)
    thinking = _infer("_infer_thinking", tokenizer)
    return ModelCard(
        name=files.spec.name,
        task=files.spec.task,
        architecture=str(files.config["model_type"]),
        context_window=files.context_window,
        max_output=None,
        chat=chat,
        tools=chat,
        native_tools=bool(native),
        thinking=chat and thinking is not None and thinking[0] is not None,
        fingerprint=files.fingerprint,
        revision=files.revision,
    )


@dataclass(frozen=True)
class _Tokenizer:
    """As much of a tokenizer as mlx-lm looks at to tell what a model can do."""

    chat_template: str | None
    added: Mapping[str, int]

    def get_vocab(self) -> Mapping[str, int]:
        return self.added

    def encode(self, text: str, **_: Any) -> tuple[int, ...]:
        return ()


def _infer(name: str, tokenizer: _Tokenizer) -> Any:
    """What mlx-lm's function of this name says of a tokenizer; None without it."""
    function = _functions().get(name)
    return None if function is None else function(tokenizer)


@cache
def _functions() -> dict[str, Any]:
    """The private functions of mlx_lm.tokenizer_utils that look at a tokenizer.

    They are taken out of its source: importing it would import MLX.
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


def _template(folder: Path) -> str | None:
    """The text of the chat template, the default one where there are several."""
    for name in _TEMPLATE_FILES:
        try:
            text = (folder / name).read_text(encoding="utf-8")
            template = text if name.endswith(".jinja") else json.loads(text)["chat_template"]
        except (OSError, ValueError, RecursionError, KeyError, TypeError):
            continue
        if isinstance(template, list):
            named = {t.get("name"): t.get("template") for t in template if isinstance(t, dict)}
            template = named.get("default") or next(iter(named.values()), None)
        if isinstance(template, str):
            return template
    return None


def _added_tokens(folder: Path) -> dict[str, int]:
    """Tokens beside the vocabulary proper, where the markers of thinking and tools are."""
    added: dict[str, int] = {}
    try:
        with (folder / "tokenizer.json").open("rb") as file:
            head = file.read(_HEAD).decode(errors="replace")
        start = head.index('"added_tokens"') + len('"added_tokens"')
        entries, _ = json.JSONDecoder().raw_decode(head, head.index("[", start))
        added |= {entry["content"]: entry["id"] for entry in entries}
    except (OSError, ValueError, RecursionError, KeyError, TypeError):
        pass
    try:
        config = json.loads((folder / "tokenizer_config.json").read_bytes())
        entries = config["added_tokens_decoder"]
        added |= {entry["content"]: int(number) for number, entry in entries.items()}
    except (OSError, ValueError, RecursionError, KeyError, TypeError, AttributeError):
        pass
    return added
