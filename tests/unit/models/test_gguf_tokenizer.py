from __future__ import annotations

import json
from typing import Any

import pytest
from tokenizers import Tokenizer

from mlx_guarded_llm.errors import ModelInvalid, ModelUnsupported
from mlx_guarded_llm.models.gguf.header import GGUFHeader
from mlx_guarded_llm.models.gguf.tokenizer import stop_tokens, tokenizer_files
from tests.unit.models.gguf_files import BYTE_PAIR

SENTENCEPIECE: dict[str, Any] = {
    "tokenizer.ggml.model": "llama",
    "tokenizer.ggml.tokens": [
        "<unk>",
        "<s>",
        "</s>",
        "<0x21>",
        "\u2581",
        "h",
        "i",
        "hi",
        "\u2581hi",
        "\u2581h",
    ],
    "tokenizer.ggml.scores": [0.0, 0.0, 0.0, 0.0, -9.0, -8.0, -7.0, -1.0, -2.0, -3.0],
    "tokenizer.ggml.token_type": [2, 3, 3, 6, 1, 1, 1, 1, 1, 1],
    "tokenizer.ggml.bos_token_id": 1,
    "tokenizer.ggml.eos_token_id": 2,
    "tokenizer.ggml.unknown_token_id": 0,
}


def _load(metadata: dict[str, Any]) -> tuple[Tokenizer, dict[str, Any]]:
    tokenizer, config = tokenizer_files(GGUFHeader(metadata, {}), "m.gguf")
    return Tokenizer.from_str(json.dumps(tokenizer)), config


def test_byte_pairs_merge_and_come_back() -> None:
    tokenizer, config = _load(BYTE_PAIR)
    encoded = tokenizer.encode("abc abc12<eos>")
    assert encoded.tokens == ["abc", "Ġ", "abc", "1", "2", "<eos>"]
    assert tokenizer.decode(encoded.ids) == "abc abc12"
    assert config["eos_token"] == "<eos>"
    assert config["chat_template"] == BYTE_PAIR["tokenizer.chat_template"]


@pytest.mark.parametrize("pre", ["gpt-2", "smollm", "llama-bpe"])
def test_the_known_pre_tokenizers_load(pre: str) -> None:
    tokenizer, _ = _load({**BYTE_PAIR, "tokenizer.ggml.pre": pre})
    assert tokenizer.decode(tokenizer.encode("abc 12").ids) == "abc 12"


def test_bos_is_added_when_the_file_says_so() -> None:
    tokenizer, _ = _load({**BYTE_PAIR, "tokenizer.ggml.add_bos_token": True})
    assert tokenizer.encode("a").tokens == ["<bos>", "a"]
    assert tokenizer.encode("a", add_special_tokens=False).tokens == ["a"]


def test_sentencepiece_merges_by_score_and_falls_back_to_bytes() -> None:
    tokenizer, _ = _load(SENTENCEPIECE)
    encoded = tokenizer.encode("hi!")
    # h+i scores best, then the space joins it; "!" is no token but a byte.
    assert encoded.tokens == ["<s>", "\u2581hi", "<0x21>"]
    assert tokenizer.decode(encoded.ids) == "hi!"


def test_sentencepiece_without_its_prefix() -> None:
    tokenizer, _ = _load({**SENTENCEPIECE, "tokenizer.ggml.add_space_prefix": False})
    assert tokenizer.encode("hi").tokens == ["<s>", "hi"]


def test_end_of_turn_stops_too() -> None:
    metadata = {**BYTE_PAIR, "tokenizer.ggml.eot_token_id": 3}
    assert stop_tokens(GGUFHeader(metadata, {})) == [2, 3]
    metadata = {**BYTE_PAIR, "tokenizer.ggml.eot_token_id": 10**6}
    assert stop_tokens(GGUFHeader(metadata, {})) == [2]


@pytest.mark.parametrize(
    ("changes", "message"),
    [({"tokenizer.ggml.model": "bert"}, "'bert'"), ({"tokenizer.ggml.pre": "qwen2"}, "'qwen2'")],
)
def test_other_tokenizers_are_refused_by_name(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ModelUnsupported, match=message):
        _load({**BYTE_PAIR, **changes})


@pytest.mark.parametrize(
    "metadata",
    [
        {**BYTE_PAIR, "tokenizer.ggml.tokens": None},
        {**BYTE_PAIR, "tokenizer.ggml.tokens": [1, 2]},
        {**BYTE_PAIR, "tokenizer.ggml.merges": None},
        {**SENTENCEPIECE, "tokenizer.ggml.scores": [1.0]},
    ],
)
def test_incomplete_vocabularies_are_invalid(metadata: dict[str, Any]) -> None:
    with pytest.raises(ModelInvalid) as caught:
        _load(metadata)
    assert caught.value.hint
