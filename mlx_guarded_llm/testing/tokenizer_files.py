"""Write a real tokenizer: byte-level BPE, as GPT-2, Llama 3 and Qwen use it.

All 256 bytes are tokens, so any text survives encode and decode, and a character
beyond ASCII is spread over several tokens unless a merge joins them.
"""

from __future__ import annotations

import itertools
import json
import string
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

END_OF_TURN = "<|im_end|>"
PADDING = "<|endoftext|>"
THINKING_TOKENS = ("<think>", "</think>")
TOOL_TOKENS = ("<tool_call>", "</tool_call>")


def _byte_alphabet() -> tuple[str, ...]:
    """The printable character that stands for each byte (GPT-2's `bytes_to_unicode`)."""
    kept = {*range(33, 127), *range(161, 173), *range(174, 256)}
    spare = itertools.count(256)
    return tuple(chr(byte) if byte in kept else chr(next(spare)) for byte in range(256))


ALPHABET = _byte_alphabet()


def spell(piece: bytes) -> str:
    """The vocabulary entry of a token that decodes to `piece`."""
    return "".join(ALPHABET[byte] for byte in piece)


@dataclass(frozen=True)
class Vocabulary:
    """Token ids of one tokenizer.

    Attributes:
        bpe: vocabulary entry -> id: first the 256 bytes in order, then longer tokens.
        merges: pairs of entries that encode joins, most wanted first.
        added: added tokens (special, thinking, tools) -> id, after all of `bpe`.
    """

    bpe: Mapping[str, int]
    merges: tuple[tuple[str, str], ...]
    added: Mapping[str, int]

    def __len__(self) -> int:
        return len(self.bpe) + len(self.added)

    @property
    def eos_token_id(self) -> int:
        """The token that ends an answer."""
        return self.added[END_OF_TURN]

    @property
    def padding_token_id(self) -> int:
        """The token that pads a batch; it never appears in an answer."""
        return self.added[PADDING]


def build_vocabulary(
    *,
    thinking: bool = False,
    tools: bool = False,
    merges_up_to: int = 0,
    unreachable: tuple[str, ...] = (),
) -> Vocabulary:
    """Number the tokens.

    Args:
        thinking: add the thinking markers.
        tools: add the tool call markers.
        merges_up_to: fill the vocabulary with merges of letters up to this size.
        unreachable: entries that decode, but that encode never produces.
    """
    added = [PADDING, "<|im_start|>", END_OF_TURN]
    added += THINKING_TOKENS if thinking else ()
    added += TOOL_TOKENS if tools else ()
    entries = [*ALPHABET, *unreachable]
    room = max(0, merges_up_to - len(entries) - len(added))
    merges = tuple(itertools.islice(_letter_merges(), room))
    entries += [left + right for left, right in merges]
    return Vocabulary(
        bpe={entry: number for number, entry in enumerate(entries)},
        merges=merges,
        added={token: len(entries) + number for number, token in enumerate(added)},
    )


def _letter_merges() -> Iterator[tuple[str, str]]:
    """Endless for our purposes: a space and a letter, two letters, three, four."""
    letters = string.ascii_lowercase
    for letter in letters:
        yield spell(b" "), letter
    for length in (2, 3, 4):
        for word in itertools.product(letters, repeat=length):
            yield "".join(word[:-1]), word[-1]


def write_tokenizer(
    folder: Path, vocabulary: Vocabulary, *, chat_template: str | None, context_window: int
) -> None:
    """Write tokenizer.json, tokenizer_config.json and, if any, chat_template.jinja."""
    markers = {*THINKING_TOKENS, *TOOL_TOKENS}
    byte_level = {
        "type": "ByteLevel",
        "add_prefix_space": False,
        "trim_offsets": True,
        "use_regex": True,
    }
    tokenizer = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [
            {
                "id": number,
                "content": token,
                "single_word": False,
                "lstrip": False,
                "rstrip": False,
                "normalized": False,
                # As in Qwen 3: decoding with skip_special_tokens keeps the markers.
                "special": token not in markers,
            }
            for token, number in vocabulary.added.items()
        ],
        "normalizer": None,
        "pre_tokenizer": byte_level,
        "post_processor": None,
        "decoder": byte_level,
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": False,
            "ignore_merges": False,
            "vocab": dict(vocabulary.bpe),
            "merges": [list(pair) for pair in vocabulary.merges],
        },
    }
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "eos_token": END_OF_TURN,
        "pad_token": PADDING,
        "model_max_length": context_window,
        "clean_up_tokenization_spaces": False,
    }
    write_json(folder / "tokenizer.json", tokenizer)
    write_json(folder / "tokenizer_config.json", config)
    if chat_template is not None:
        (folder / "chat_template.jinja").write_text(chat_template, encoding="utf-8")


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write one JSON file, UTF-8, readable by a person."""
    path.write_text(json.dumps(content, indent=1, ensure_ascii=False), encoding="utf-8")
