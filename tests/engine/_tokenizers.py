"""Small real tokenizers of several kinds, loaded as the engine loads them."""

import json
import tempfile
from functools import cache
from pathlib import Path
from typing import Any

import mlx_lm  # noqa: F401 - the first import of MLX, on the main thread
from tokenizers import (
    AddedToken,
    Regex,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
)

from mlx_guarded_llm.engine.output.pipeline import Piece, TextPipeline
from mlx_guarded_llm.engine.prompt.prompt import Prompt, encode_prompt
from mlx_guarded_llm.engine.prompt.tokenizer import load_tokenizer
from mlx_guarded_llm.models.chat import read_chat
from mlx_guarded_llm.models.files import read_object, read_optional
from mlx_guarded_llm.models.spec import ModelFiles, ModelSpec
from mlx_guarded_llm.params import SamplingParams
from mlx_guarded_llm.request import PromptRequest
from mlx_guarded_llm.results import FinishReason, InvalidToolCall, ToolCall
from mlx_guarded_llm.testing.chat_templates import chatml
from mlx_guarded_llm.testing.tokenizer_files import Vocabulary, build_vocabulary, write_tokenizer

CONTEXT = 4096
THINK = ("<think>", "</think>")

TOOL = {
    "type": "function",
    "function": {
        "name": "weather",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string"}, "days": {"type": "integer"}},
        },
    },
}

_SHOWN_TOOLS = "{% if tools %}{{ tools | tojson }}{% endif %}"

# Each names in its template what mlx-lm chooses the parser by, as the real ones do.
PARSERS = {
    "json_tools": ("<tool_call>", "</tool_call>", "{# <tool_call> tool_call.name #}"),
    "qwen3_coder": ("<tool_call>", "</tool_call>", "{# <tool_call>\n<function= #}"),
    "pythonic": ("<|tool_call_start|>", "<|tool_call_end|>", "{# <|tool_call_start|> #}"),
    "mistral": ("[TOOL_CALLS]", "", "{# [TOOL_CALLS] #}"),
}


def files(folder: Path) -> ModelFiles:
    config = read_object(folder / "config.json")
    generation = read_optional(folder / "generation_config.json")
    settings = read_optional(folder / "tokenizer_config.json")
    return ModelFiles(
        spec=ModelSpec(name="tiny", kind="folder", location=str(folder)),
        path=folder,
        config=config,
        generation=generation,
        chat=read_chat(folder, config, generation=generation, settings=settings),
        weight_files=(),
        weight_bytes=0,
        fingerprint="",
        context_window=CONTEXT,
    )


def byte_level(
    template: str | None, *, added: tuple[str, ...] = (), folder: Path | None = None
) -> Any:
    """Byte-level BPE with a few merges and these added tokens."""
    folder = folder or Path(tempfile.mkdtemp())
    plain = build_vocabulary(merges_up_to=400)
    first = len(plain)
    vocabulary = Vocabulary(
        bpe=plain.bpe,
        merges=plain.merges,
        added={**plain.added, **{token: first + i for i, token in enumerate(added)}},
    )
    write_tokenizer(folder, vocabulary, chat_template=template, context_window=CONTEXT)
    config = {"model_type": "llama", "eos_token_id": vocabulary.eos_token_id}
    (folder / "config.json").write_text(json.dumps(config))
    return load_tokenizer(files(folder))


@cache
def plain() -> Any:
    return byte_level(chatml())


@cache
def base() -> Any:
    """Of a base model: no chat template."""
    return byte_level(None)


@cache
def thinker(opens: bool = False) -> Any:
    return byte_level(chatml(thinking="open" if opens else True), added=THINK)


@cache
def caller(parser: str, *, thinking: bool = True) -> Any:
    """A tokenizer for which mlx-lm chooses this tool parser."""
    start, end, mention = PARSERS[parser]
    template = mention + _SHOWN_TOOLS + chatml(thinking=thinking)
    markers = tuple(marker for marker in (start, end) if marker)
    return byte_level(template, added=(*THINK, *markers) if thinking else markers)


@cache
def normalizing(*, cleans: bool = False) -> Any:
    """One that looks for its control tokens in the normalized text.

    Args:
        cleans: private characters are taken out as well.
    """
    words = ["<unk>", *map(chr, range(32, 127)), "\n", "\u4f60"]
    tokenizer = Tokenizer(models.BPE(vocab={w: i for i, w in enumerate(words)}, merges=[]))
    clean = [normalizers.Replace(Regex("\\p{Co}"), "")] if cleans else []
    tokenizer.normalizer = normalizers.Sequence(
        [
            *clean,
            normalizers.NFKC(),
            normalizers.Lowercase(),
            normalizers.NFD(),
            normalizers.StripAccents(),
        ]
    )
    tokenizer.add_tokens(
        [
            AddedToken(token, normalized=True, special=token not in THINK)
            for token in ("<|im_start|>", "<|im_end|>", *THINK)
        ]
    )
    tokenizer.decoder = decoders.Fuse()
    return _save(tokenizer, "<unk>", template=chatml())


@cache
def sentencepiece() -> Any:
    """As Llama 2 has it: a space is U+2581, unknown characters are byte tokens."""
    words = ["<unk>", *(f"<0x{byte:02X}>" for byte in range(256)), "\u2581", "\u2581the"]
    words += map(chr, range(33, 127))
    vocabulary = {word: i for i, word in enumerate(words)}
    tokenizer = Tokenizer(
        models.BPE(
            vocab=vocabulary, merges=[], unk_token="<unk>", byte_fallback=True, fuse_unk=True
        )
    )
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.Prepend("\u2581"), normalizers.Replace(" ", "\u2581")]
    )
    tokenizer.decoder = decoders.Sequence(
        [
            decoders.Replace("\u2581", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(content=" ", left=1, right=0),
        ]
    )
    return _save(tokenizer, "<unk>")


@cache
def metaspace() -> Any:
    """One for which mlx-lm knows no streaming decoder and decodes again and again."""
    words = ["<unk>", "\u2581", "\n", "你", "é", *map(chr, range(33, 127))]
    tokenizer = Tokenizer(models.BPE(vocab={w: i for i, w in enumerate(words)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="never", split=False)
    tokenizer.decoder = decoders.Metaspace(prepend_scheme="never", split=False)
    return _save(tokenizer, "<unk>")


def _save(tokenizer: Tokenizer, unknown: str, *, template: str | None = None) -> Any:
    folder = Path(tempfile.mkdtemp())
    tokenizer.save(str(folder / "tokenizer.json"))
    config: dict[str, Any] = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "unk_token": unknown,
        "clean_up_tokenization_spaces": False,
    }
    if template is not None:
        config["chat_template"] = template
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    (folder / "config.json").write_text(json.dumps({"model_type": "llama"}))
    return load_tokenizer(files(folder))


def chat(tokenizer: Any, **options: Any) -> Prompt:
    """The prompt "Hi" to a chat model, with the one tool when it can call."""
    options.setdefault("tools", [TOOL] if tokenizer.has_tool_calling else [])
    return encode_prompt(tokenizer, PromptRequest("Hi", **options), context_window=CONTEXT)


class Answer:
    """What a pipeline made of some tokens, all pieces put together."""

    def __init__(
        self,
        tokenizer: Any,
        tokens: list[int] | str,
        *,
        prompt: Prompt | None = None,
        stop: tuple[str, ...] = (),
        reason: FinishReason = "stop",
    ) -> None:
        if isinstance(tokens, str):
            ids: list[int] = tokenizer.encode(tokens, add_special_tokens=False)
        else:
            ids = tokens
        pipeline = TextPipeline(tokenizer, prompt or chat(tokenizer), SamplingParams(stop=stop))
        self.pieces: list[Piece] = []
        for token in ids:
            if piece := pipeline.feed(token):
                self.pieces.append(piece)
                if piece.stopped:
                    break
        self.streamed = "".join(piece.text for piece in self.pieces)
        self.pieces.append(pipeline.finish(reason))
        self.reason = self.pieces[-1].finish_reason
        self.stopped = self.pieces[-1].stopped

    @property
    def text(self) -> str:
        return "".join(piece.text for piece in self.pieces)

    @property
    def reasoning(self) -> str:
        return "".join(piece.reasoning for piece in self.pieces)

    @property
    def calls(self) -> list[ToolCall]:
        return [call for piece in self.pieces for call in piece.tool_calls]

    @property
    def invalid(self) -> list[InvalidToolCall]:
        return [call for piece in self.pieces for call in piece.invalid_tool_calls]

    def called(self) -> list[tuple[str, Any]]:
        return [(call.name, call.arguments) for call in self.calls]
