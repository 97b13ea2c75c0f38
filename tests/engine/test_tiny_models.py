"""The models that other tests stand on, run by the real mlx-lm in processes of their own."""

from __future__ import annotations

import json
import subprocess
import sys
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer

from mlx_guarded_llm.testing.architectures import ARCHITECTURES
from mlx_guarded_llm.testing.quantize import quantize
from mlx_guarded_llm.testing.scripted import cut
from mlx_guarded_llm.testing.tiny import make_scripted_model, make_tiny_model
from mlx_guarded_llm.testing.tokenizer_files import ALPHABET

PRELUDE = """
import json, sys
import mlx.core as mx
import mlx_lm
from mlx_lm.generate import BatchGenerator
from mlx_lm.sample_utils import make_sampler

arguments = json.loads(sys.argv[1])

def chat(tokenizer, text, **kwargs):
    messages = [{"role": "user", "content": text}]
    return tokenizer.apply_chat_template(messages, add_generation_prompt=True, **kwargs)

def answer(model, tokenizer, prompt, max_tokens=48, **kwargs):
    stream = mlx_lm.stream_generate(model, tokenizer, prompt, max_tokens=max_tokens, **kwargs)
    responses = list(stream)
    return "".join(r.text for r in responses), [r.token for r in responses]
"""


def with_mlx(code: str, arguments: Any) -> Any:
    """Run code in a fresh process and return what its last line printed, as JSON."""
    run = subprocess.run(
        [sys.executable, "-c", PRELUDE + code, json.dumps(arguments)],
        capture_output=True,
        text=True,
        check=False,
        timeout=110,
    )
    assert run.returncode == 0, run.stderr
    return json.loads(run.stdout.splitlines()[-1])


class TestRandomModels:
    def test_every_architecture_generates(self, tmp_path: Path) -> None:
        folders = {
            f"{name}-{bits}": str(
                make_tiny_model(tmp_path / f"{name}-{bits}", architecture=name, quantize_bits=bits)
            )
            for name in ARCHITECTURES
            for bits in (None, 4)
        }
        results = with_mlx(
            """
results = {}
for name, folder in arguments.items():
    model, tokenizer = mlx_lm.load(folder)
    prompts = [chat(tokenizer, text) for text in ("Hello", "What is the capital of France?")]
    solo = [answer(model, tokenizer, prompt)[1] for prompt in prompts]
    again = answer(model, tokenizer, prompts[0])[1]
    batch = BatchGenerator(model, max_tokens=48)
    uids = batch.insert(prompts)
    tokens = {uid: [] for uid in uids}
    while responses := batch.next_generated():
        for response in responses:
            tokens[response.uid].append(response.token)
    results[name] = [solo, again, [tokens[uid] for uid in uids]]
print(json.dumps(results))
""",
            folders,
        )
        for name, (solo, again, batched) in results.items():
            assert solo[0] == again, name
            assert solo[0] != solo[1], f"{name} must listen to its prompt"
            assert all(len(tokens) == 48 for tokens in [*solo, *batched]), name
            assert all(len({*tokens}) >= 8 for tokens in solo), f"{name} is monotonous"
            # Not equality: a padded batch may round another way and tip a close choice.
            assert all(len({*tokens}) >= 8 for tokens in batched), name

    def test_options(self, tmp_path: Path) -> None:
        folders = {
            "plain": make_tiny_model(tmp_path / "plain"),
            "base": make_tiny_model(tmp_path / "base", chat_template=None),
            "own": make_tiny_model(tmp_path / "own", chat_template="{{ messages[0].content }}!"),
            "thinking": make_tiny_model(tmp_path / "thinking", thinking=True, tools=True),
            "open": make_tiny_model(tmp_path / "open", thinking="open"),
            "bpe": make_tiny_model(tmp_path / "bpe", tokenizer="bpe", vocab_size=2048),
            "nan": make_tiny_model(tmp_path / "nan", nan=True),
            "nan-mamba": make_tiny_model(tmp_path / "nan-mamba", architecture="mamba", nan=True),
            "half": make_tiny_model(tmp_path / "half", dtype="float16", layers=1),
        }
        facts = with_mlx(
            """
facts = {}
for name, folder in arguments.items():
    model, tokenizer = mlx_lm.load(folder)
    fact = facts[name] = {
        "chat": tokenizer.has_chat_template,
        "thinking": tokenizer.has_thinking,
        "tools": tokenizer.has_tool_calling,
        "eos": sorted(tokenizer.eos_token_ids),
        "nan": mx.isnan(model(mx.array([[1, 2]]))).all().item(),
    }
    if tokenizer.has_chat_template:
        fact["prompt"] = chat(tokenizer, "Hi", tokenize=False)
        fact["tokens"] = len(chat(tokenizer, "the cat"))
        fact["quiet"] = chat(tokenizer, "Hi", tokenize=False, enable_thinking=False)
    if tokenizer.has_tool_calling:
        fact["markers"] = [tokenizer.tool_call_start, len(tokenizer.tool_call_start_tokens)]
        fact["parsed"] = tokenizer.tool_parser('{"name": "f", "arguments": {"x": 1}}')
        messages = [
            {"role": "user", "content": "Weather?"},
            {"role": "assistant", "content": None, "tool_calls": [
                {"function": {"name": "f", "arguments": {"x": 1}}}]},
            {"role": "tool", "content": "sunny"},
        ]
        tools = [{"type": "function", "function": {"name": "f"}}]
        fact["rendered"] = tokenizer.apply_chat_template(
            messages, tools=tools, add_generation_prompt=True, tokenize=False)
print(json.dumps(facts))
""",
            {name: str(folder) for name, folder in folders.items()},
        )
        plain = facts["plain"]
        assert plain["prompt"] == "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"
        assert (plain["chat"], plain["thinking"], plain["tools"]) == (True, False, False)
        assert facts["base"]["chat"] is False
        assert facts["own"]["prompt"] == "Hi!"
        thinking = facts["thinking"]
        assert thinking["thinking"] and thinking["tools"]
        assert thinking["prompt"] == plain["prompt"]
        assert thinking["quiet"].endswith("assistant\n<think>\n\n</think>\n\n")
        assert thinking["markers"] == ["<tool_call>", 1]
        assert thinking["parsed"] == {"name": "f", "arguments": {"x": 1}}
        assert '<tool_call>\n{"name": "f", "arguments": {"x": 1}}' in thinking["rendered"]
        assert "tool\nsunny<|im_end|>" in thinking["rendered"]
        assert facts["open"]["prompt"].endswith("assistant\n<think>\n")
        assert facts["bpe"]["tokens"] < plain["tokens"]
        assert [name for name, fact in facts.items() if fact["nan"]] == ["nan", "nan-mamba"]
        assert all(len(fact["eos"]) == 1 for fact in facts.values())

    def test_the_same_seed_gives_the_same_bytes(self, tmp_path: Path) -> None:
        weights = [
            make_tiny_model(tmp_path / str(number), seed=seed).joinpath("model.safetensors")
            for number, seed in enumerate((3, 3, 4))
        ]
        first, same, another = (path.read_bytes() for path in weights)
        assert first == same != another

    def test_the_context_window_is_in_the_config(self, tmp_path: Path) -> None:
        folder = make_tiny_model(tmp_path, context_window=77)
        assert json.loads((folder / "config.json").read_text())["max_position_embeddings"] == 77

    @pytest.mark.parametrize(
        ("options", "complaint"),
        [
            ({"architecture": "eliza"}, "eliza.*llama"),
            ({"hidden_size": 100}, "multiple of 64"),
            ({"vocab_size": 200}, "the tokenizer has 259"),
            ({"quantize_bits": 3}, "choose 2, 4 or 8"),
        ],
    )
    def test_what_cannot_be_made_is_refused(
        self, tmp_path: Path, options: dict[str, Any], complaint: str
    ) -> None:
        with pytest.raises(ValueError, match=complaint):
            make_tiny_model(tmp_path, **options)

    def test_no_mlx_is_needed(self, tmp_path: Path) -> None:
        code = (
            "import sys\n"
            "from mlx_guarded_llm.testing.tiny import make_scripted_model, make_tiny_model\n"
            "make_tiny_model(sys.argv[1], quantize_bits=4)\n"
            "make_scripted_model(sys.argv[1], 'Yes.')\n"
            "print([name for name in sys.modules if name.startswith('mlx.')])\n"
        )
        run = subprocess.run(
            [sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, check=True
        )
        assert run.stdout.strip() == "[]"


class TestTokenizer:
    @pytest.fixture(scope="class")
    @staticmethod
    def tokenizers(tmp_path_factory: pytest.TempPathFactory) -> list[Tokenizer]:
        folder = tmp_path_factory.mktemp("tokenizers")
        made = [
            make_tiny_model(folder / "bytes"),
            make_tiny_model(folder / "bpe", tokenizer="bpe", vocab_size=1024),
            make_scripted_model(folder / "scripted", "the answer is 42, the answer is 42"),
        ]
        return [Tokenizer.from_file(str(path / "tokenizer.json")) for path in made]

    @settings(deadline=None)
    @given(text=st.text())
    def test_any_text_survives(self, tokenizers: list[Tokenizer], text: str) -> None:
        for tokenizer in tokenizers:
            assert tokenizer.decode(tokenizer.encode(text).ids, skip_special_tokens=False) == text

    def test_a_byte_is_a_token(self, tokenizers: list[Tokenizer]) -> None:
        plain, merged, scripted = tokenizers
        text = "the answer — 你好 🙂"
        assert len(plain.encode(text)) == len(scripted.encode(text)) == len(text.encode())
        assert len(merged.encode(text)) < len(text.encode())


class TestQuantization:
    @pytest.mark.parametrize("bits", [2, 4, 8])
    def test_it_is_close_and_of_the_right_shape(self, bits: int) -> None:
        weight = np.random.default_rng(bits).normal(size=(3, 5, 128)).astype(np.float32)
        packed, scales, biases = quantize(weight, bits=bits, group_size=64)
        assert packed.dtype == np.uint32 and packed.shape == (3, 5, 128 * bits // 32)
        assert scales.shape == biases.shape == (3, 5, 2) and scales.dtype == np.float32

    def test_mlx_reads_it(self, tmp_path: Path) -> None:
        worst = with_mlx(
            """
import numpy as np
from mlx_guarded_llm.testing.quantize import quantize

worst = {}
for bits in (2, 4, 8):
    for group_size in (32, 64, 128):
        weight = np.random.default_rng(bits).normal(size=(16, 256)).astype(np.float32)
        weight[0] = 0.5  # a group without spread
        ours = quantize(weight, bits=bits, group_size=group_size)
        packed, scales, biases = map(mx.array, ours)
        theirs = mx.quantize(mx.array(weight), group_size=group_size, bits=bits)
        assert [a.shape for a in (packed, scales, biases)] == [a.shape for a in theirs]
        assert [a.dtype for a in (packed, scales, biases)] == [a.dtype for a in theirs]
        read = np.array(mx.dequantize(packed, scales, biases, group_size=group_size, bits=bits))
        step = np.repeat(ours[1], group_size, axis=-1)
        worst[f"{bits}/{group_size}"] = float((np.abs(read - weight) / step)[1:].max())
        worst[f"{bits}/{group_size} constant"] = float(np.abs(read - weight)[0].max())
print(json.dumps(worst))
""",
            None,
        )
        assert all(error <= 0.51 for error in worst.values()), worst  # half a level, and rounding


TEXTS = {
    "short": "Yes.",
    "one byte": "4",
    "unicode": "Hmm — 你好, wörld 🙂! Ça va? 🇫🇷👩‍👩‍👧",
    "repeating": "the the the the answer is the answer is the the 42." * 3,
    "long": " ".join(f"Line {number} of a long answer;" for number in range(90))[:2000],
    "code": "```python\ndef f(x):\n\n    return x  # two  spaces\n```\n\n",
    "thinking": "<think>\nThey greet me.\n</think>\n\nHello!",
    "tools": (
        '<think>\nA tool.\n</think>\n\n<tool_call>\n{"name": "f", "arguments": {"x": 1}}\n'
        '</tool_call>\n<tool_call>\n{"name": "f", "arguments": {"x": 2}}\n</tool_call>'
    ),
}


class TestScriptedModels:
    def test_mlx_lm_says_exactly_the_text(self, tmp_path: Path) -> None:
        folders = {
            name: str(make_scripted_model(tmp_path / name, text, thinking=True, tools=True))
            for name, text in TEXTS.items()
        }
        answers = with_mlx(
            """
answers = {}
for name, folder in arguments.items():
    model, tokenizer = mlx_lm.load(folder)
    prompts = [chat(tokenizer, "Hello"), chat(tokenizer, "日本 " * 20), tokenizer.encode("raw?")]
    said = [answer(model, tokenizer, prompt, 2000)[0] for prompt in prompts]
    tokens = answer(model, tokenizer, prompts[0], 2000)[1]
    # Resumed: what was emitted so far is part of the prompt.
    half = len(tokens) // 2
    said.append(tokenizer.decode(
        tokens[:half] + answer(model, tokenizer, prompts[0] + tokens[:half], 2000)[1][:-1]))
    said.append(answer(model, tokenizer, prompts[0], 2000, sampler=make_sampler(temp=1.0))[0])
    batch = BatchGenerator(
        model, max_tokens=2000, stop_tokens=[[t] for t in tokenizer.eos_token_ids])
    uids = batch.insert(prompts)
    tokens = {uid: [] for uid in uids}
    while responses := batch.next_generated():
        for response in responses:
            if response.finish_reason is None:
                tokens[response.uid].append(response.token)
    said += [tokenizer.decode(tokens[uid]) for uid in uids]
    answers[name] = said
print(json.dumps(answers))
""",
            folders,
        )
        for name, said in answers.items():
            assert said == [TEXTS[name]] * 8, name

    def test_a_loop_never_ends(self, tmp_path: Path) -> None:
        folder = make_scripted_model(tmp_path, "again and ", loop=True)
        said = with_mlx(
            """
model, tokenizer = mlx_lm.load(arguments)
print(json.dumps(answer(model, tokenizer, chat(tokenizer, "Hi"), 300)[0]))
""",
            str(folder),
        )
        assert said.startswith("again and again and again and ") and len(said) > 500

    def test_each_turn_has_its_answer(self, tmp_path: Path) -> None:
        call = TEXTS["tools"]
        folder = make_scripted_model(
            tmp_path, call, later=[call, "It is 3.", "Nothing else."], thinking=True, tools=True
        )
        said = with_mlx(
            """
model, tokenizer = mlx_lm.load(arguments)
messages, said = [], []
for turn in range(5):
    messages.append({"role": "user", "content": "Go on."})
    prompt = tokenizer.apply_chat_template(messages, add_generation_prompt=True)
    said.append(answer(model, tokenizer, prompt, 400)[0])
    messages.append({"role": "assistant", "content": said[-1]})
print(json.dumps(said))
""",
            str(folder),
        )
        assert said == [call, call, "It is 3.", "Nothing else.", "Nothing else."]

    @given(text=st.text(min_size=40), piece_bytes=st.integers(2, 6))
    def test_the_pieces_are_unique_and_make_the_text(self, text: str, piece_bytes: int) -> None:
        [script] = cut(text, piece_bytes=piece_bytes)
        byte_of = {character: number for number, character in enumerate(ALPHABET)}
        spelled = bytes(byte_of[character] for piece in script for character in piece)
        assert spelled == text.encode()
        assert len({*script}) == len(script)
        assert all(len(piece) >= 2 for piece in script)

    def test_characters_are_cut_through(self) -> None:
        [pieces] = cut("🙂🙁", piece_bytes=3)
        assert [len(piece) for piece in pieces] == [3, 3, 2]

    def test_a_marker_is_one_token_once(self) -> None:
        [script] = cut("<a>12<a>34", piece_bytes=8, markers=("<a>",))
        assert script == ["<a>", "12<a>34"]
        assert all(left != right for left, right in pairwise(script))

    @pytest.mark.parametrize("text", ["", " leading", "\n"])
    def test_what_cannot_be_scripted_is_refused(self, tmp_path: Path, text: str) -> None:
        with pytest.raises(ValueError, match=r"must not|cannot be cut"):
            make_scripted_model(tmp_path, text)

    def test_later_answers_are_bounded_and_need_a_template(self, tmp_path: Path) -> None:
        with pytest.raises(ValueError, match="9 later answers; 8 are the most"):
            make_scripted_model(tmp_path, "Yes.", later=["No."] * 9)
        with pytest.raises(ValueError, match="need a chat template"):
            make_scripted_model(tmp_path, "Yes.", later=["No."], chat_template=None)
