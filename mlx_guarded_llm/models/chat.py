"""Chat templates and end tokens, read from a model folder.

Both can be in several places of a folder. This is their only reader; verification, card and engine
use what it found.
"""

from __future__ import annotations

import os
from collections.abc import Container, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .architectures import tokenizer_defaults
from .config import text_config
from .files import UnreadableFile, read_optional, read_text

# One template, or several by name, such as "default".
ChatTemplate = str | Mapping[str, str]

# The markers before calls in formats that mlx-lm does not know.
DEEPSEEK_CALLS = "<\uff5ctool▁calls▁begin\uff5c>"
DSML_CALLS = ("<\uff5cDSML\uff5cfunction_calls>", "<\uff5cDSML\uff5ctool_calls>")
SEED_CALLS = "<seed:tool_call>"

_WORDS = ("<think>", "</think>")
# Markers of thinking that mlx-lm does not know; each is one token.
_THINKING = (
    ("[THINK]", "[/THINK]"),  # Magistral, Ministral 3
    ("<seed:think>", "</seed:think>"),  # Seed-OSS
    ("<|START_THINKING|>", "<|END_THINKING|>"),  # Command A
    ("<|inner_prefix|>", "<|inner_suffix|>"),  # Apertus
    ("\u25c1think\u25b7", "\u25c1/think\u25b7"),  # Kimi-VL
)

_MORE_TEMPLATES = "additional_chat_templates"


@dataclass(frozen=True, kw_only=True)
class Chat:
    """The chat template and end tokens of a model.

    Attributes:
        template: turns a chat into a prompt; None if the model has none.
        renderer: the name of the code of mlx-lm that does this instead, or "".
        end_tokens: ids that end an answer, in addition to the tokenizer's; None if only the
            tokenizer, or mlx-lm for this type of model, names any.
    """

    template: ChatTemplate | None = None
    renderer: str = ""
    end_tokens: tuple[int, ...] | None = None


def read_chat(
    folder: Path,
    config: Mapping[str, Any],
    *,
    generation: Mapping[str, Any],
    settings: Mapping[str, Any],
) -> Chat:
    """Read the chat template and end tokens of a folder.

    Args:
        folder: of the model.
        config: its config.json.
        generation: its generation_config.json.
        settings: its tokenizer_config.json.

    Raises:
        UnreadableFile: a file does not contain what it should.
    """
    template = _template(folder, settings)
    renderer = settings.get("chat_template_type")
    if template is None and renderer is None:
        renderer = tokenizer_defaults(config).get("chat_template_type")
    if not isinstance(renderer, str | None):
        raise UnreadableFile(
            f"{folder / 'tokenizer_config.json'} has the chat_template_type {str(renderer)[:80]}"
        )
    return Chat(
        template=template,
        renderer=renderer or "",
        end_tokens=_end_tokens(
            (folder / "generation_config.json", generation),
            (folder / "config.json", config),
            (folder / "config.json", text_config(config)),
        ),
    )


def is_harmony(template: object) -> bool:
    """Whether a template is harmony: answers are messages in channels, as in gpt-oss."""
    marks = ("<|start|>", "<|channel|>", "<|message|>")
    return isinstance(template, str) and all(mark in template for mark in marks)


def call_markers(template: object) -> list[str]:
    """The markers before calls in a template, of formats that mlx-lm does not know."""
    known = (DEEPSEEK_CALLS, *DSML_CALLS, SEED_CALLS)
    return [mark for mark in known if isinstance(template, str) and mark in template]


def thinking_markers(vocabulary: Container[str], template: object) -> tuple[str, str] | None:
    """A model's markers of thinking, if mlx-lm does not know them.

    They are tokens, or the usual markers as text, if the template mentions them.
    """
    for pair in _THINKING:
        if all(marker in vocabulary for marker in pair):
            return pair
    speaks = isinstance(template, str) and any(marker in template for marker in _WORDS)
    return _WORDS if speaks else None


def _template(folder: Path, settings: Mapping[str, Any]) -> ChatTemplate | None:
    """The template, wherever it is.

    Separate files come first, as in transformers, then tokenizer_config.json, then the files of the
    processors of vision models. If a place has named templates but no "default" one, that of the
    next place is used.
    """
    found: dict[str, str] = {}
    for place, templates in _places(folder, settings):
        named = {name: text for name, text in _named(place, templates).items() if text.strip()}
        if not found:
            found = named
        elif "default" in named:
            found["default"] = named["default"]
        if "default" in found:
            break
    if not found:
        return None
    if len(found) == 1:
        return next(iter(found.values()))
    if "default" not in found:
        raise UnreadableFile(
            f"{folder} has chat templates named {', '.join(sorted(found))} and no default one"
        )
    return found


def _places(folder: Path, settings: Mapping[str, Any]) -> Iterator[tuple[Path, object]]:
    """The places of templates in order, and what each of them contains."""
    alone, more = folder / "chat_template.jinja", folder / _MORE_TEMPLATES
    paths = {path.stem: path for path in sorted(more.glob("*.jinja"))} if more.is_dir() else {}
    if os.path.lexists(alone):
        paths["default"] = alone
    yield alone, {name: read_text(path) for name, path in paths.items()}
    yield folder / "tokenizer_config.json", settings.get("chat_template")
    for name in ("chat_template.json", "processor_config.json"):
        yield folder / name, read_optional(folder / name).get("chat_template")


def _named(place: Path, templates: object) -> dict[str, str]:
    """Templates by name, in whatever way they are written."""
    if templates is None:
        return {}
    if isinstance(templates, str):
        return {"default": templates}
    if isinstance(templates, list) and all(isinstance(t, dict) for t in templates):
        templates = {t.get("name"): t.get("template") for t in templates}
    if isinstance(templates, dict) and all(
        isinstance(name, str) and isinstance(text, str) for name, text in templates.items()
    ):
        return templates
    raise UnreadableFile(f"{place} has a chat_template that is neither a text nor named texts")


def _end_tokens(*sources: tuple[Path, Mapping[str, Any]]) -> tuple[int, ...] | None:
    """The end tokens in the first of these files that names any."""
    for file, source in sources:
        value = source.get("eos_token_id")
        ids = value if isinstance(value, list) else [] if value is None else [value]
        if any(type(i) is not int for i in ids):  # nor bool
            raise UnreadableFile(f"{file} has the eos_token_id {str(value)[:80]}")
        if tokens := tuple(i for i in ids if i >= 0):  # -1 is one way to say: none
            return tokens
    return None
