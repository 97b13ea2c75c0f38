"""Control tokens: a template may write them, the messages may not.

A tokenizer finds its control tokens wherever their names are in a text. So in the caller's text
their names are split by a private character before the template sees them, and the tokens of
that character are removed after the tokenizer.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING

from ..output.thinking import thinking
from .tokenizer_cache import cached_per_tokenizer
from .tool_format import OURS
from .tool_prompt import describe

if TYPE_CHECKING:
    from mlx_lm.tokenizer_utils import TokenizerWrapper
    from tokenizers.normalizers import Normalizer

# An added token that is not "special" is markup, such as <think>, if it looks like this. Others are
# words, runs of spaces and so on.
_MARKUP = re.compile(r"[<\[{].+[>\]}]", re.DOTALL)
_CONTROL = re.compile(r"<[|\uff5c].+[|\uff5c]>", re.DOTALL)  # never ordinary text


class Words:
    """Finds words in a text, even where they overlap.

    Args:
        words: what to look for.
        normalized: the words that the tokenizer looks for in the normalized text, such as
            "<|end|>" in "\uff1c|END|\uff1e".
        normalizer: of the tokenizer; None if it does not normalize.
    """

    def __init__(
        self,
        words: Iterable[str],
        normalized: Collection[str] = (),
        normalizer: Normalizer | None = None,
    ) -> None:
        self._words = frozenset(
            word for word in words if len(word) > 1
        )  # so that they can be split
        self._beginnings = frozenset(word[:2] for word in self._words)
        self._lengths = sorted({len(word) for word in self._words})
        first, second = (
            "".join(sorted({re.escape(word[i]) for word in self._words})) for i in (0, 1)
        )
        self._first = re.compile(f"[{first}](?=[{second}])") if first else None
        self._normalizer = normalizer
        self._normalized: Words | None = None
        if normalizer and (names := self._words.intersection(normalized)):
            self._normalized = Words(map(normalizer.normalize_str, names))
        self.longest = self._lengths[-1] if self._words else 0

    def find(self, text: str) -> Iterator[tuple[int, int]]:
        """The start and end of each."""
        for match in self._first.finditer(text) if self._first else ():
            at = match.start()
            if text[at : at + 2] in self._beginnings:
                for length in self._lengths:
                    if text[at : at + length] in self._words:
                        yield at, at + length

    def cuts(self, text: str) -> Iterator[tuple[int, int, int]]:
        """Where to split each, with its start and end. Some are split more than once."""
        for start, end in self.find(text):
            yield start + 1, start, end
        if self._normalized is not None:
            for start, end in self._find_normalized(self._normalized, text):
                # Everywhere: one part could contain all that a normalizer leaves of the word.
                for place in range(start + 1, end):
                    yield place, start, end

    def cut(self, text: str, mark: str) -> str:
        """The text with a mark inside each of the words."""
        if self._normalized is None and not (self._first and self._first.search(text)):
            return text  # the usual case, and a request has hundreds of texts
        places = sorted({place for place, _, _ in self.cuts(text)})
        return mark.join(text[a:b] for a, b in pairwise((0, *places, len(text))))

    def _find_normalized(self, words: Words, text: str) -> Iterator[tuple[int, int]]:
        """The start and end of what the normalizer turns into one of the words."""
        from tokenizers import NormalizedString, PreTokenizedString

        def find(_: int, changed: NormalizedString) -> list[NormalizedString]:
            found = (changed[a:b] for a, b in words.find(changed.normalized))
            return [word for word in found if word is not None]

        assert self._normalizer is not None
        aligned = PreTokenizedString(text)
        aligned.normalize(self._normalizer.normalize)
        aligned.split(find)
        for _, (start, end), _ in aligned.get_splits("original", "char"):
            if text[start:end] not in self._words:
                yield start, end


@dataclass(frozen=True)
class ControlWords:
    """The names of a tokenizer's control tokens.

    Attributes:
        all: every one.
        turns: those that earlier answers must not contain either: all but the markers of thinking
            and of tool calls, which the model wrote itself and templates read.
        answers: those that must not follow the thinking in them: `turns` and the markers of
            thinking, which can only be mentions there.
    """

    all: Words
    turns: Words
    answers: Words


@cached_per_tokenizer
def control_words(tokenizer: TokenizerWrapper) -> ControlWords:
    """The special tokens, and other added tokens that are markup of the template or ours."""
    think = thinking(tokenizer)
    markers = [
        *(think[:2] if think else ("", "")),
        tokenizer.tool_call_start or "",
        tokenizer.tool_call_end or "",
        OURS.start,
        OURS.end,
    ]
    template = str(tokenizer.chat_template) + describe(())
    words, turns = set(tokenizer.all_special_tokens), set(tokenizer.all_special_tokens)
    for token in tokenizer.added_tokens_decoder.values():
        word = token.content
        if token.special:
            words.add(word)
            turns.add(word)
        elif _CONTROL.fullmatch(word) or (
            _MARKUP.fullmatch(word) and (word in template or any(word in m for m in markers))
        ):
            words.add(word)
    turns = {word for word in turns if not any(word in marker for marker in markers)}
    normalizer = getattr(getattr(tokenizer, "backend_tokenizer", None), "normalizer", None)
    normalized = {t.content for t in tokenizer.added_tokens_decoder.values() if t.normalized}
    thought = {m for m in (*markers[:2], "<think>", "</think>") if m in words or m in template}
    return ControlWords(
        *(Words(some, normalized, normalizer) for some in (words, turns, turns | thought))
    )


def encode(tokenizer: TokenizerWrapper, text: str, mark: str) -> tuple[int, ...]:
    """The tokens of a prompt in whose text some words are split by a mark.

    Without marks they are simply those of the tokenizer.
    """
    ids = tokenizer.encode(text, add_special_tokens=False)
    marks = text.count(mark)
    if not marks:
        return tuple(ids)
    before = tokenizer.encode("<", add_special_tokens=False)
    both = tokenizer.encode(f"<{mark}", add_special_tokens=False)
    kept, found = _without(ids, both[len(before) :])
    if both[: len(before)] == before and found == marks:
        return tuple(kept)
    # The tokenizer treats the mark differently, for example joins it with its neighbours.
    pieces = (tokenizer.encode(piece, add_special_tokens=False) for piece in text.split(mark))
    return tuple(token for piece in pieces for token in piece)


def _without(ids: list[int], part: list[int]) -> tuple[list[int], int]:
    """The tokens without the occurrences of a sequence, and how often it occurs."""
    if not part:
        return ids, 0
    kept: list[int] = []
    position = found = 0
    while position < len(ids):
        if ids[position] == part[0] and ids[position : position + len(part)] == part:
            position += len(part)
            found += 1
        else:
            kept.append(ids[position])
            position += 1
    return kept, found
