"""The markers in the answers of a model, and what each of them does."""

from __future__ import annotations

from collections import defaultdict
from typing import TYPE_CHECKING

from ..prompt.tokenizer_cache import cached_per_tokenizer
from ..prompt.tool_format import HARMONY, UNMARKED, ToolFormat, other_formats, writes_harmony
from .structure import ANSWER, REASONING, Edge
from .thinking import thinking

if TYPE_CHECKING:
    from mlx_lm.tokenizer_utils import TokenizerWrapper

    from ..prompt.prompt import Prompt

Edges = defaultdict[str, list[Edge]]

_TOOL = "tool"  # mlx-lm's name for the state in which a call is written
_CHANNEL, _HEADER = "channel", "header"
_TO_ANSWER, _TO_REASONING = "header of an answer", "header of a thinking"


def markup(tokenizer: TokenizerWrapper, prompt: Prompt, *, held: bool = False) -> Edges:
    """The edges of each state that has any, for one answer.

    If calls are in the model's own format, the edges are those of the model. Otherwise calls are in
    our format, or text, and none begins in the thinking.

    Args:
        tokenizer: of the model.
        prompt: what is answered.
        held: a grammar makes the answer a text of some form, or only calls in JSON.
    """
    if held:
        return _markup_of_form(tokenizer, prompt)
    form = prompt.tool_format
    native = form if form is not None and form.native and not prompt.calls_are_forced else None
    edges: Edges = defaultdict(list)
    for state, out in tokenizer.response_transitions.items():
        edges[state] += [
            Edge(marker, to, native if to == _TOOL else None)
            for marker, to in out
            if native is not None or to != _TOOL
        ]
    # A model's own response format says where calls begin.
    says_where = any(edge.form is not None for out in edges.values() for edge in out)
    if form is not None and form is not HARMONY and not says_where:
        edges[ANSWER] += _beginnings(form)
    if form is not None and not prompt.calls_are_forced:
        if not form.native:
            for other in other_formats(tokenizer):
                edges[ANSWER] += _beginnings(other)
        if not says_where and form is not HARMONY:
            edges[ANSWER] += [Edge(one.start, _TOOL, one, opening=True) for one in UNMARKED]
    if writes_harmony(tokenizer):
        _add_channels(edges)
    if think := thinking(tokenizer):
        edges[ANSWER].append(Edge(think.start, REASONING, opening=True))
        edges[REASONING].append(Edge(think.end, ANSWER))
        edges[REASONING] += _beginnings(native) if native is not None else []
    edges[ANSWER] += [
        Edge(marker) for marker in (*tokenizer.structural_markers, *_around(tokenizer))
    ]
    return edges


def _markup_of_form(tokenizer: TokenizerWrapper, prompt: Prompt) -> Edges:
    """The edges for an answer with a grammar: it may begin with thinking, or be calls."""
    edges: Edges = defaultdict(list)
    form = prompt.tool_format
    if form is not None and form.is_json:
        edges[ANSWER] += [Edge(start, _TOOL, form, opening=True) for start in form.starts]
    if think := thinking(tokenizer):
        edges[ANSWER].append(Edge(think.start, REASONING, opening=True))
        edges[REASONING].append(Edge(think.end, ANSWER))
    return edges


@cached_per_tokenizer
def _around(tokenizer: TokenizerWrapper) -> list[str]:
    """Tokens around the answers that mlx-lm does not know, of Cohere's models."""
    vocabulary = tokenizer.get_vocab()
    known = ("<|START_RESPONSE|>", "<|END_RESPONSE|>", "<|START_TEXT|>", "<|END_TEXT|>")
    return [marker for marker in known if marker in vocabulary]


def _beginnings(form: ToolFormat) -> list[Edge]:
    return [Edge(start, _TOOL, form) for start in form.starts]


def _add_channels(edges: Edges) -> None:
    """The messages of gpt-oss (harmony).

    `<|channel|>analysis<|message|>` is followed by thinking, `final` by the answer, and
    `commentary` by text for the user as well; ` to=functions.name` in a header makes the message a
    call. A message ends with `<|end|>`, `<|call|>` or `<|return|>`, and the next begins
    with `<|start|>` and a role.
    """
    call = Edge(HARMONY.start, _TOOL, HARMONY)
    ends = [Edge(mark, ANSWER) for mark in ("<|end|>", "<|return|>", "<|call|>")]
    begins = [Edge("<|start|>", _HEADER), Edge("<|channel|>", _CHANNEL)]
    # The prompt ends with the role of the first message.
    first = Edge(HARMONY.start, _TOOL, HARMONY, opening=True)
    edges[ANSWER] += [*ends, *begins, Edge("<|message|>", ANSWER), first]
    edges[REASONING] += [*ends, *begins]
    edges[_HEADER] += [Edge("<|channel|>", _CHANNEL), Edge("<|message|>", ANSWER), call]
    edges[_CHANNEL] += [
        Edge("analysis", _TO_REASONING),
        Edge("commentary", _TO_ANSWER),
        Edge("final", _TO_ANSWER),
        Edge("<|message|>", ANSWER),
        call,
    ]
    edges[_TO_REASONING] += [Edge("<|message|>", REASONING), call]
    edges[_TO_ANSWER] += [Edge("<|message|>", ANSWER), call]
