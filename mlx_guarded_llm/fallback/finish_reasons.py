"""Why the answer of another library's model ended, whatever its provider calls that.

Each provider says it in its own place and its own words. Only words that are known to mean
a complete answer give "stop"; a word that is not known gives "other".
"""

from __future__ import annotations

import enum
import re
from collections.abc import Iterator, Mapping
from typing import Any

from ..results import FinishReason
from .reading import member, members

# The most serious first: it counts where an answer gives several.
_WORDS: dict[FinishReason, str] = {
    "content_filter": """
        content_filter content_filtered content_blocked contentfilter filtered blocked
        refusal refused safety recitation blocklist prohibited_content spii
        image_safety image_recitation image_prohibited_content model_armor jailbreak
        guardrail guardrail_intervened guardrails error_toxic sensitive moderation
    """,
    "length": """
        length max_tokens max_output_tokens max_completion_tokens max_new_tokens max_length
        max_len max_output max_context model_length token_limit limit error_limit length_limit
        model_context_window_exceeded context_window_exceeded context_length_exceeded
        context_length context_length_reached max_predicted_tokens_reached
    """,
    "other": "",
    "tool_calls": "tool_calls tool_call tool_use tool function_call function_calls",
    "stop": """
        stop stop_sequence stop_sequences stop_word stop_token stop_criteria_met stop_string_found
        word end end_turn end_of_turn end_of_text endoftext eos eos_token eos_found complete
        completed completion
        finish finished normal done success
    """,
}
_MEANINGS: dict[str, FinishReason] = {
    word: reason for reason, words in _WORDS.items() for word in words.split()
}
_ORDER = tuple(_WORDS)

# Where providers say it. The first one present counts; vLLM puts the string that ended
# an answer under `stop_reason`, next to its `finish_reason`.
_NAMES = (
    "finish_reason",
    "finishReason",
    "stop_reason",
    "stopReason",
    "done_reason",
    "completionReason",
    "completion_reason",
    "stop_type",
)
_PLACES = frozenset({*_NAMES, "done", "status", "prompt_feedback"})
_PARTS = ("choices", "candidates", "results", "completions", "generations", "output")
_UNFINISHED = ("incomplete", "failed", "in_progress", "queued", "cancelled", "canceled", "expired")
_GEMINI = ("", "stop", "max_tokens", "safety", "recitation", "other", "blocklist")  # its numbers
_NOTHING = ("", "null", "none", "not_finished", "unspecified", "block_reason_unspecified")


def finish_reason(*answers: Any) -> FinishReason:
    """Why an answer ended.

    Args:
        *answers: mappings or objects in which the provider may say it, in the form of its
            API or of another library: OpenAI's chat completions and responses, Anthropic,
            Gemini, Ollama, Bedrock, Cohere, Mistral, Hugging Face and those like them.

    Returns:
        "stop" also where nothing is said; "other" for a word that is not known.
    """
    found = {reason for answer in answers for reason in _reasons(answer)}
    return next((reason for reason in _ORDER if reason in found), "stop")


def has_finish_reason(answer: Mapping[str, Any]) -> bool:
    """Whether an answer has a place for its finish reason, even if that is empty."""
    return not _PLACES.isdisjoint(answer)


def _reasons(answer: Any) -> Iterator[FinishReason]:
    said = next((word for name in _NAMES if (word := _word(member(answer, name)))), "")
    if said:
        yield _meaning(said)
    details = _word(member(member(answer, "incomplete_details"), "reason"))
    if details:
        yield _meaning(details)
    if _unfinished(answer) and not details:
        yield "other"
    if _word(member(member(answer, "prompt_feedback"), "block_reason")):
        yield "content_filter"
    if _refuses(answer) or _refuses(member(answer, "message")):
        yield "content_filter"
    for part in (part for name in _PARTS for part in members(answer, name)):
        yield from _reasons(part)


def _unfinished(answer: Any) -> bool:
    """Whether the answer is incomplete. The status of a provider's own tool does not count."""
    if member(answer, "type") not in (None, "message"):
        return False
    return _word(member(answer, "status")) in _UNFINISHED or member(answer, "done") is False


def _refuses(answer: Any) -> bool:
    """Whether a model refused: OpenAI's do so in a separate part, beside the text or alone."""
    parts = [part for part in (answer, *members(answer, "content")) if not isinstance(part, str)]
    return any(member(p, "refusal") or member(p, "type") == "refusal" for p in parts)


def _word(said: Any) -> str:
    """A reason in small letters and underscores; "" when there is none."""
    if isinstance(said, Mapping):  # AI21's
        said = said.get("reason")
    if isinstance(said, enum.Enum):
        said = said.value if isinstance(said.value, str) else said.name
    elif isinstance(said, int) and not isinstance(said, bool):
        said = _GEMINI[said] if 0 <= said < len(_GEMINI) else f"number_{said}"
    if not isinstance(said, str):
        return ""
    name = said.rpartition(".")[2].strip()
    if name != name.upper():
        name = re.sub(r"(?<=[a-z])(?=[A-Z])", "_", name)
    word = re.sub(r"[\s-]+", "_", name).lower()
    word = re.sub(r"^(finish_)?reason_", "", word)
    return "" if word in _NOTHING else word


def _meaning(word: str) -> FinishReason:
    if word in _MEANINGS:
        return _MEANINGS[word]
    # A library that merges the pieces of a stream may have joined the word to itself.
    for known, meaning in _MEANINGS.items():
        if len(word) > len(known) and not word.replace(known, ""):
            return meaning
    return "other"
