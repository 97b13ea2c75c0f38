"""Token ids in, whole characters out."""

from __future__ import annotations

import codecs
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, Protocol

from ..prompt.tokenizer_cache import cached_per_tokenizer

if TYPE_CHECKING:
    from mlx_lm.tokenizer_utils import TokenizerWrapper


_SPACE = "\u2581".encode()  # SentencePiece's
_CHARACTER = 16  # tokens; no character has more, so more will not become one
_ALONE = 256  # how many single tokens are compared
_SAMPLES = (
    "Hello! How can I assist you today?",
    "  two spaces,  then\n\n\tcode {x: [1, 2]}; it's don't",
    "naïve café \u201cquotes\u201d \u2026 Ω ≠ ж",
    "你好世界。こんにちは 한국어 שלום مرحبا",
    "\U0001f469\u200d\U0001f467 ✓",
)


class Detokenizer(Protocol):
    """Turns the tokens of one answer into text as they arrive."""

    def add(self, token: int) -> str:
        """The characters that this token completes. Unknown ids have no text."""

    def finish(self, *, cut: bool = False) -> str:
        """What was held back.

        Args:
            cut: the answer was cut off, so an incomplete character at its end is left out.
                Otherwise it becomes U+FFFD.
        """


_Make = Callable[["TokenizerWrapper", bool], Detokenizer]


def make_detokenizer(tokenizer: TokenizerWrapper, *, continues_text: bool = False) -> Detokenizer:
    """A detokenizer for one answer. Joined, its pieces are `tokenizer.decode(tokens)`.

    Args:
        tokenizer: of the model.
        continues_text: the answer continues a text, so a space before its first word is part of
            it (decode() of SentencePiece drops that space).
    """
    return _choose(tokenizer)(tokenizer, continues_text)


class ByteDetokenizer:
    """For vocabularies in which each token is a sequence of bytes of UTF-8.

    It uses mlx-lm's token maps but not its detokenizers. The one for byte-level BPE drops a first
    space, shows NUL as a letter and an id of a padded embedding as "!", and can fail at the end of
    an answer. The one for SentencePiece drops every space before the first word. Both copy the
    whole answer for each token.
    """

    def __init__(
        self,
        tokenizer: TokenizerWrapper,
        tokens: Sequence[str | bytes | None],
        *,
        trim_first_space: bool = False,
    ) -> None:
        self._tokenizer = tokenizer
        self._tokens = tokens
        self._trim = trim_first_space
        self._decode = codecs.getincrementaldecoder("utf-8")("replace").decode

    def add(self, token: int) -> str:
        """See `Detokenizer.add`."""
        if 0 <= token < len(self._tokens):
            spelling = self._tokens[token]
        else:
            spelling = _beyond(self._tokenizer, token)
        return self._show(self._decode(_bytes(spelling))) if spelling else ""

    def finish(self, *, cut: bool = False) -> str:
        """See `Detokenizer.finish`."""
        return "" if cut else self._show(self._decode(b"", True))

    def _show(self, text: str) -> str:
        if self._trim and text:
            self._trim = False
            return text.removeprefix(" ")
        return text


class DecodingDetokenizer:
    """For all other tokenizers: new tokens are decoded after a few earlier ones."""

    def __init__(self, tokenizer: TokenizerWrapper, *, continues_text: bool = False) -> None:
        self._tokenizer = tokenizer
        self._size = len(tokenizer)
        self._before: list[int] = []  # the last tokens whose text has been returned
        self._new: list[int] = []
        if continues_text:
            self._before = tokenizer.encode("a", add_special_tokens=False)[-1:]

    def add(self, token: int) -> str:
        """See `Detokenizer.add`."""
        if not 0 <= token < self._size:
            return ""
        self._new.append(token)
        text = self._text()
        return "" if text.endswith("\ufffd") and len(self._new) < _CHARACTER else self._out(text)

    def finish(self, *, cut: bool = False) -> str:
        """See `Detokenizer.finish`."""
        text = self._text()
        return self._out(text.rstrip("\ufffd") if cut else text)

    def _text(self) -> str:
        before = _decode(self._tokenizer, self._before)
        return _decode(self._tokenizer, [*self._before, *self._new])[len(before) :]

    def _out(self, text: str) -> str:
        if text:
            self._before, self._new = self._new, []
        return text


@cached_per_tokenizer
def _choose(tokenizer: TokenizerWrapper) -> _Make:
    """The cheapest detokenizer that streams texts as this tokenizer decodes them.

    mlx-lm chooses by the type of the tokenizer's decoder. But some decoders do not fit their
    vocabulary: with SentencePiece's decoder, a vocabulary of bytes shows the letters that stand for
    spaces. If the bytes of the vocabulary give back the encoded text and the decoder does not, the
    vocabulary is right.
    """
    encoded = [(text, tokenizer.encode(text, add_special_tokens=False)) for text in _SAMPLES]
    decoded = [_decode(tokenizer, ids) for _, ids in encoded]

    def streamed(make: _Make) -> list[str] | None:
        try:
            return [_stream(make(tokenizer, False), ids) for _, ids in encoded]
        except Exception:  # the alphabet does not have these tokens
            return None

    texts = [text for text, _ in encoded]
    if decoded != texts and streamed(spelt := _spelt(tokenizer)) == texts:
        return spelt
    usual = _usual(tokenizer)
    if usual is not None and streamed(usual) == decoded and _same_alone(tokenizer, usual):
        return usual
    return lambda t, continues: DecodingDetokenizer(t, continues_text=continues)


def _usual(tokenizer: TokenizerWrapper) -> _Make | None:
    """The one that uses the token map of mlx-lm's own choice for the tokenizer."""
    from mlx_lm.tokenizer_utils import BPEStreamingDetokenizer, SPMStreamingDetokenizer

    streaming = tokenizer.detokenizer
    if isinstance(streaming, BPEStreamingDetokenizer):
        tokens = streaming.tokenmap
        return lambda t, continues: ByteDetokenizer(t, tokens)
    if isinstance(streaming, SPMStreamingDetokenizer):
        tokens, trims = streaming.tokenmap, streaming.trim_space
        return lambda t, continues: ByteDetokenizer(
            t, tokens, trim_first_space=trims and not continues
        )
    return None


def _spelt(tokenizer: TokenizerWrapper) -> _Make:
    """The one that uses the spelling of the vocabulary, as byte-level BPE has it."""
    tokens = tokenizer.convert_ids_to_tokens(list(range(len(tokenizer))))
    return lambda t, continues: ByteDetokenizer(t, tokens)


def _same_alone(tokenizer: TokenizerWrapper, make: _Make) -> bool:
    """Whether it agrees with the decoder on a sample of single tokens."""
    anchor = tokenizer.encode("a", add_special_tokens=False)[-1:]
    for token in range(0, len(tokenizer), max(1, len(tokenizer) // _ALONE)):
        ids = [*anchor, token]
        text = _decode(tokenizer, ids)
        if "\ufffd" not in text and _stream(make(tokenizer, False), ids) != text:
            return False
    return True


def _stream(detokenizer: Detokenizer, ids: Sequence[int]) -> str:
    return "".join(map(detokenizer.add, ids)) + detokenizer.finish()


def _decode(tokenizer: TokenizerWrapper, ids: Sequence[int]) -> str:
    return str(tokenizer.decode(list(ids), clean_up_tokenization_spaces=False))


def _beyond(tokenizer: TokenizerWrapper, token: int) -> str | None:
    """The spelling of an id beyond the number of tokens, since vocabularies may have gaps."""
    try:
        spelling: str | None = tokenizer.convert_ids_to_tokens(token)
    except OverflowError:
        return None
    return spelling


@lru_cache(maxsize=2**16)
def _bytes(spelling: str | bytes) -> bytes:
    if isinstance(spelling, bytes):
        return spelling.replace(_SPACE, b" ")
    values = _byte_values()
    try:
        return bytes([values[char] for char in spelling])
    except KeyError:
        return spelling.encode()  # an added token is its own text


@lru_cache(maxsize=1)
def _byte_values() -> dict[str, int]:
    """GPT-2's alphabet: printable Latin-1 as itself, the other bytes from U+0100 on."""
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {
        chr(256 + i): byte for i, byte in enumerate(others)
    }
