"""A GGUF vocabulary as tokenizer.json and tokenizer_config.json."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ...errors import ModelInvalid, ModelUnsupported
from .header import GGUFHeader

_CONTROL, _USER_DEFINED = 3, 4  # values of tokenizer.ggml.token_type
_SPACE = "\u2581"  # how SentencePiece writes a space

# How text is split before byte-pair merges, by the value of tokenizer.ggml.pre. Each is the
# pre-tokenizer of the model's own tokenizer.json.
_LLAMA3_PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def _byte_level(*, use_regex: bool) -> dict[str, Any]:
    return {
        "type": "ByteLevel",
        "add_prefix_space": False,
        "trim_offsets": True,
        "use_regex": use_regex,
    }


_PRE_TOKENIZERS: dict[str, dict[str, Any]] = {
    "gpt-2": _byte_level(use_regex=True),
    "smollm": {
        "type": "Sequence",
        "pretokenizers": [
            {"type": "Digits", "individual_digits": True},
            _byte_level(use_regex=True),
        ],
    },
    "llama-bpe": {
        "type": "Sequence",
        "pretokenizers": [
            {
                "type": "Split",
                "pattern": {"Regex": _LLAMA3_PATTERN},
                "behavior": "Isolated",
                "invert": False,
            },
            _byte_level(use_regex=False),
        ],
    },
}


def tokenizer_files(header: GGUFHeader, source: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """The contents of tokenizer.json and tokenizer_config.json.

    Args:
        header: of the GGUF file.
        source: names the file in messages.

    Raises:
        ModelUnsupported: the type of the tokenizer is not supported; the message names it.
        ModelInvalid: the vocabulary is incomplete.
    """
    tokens = _strings(header, source, "tokens")
    kind = header.metadata.get("tokenizer.ggml.model")
    if kind == "gpt2":
        body = _byte_pair(header, source, tokens)
    elif kind == "llama":
        body = _sentencepiece(header, source, tokens)
    else:
        raise ModelUnsupported(
            f"{source} has a tokenizer of the kind {kind!r}; gpt2 and llama are imported.",
            hint="Use a safetensors version of the model.",
        )
    special = {
        f"{name}_token": tokens[token]
        for name, key in (("bos", "bos"), ("eos", "eos"), ("unk", "unknown"), ("pad", "padding"))
        if (token := _token_id(header, key, len(tokens))) is not None
    }
    bos = special.get("bos_token")
    # A SentencePiece model expects its bos token unless the file says otherwise.
    add_bos = header.metadata.get("tokenizer.ggml.add_bos_token", kind == "llama")
    tokenizer = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": _added_tokens(header, tokens),
        "post_processor": _begin_with(bos, tokens.index(bos)) if bos and add_bos else None,
        **body,
    }
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "clean_up_tokenization_spaces": False,
        "model_max_length": header.metadata.get("llama.context_length"),
        **special,
    }
    if template := header.metadata.get("tokenizer.chat_template"):
        config["chat_template"] = template
    return tokenizer, config


def stop_tokens(header: GGUFHeader) -> list[int]:
    """The ids that end an answer: end of sequence and, if it differs, end of turn."""
    size = len(header.metadata.get("tokenizer.ggml.tokens", ()))
    ids = (_token_id(header, key, size) for key in ("eos", "eot"))
    return list(dict.fromkeys(token for token in ids if token is not None))


def _byte_pair(header: GGUFHeader, source: str, tokens: Sequence[str]) -> dict[str, Any]:
    pre = header.metadata.get("tokenizer.ggml.pre")
    if pre not in _PRE_TOKENIZERS:
        raise ModelUnsupported(
            f"{source} has the pre-tokenizer {pre!r}; {', '.join(_PRE_TOKENIZERS)} are imported.",
            hint="Use a safetensors version of the model.",
        )
    return {
        "normalizer": None,
        "pre_tokenizer": _PRE_TOKENIZERS[pre],
        "decoder": _byte_level(use_regex=True),
        "model": {
            "type": "BPE",
            "ignore_merges": pre == "llama-bpe",
            "vocab": {token: i for i, token in enumerate(tokens)},
            "merges": [pair.split(" ", 1) for pair in _strings(header, source, "merges")],
        },
    }


def _sentencepiece(header: GGUFHeader, source: str, tokens: Sequence[str]) -> dict[str, Any]:
    scores = header.metadata.get("tokenizer.ggml.scores")
    if not isinstance(scores, list) or len(scores) != len(tokens):
        raise ModelInvalid(
            f"{source}: tokenizer.ggml.scores does not match the tokens.", hint="Download it again."
        )
    prefix = header.metadata.get("tokenizer.ggml.add_space_prefix", True)
    unknown = _token_id(header, "unknown", len(tokens))
    spaces = {"type": "Replace", "pattern": {"String": " "}, "content": _SPACE}
    steps = [{"type": "Prepend", "prepend": _SPACE}, spaces] if prefix else [spaces]
    decoders: list[dict[str, Any]] = [
        {"type": "Replace", "pattern": {"String": _SPACE}, "content": " "},
        {"type": "ByteFallback"},
        {"type": "Fuse"},
    ]
    if prefix:
        decoders.append({"type": "Strip", "content": " ", "start": 1, "stop": 0})
    return {
        "normalizer": {"type": "Sequence", "normalizers": steps},
        "pre_tokenizer": None,
        "decoder": {"type": "Sequence", "decoders": decoders},
        "model": {
            "type": "BPE",
            "byte_fallback": True,
            "fuse_unk": True,
            "unk_token": None if unknown is None else tokens[unknown],
            "vocab": {token: i for i, token in enumerate(tokens)},
            "merges": _merges_by_score(tokens, scores),
        },
    }


def _merges_by_score(tokens: Sequence[str], scores: Sequence[float]) -> list[list[str]]:
    """SentencePiece joins the pair with the best score first: the merges in that order."""
    ids = {token: i for i, token in enumerate(tokens)}
    merges = [
        (-score, ids[token[:cut]], ids[token[cut:]])
        for token, score in zip(tokens, scores, strict=True)
        for cut in range(1, len(token))
        if token[:cut] in ids and token[cut:] in ids
    ]
    return [[tokens[left], tokens[right]] for _, left, right in sorted(merges)]


def _added_tokens(header: GGUFHeader, tokens: Sequence[str]) -> list[dict[str, Any]]:
    types = header.metadata.get("tokenizer.ggml.token_type") or []
    return [
        {
            "id": i,
            "content": token,
            "single_word": False,
            "lstrip": False,
            "rstrip": False,
            "normalized": False,
            "special": kind == _CONTROL,
        }
        for i, (token, kind) in enumerate(zip(tokens, types, strict=False))
        if kind in (_CONTROL, _USER_DEFINED)
    ]


def _begin_with(token: str, number: int) -> dict[str, Any]:
    begin = {"SpecialToken": {"id": token, "type_id": 0}}
    first = {"Sequence": {"id": "A", "type_id": 0}}
    second = {"Sequence": {"id": "B", "type_id": 1}}
    return {
        "type": "TemplateProcessing",
        "single": [begin, first],
        "pair": [begin, first, second],
        "special_tokens": {token: {"id": token, "ids": [number], "tokens": [token]}},
    }


def _strings(header: GGUFHeader, source: str, key: str) -> list[str]:
    values = header.metadata.get(f"tokenizer.ggml.{key}")
    if not isinstance(values, list) or not all(isinstance(value, str) for value in values):
        raise ModelInvalid(f"{source} has no tokenizer.ggml.{key}.", hint="Download it again.")
    return values


def _token_id(header: GGUFHeader, key: str, size: int) -> int | None:
    token = header.metadata.get(f"tokenizer.ggml.{key}_token_id")
    return token if isinstance(token, int) and 0 <= token < size else None
