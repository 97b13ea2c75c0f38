"""A model whose greedy answer is a given text.

It is a real Llama whose attention and feed-forward blocks add nothing, so the next token
depends on the last one alone: a Markov chain. The text is cut into pieces,
each its own token; the head leads from each piece to the next, from any other token
to the first piece, and from the last piece to the end of the turn.

A model with several answers has a chain for each. Its chat template chooses the next one, mostly
by how many the conversation already has, and ends with a byte that no text contains, from which
the head leads to that answer.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from safetensors.numpy import save_file

from mlx_guarded_llm.testing.architectures import ARCHITECTURES, Sizes
from mlx_guarded_llm.testing.chat_templates import Thinking, choose_template
from mlx_guarded_llm.testing.tokenizer_files import (
    THINKING_TOKENS,
    TOOL_TOKENS,
    Vocabulary,
    build_vocabulary,
    spell,
    write_json,
    write_tokenizer,
)

CERTAIN = 60.0
"""Logit of the scripted token, so far above the others that sampling follows it too."""

_SEEDS = 8  # tried before the hidden size is doubled
_TURNS = "\x01\x02\x03\x04\x05\x06\x07\x08"

_ANSWERED = 'messages | selectattr("role", "equalto", "assistant") | list | length'


def make_scripted_model(
    folder: str | Path,
    text: str,
    *,
    later: Sequence[str] = (),
    turn: str = _ANSWERED,
    piece_bytes: int = 3,
    loop: bool = False,
    context_window: int = 2048,
    chat_template: bool | str | None = True,
    thinking: Thinking = False,
    tools: bool = False,
) -> Path:
    """Write a model that answers `text` to any prompt and then ends its turn.

    A prompt that ends with the first pieces of the answer (as when an answer is
    resumed by tokens) is continued where it stopped.

    Args:
        folder: where to write; made if missing.
        text: the answer. Markers such as `<think>` are single tokens at their first
            appearance if `thinking` or `tools` is set. mlx-lm's detokenizer drops one
            leading space, so it is refused.
        later: the answers to conversations that have one answer already, two, and so on. The
            last of them answers all longer ones.
        turn: which of the answers is next, from 0; a Jinja expression about `messages`.
        piece_bytes: about how many bytes of UTF-8 one token carries, at least 2; a
            piece grows where it would be the same as another. Characters are cut
            through wherever the count says so.
        loop: begin again at the end instead of ending the turn.
        context_window: `max_position_embeddings` of the config.
        chat_template: as for `make_tiny_model`.
        thinking: as for `make_tiny_model`.
        tools: as for `make_tiny_model`.

    Returns:
        The folder.

    Raises:
        ValueError: an empty text or a leading space, `piece_bytes` below 2, more later answers
            than there are bytes for them, or later answers without a chat template.
    """
    texts = (text, *later)
    if any(not each or each.startswith(" ") for each in texts):
        raise ValueError("the text must not be empty or begin with a space")
    if len(later) > len(_TURNS):
        raise ValueError(f"there are {len(later)} later answers; {len(_TURNS)} are the most")
    if piece_bytes < 2:
        raise ValueError(f"piece_bytes is {piece_bytes}; single bytes are prompt tokens")
    markers = (THINKING_TOKENS if thinking else ()) + (TOOL_TOKENS if tools else ())
    scripts = cut(*texts, piece_bytes=piece_bytes, markers=markers)
    steps = [step for script in scripts for step in script]
    pieces = tuple(step for step in steps if step not in markers and len(step) > 1)
    vocabulary = build_vocabulary(thinking=bool(thinking), tools=tools, unreachable=pieces)
    template = choose_template(chat_template, thinking=thinking, tools=tools)
    if later:
        if template is None:
            raise ValueError("later answers need a chat template, which counts the earlier ones")
        turns = _TURNS[: len(later)]
        template += (
            f"{{%- if add_generation_prompt %}}{{{{- {turns!r}[:{turn}][-1:] }}}}{{%- endif %}}"
        )

    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    sizes, tensors = _chains(scripts, vocabulary, loop=loop, context_window=context_window)
    config: dict[str, Any] = {
        "model_type": "llama",
        "architectures": ["LlamaForCausalLM"],
        "vocab_size": sizes.vocab_size,
        "max_position_embeddings": context_window,
        "eos_token_id": vocabulary.eos_token_id,
        "pad_token_id": vocabulary.padding_token_id,
        "torch_dtype": "float32",
        **ARCHITECTURES["llama"].config(sizes),
    }
    write_json(folder / "config.json", config)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "mlx"})
    write_tokenizer(folder, vocabulary, chat_template=template, context_window=context_window)
    return folder


def cut(*texts: str, piece_bytes: int, markers: tuple[str, ...] = ()) -> list[list[str]]:
    """Cut texts into vocabulary entries, no two of them the same.

    Args:
        texts: what the entries of each script together decode to.
        piece_bytes: bytes per piece, unless a piece must grow to be unique.
        markers: tokens that are taken whole at their first appearance.
    """
    pieces: set[bytes] = set()
    left = [*markers]  # those that have not appeared
    scripts = []
    for text in texts:
        script: list[str] = []
        for segment in _segments(text, left):
            if segment in left:
                left.remove(segment)
                script.append(segment)
            elif segment:
                script += [
                    spell(piece) for piece in _unique_pieces(segment.encode(), piece_bytes, pieces)
                ]
        scripts.append(script)
    return scripts


def _segments(text: str, markers: Sequence[str]) -> list[str]:
    """The text split at the first appearance of each marker; the markers are segments too."""
    pattern = "|".join(re.escape(marker) for marker in markers)
    segments: list[str] = []
    rest = text
    for marker in re.findall(pattern, text) if markers else []:
        if marker in segments:
            continue
        before, _, rest = rest.partition(marker)
        segments += [before, marker]
    return [*segments, rest]


def _unique_pieces(segment: bytes, piece_bytes: int, taken: set[bytes]) -> list[bytes]:
    """Cut one segment into pieces that are not taken yet, and take them."""
    pieces: list[bytes] = []
    start = 0
    while start < len(segment):
        end = start + piece_bytes
        while segment[start:end] in taken and end < len(segment):
            end += 1
        piece = segment[start:end]
        # What is left at the end may be too short or known: join it to its neighbour.
        while (len(piece) < 2 or piece in taken) and pieces:
            taken.remove(pieces[-1])
            piece = pieces.pop() + piece
        if len(piece) < 2 or piece in taken:
            return _single_bytes(segment, taken)
        pieces.append(piece)
        taken.add(piece)
        start = end
    return pieces


def _single_bytes(segment: bytes, taken: set[bytes]) -> list[bytes]:
    """The last resort: tokens of the prompt, which then lead into the script's middle."""
    pieces = [bytes([byte]) for byte in segment]
    if len({*pieces}) < len(pieces) or taken & {*pieces} or b"\n" in pieces:
        raise ValueError(f"{segment.decode(errors='replace')!r} cannot be cut into unique tokens")
    taken.update(pieces)
    return pieces


def _chains(
    scripts: Sequence[Sequence[str]], vocabulary: Vocabulary, *, loop: bool, context_window: int
) -> tuple[Sizes, dict[str, npt.NDArray[np.float32]]]:
    """Weights of the Markov chains.

    Each state (no step of a script yet, after step 1, after step 2, ...) has a random code of
    +1 and -1. A token's embedding is the code of the state it leaves the chain in; the
    head's row of a token is the code of the state that leads to it. The codes have
    unit mean square, so RMSNorm leaves them as they are.
    """
    ids = {**vocabulary.bpe, **vocabulary.added}
    vocab_size = -(-len(vocabulary) // 64) * 64
    state_of = np.zeros(vocab_size, dtype=np.int64)  # any other token begins the first script
    leads: list[tuple[int, int]] = []  # a state, and the token that follows it
    states = 0
    for script, turn in zip(scripts, ("", *_TURNS), strict=False):
        tokens = [ids[step] for step in script]
        if turn:
            state_of[ids[spell(turn.encode())]] = states
        state_of[tokens] = np.arange(states + 1, states + 1 + len(tokens))
        goal = tokens[0] if loop else vocabulary.eos_token_id
        leads += zip(range(states, states + 1 + len(tokens)), (*tokens, goal), strict=True)
        states += 1 + len(tokens)
    hidden, seed = 128, 0
    while True:
        codes = np.random.default_rng((hidden, seed)).choice((-1.0, 1.0), (states, hidden))
        head = np.zeros((vocab_size, hidden))
        for state, token in leads:
            head[token] += codes[state]
        if _margin(codes @ head.T, leads) > hidden / 2:
            break
        hidden, seed = (hidden, seed + 1) if seed < _SEEDS else (2 * hidden, 0)
    sizes = Sizes(vocab_size, hidden, layers=1, context_window=context_window)
    tensors = {
        name: np.full(shape, 1.0 if "norm" in name else 0.0, dtype=np.float32)
        for name, shape in ARCHITECTURES["llama"].shapes(sizes).items()
    }
    tensors["model.embed_tokens.weight"] = codes[state_of].astype(np.float32)
    tensors["lm_head.weight"] = (head * CERTAIN / hidden).astype(np.float32)
    return sizes, tensors


def _margin(logits: npt.NDArray[np.float64], leads: Sequence[tuple[int, int]]) -> float:
    """By how much the logit of each state's token is above those of all others, at least."""
    states, tokens = np.array(leads).T
    others = logits.copy()
    others[states, tokens] = -np.inf
    return float((logits[states, tokens] - others[states].max(axis=1)).min())
