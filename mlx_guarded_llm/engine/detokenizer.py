"""Token ids in, whole characters out."""

from __future__ import annotations

import codecs
from collections.abc import Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from mlx_lm.tokenizer_utils import TokenizerWrapper


_SPACE = "\u2581".encode()  # SentencePiece's


class Detokenizer(Protocol):
    """Turns the tokens of one answer into text as they come."""

    def add(self, token: int) -> str:
        """The characters that this token completes. Unknown ids stand for no text."""

    def finish(self) -> str:
        """What was held back; an incomplete character becomes U+FFFD."""


def make_detokenizer(tokenizer: TokenizerWrapper, *, continues_text: bool = False) -> Detokenizer:
    """A detokenizer for one answer; together its pieces are `tokenizer.decode(tokens)`.

    Args:
        tokenizer: of the model.
        continues_text: the answer goes on where a text ends, so that a space in
            front of its first word is part of it (decode() of SentencePiece drops it).
    """
    from mlx_lm.tokenizer_utils import BPEStreamingDetokenizer, SPMStreamingDetokenizer

    streaming = tokenizer.detokenizer
    if isinstance(streaming, BPEStreamingDetokenizer):
        return ByteDetokenizer(tokenizer, streaming.tokenmap)
    if isinstance(streaming, SPMStreamingDetokenizer):
        trim = streaming.trim_space and not continues_text
        return ByteDetokenizer(tokenizer, streaming.tokenmap, trim_first_space=trim)
    return StreamingDetokenizer(tokenizer, streaming)


class ByteDetokenizer:
    """For vocabularies in which a token stands for some bytes of UTF-8.

    It reads mlx-lm's token maps but not through its detokenizers: that for byte-level
    BPE drops a first space, shows NUL as a letter and an id of a padded embedding as
    "!", and can fail at the end of an answer; that for SentencePiece drops every
    space in front of the first word; and both copy the whole answer for each token.
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

    def finish(self) -> str:
        """See `Detokenizer.finish`."""
        return self._show(self._decode(b"", True))

    def _show(self, text: str) -> str:
        if self._trim and text:
            self._trim = False
            return text.removeprefix(" ")
        return text


class StreamingDetokenizer:
    """For every other tokenizer: the one that mlx-lm chose for it."""

    def __init__(self, tokenizer: TokenizerWrapper, streaming: Any) -> None:
        self._tokenizer = tokenizer
        self._streaming = streaming
        self._size = len(tokenizer)

    def add(self, token: int) -> str:
        """See `Detokenizer.add`."""
        if not 0 <= token < self._size:
            return ""
        self._streaming.add_token(token)
        return str(self._streaming.last_segment)

    def finish(self) -> str:
        """See `Detokenizer.finish`."""
        self._streaming.finalize()
        return str(self._streaming.last_segment)


def _beyond(tokenizer: TokenizerWrapper, token: int) -> str | None:
    """The spelling of an id above the count of tokens, since vocabularies have gaps."""
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
        return spelling.encode()  # an added token stands for itself


@lru_cache(maxsize=1)
def _byte_values() -> dict[str, int]:
    """GPT-2's alphabet: printable Latin-1 for itself, the other bytes from U+0100 on."""
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {
        chr(256 + i): byte for i, byte in enumerate(others)
    }
