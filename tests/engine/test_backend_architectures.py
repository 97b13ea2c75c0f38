"""Every kind of model: cache layouts, quantised weights and caches, adapters."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from mlx_guarded_llm import Backend, Progress
from mlx_guarded_llm.errors import ModelInvalid
from mlx_guarded_llm.testing.architectures import ARCHITECTURES
from tests.conftest import MakeBackend, MakeModel
from tests.engine._backend import events, raw_tokens, tokens_of, wait_until

Aliases = Callable[..., Path]
PROMPTS = ["Hello", "What is the capital of France?", "Count to " + "many " * 10]


@pytest.mark.parametrize("architecture", sorted(ARCHITECTURES))
@pytest.mark.parametrize("quantize_bits", [None, 4])
def test_as_plain_mlx_lm_and_beside_others(
    backend: Backend, tiny: MakeModel, architecture: str, quantize_bits: int | None
) -> None:
    model = tiny(architecture=architecture, quantize_bits=quantize_bits)
    options: dict[str, Any] = {"max_tokens": 16, "logprobs": True}
    alone = [tokens_of(backend.generate(model, prompt, **options)) for prompt in PROMPTS]
    assert alone[1] == backend.run(partial(raw_tokens, model, PROMPTS[1], 16))
    assert len({*map(tuple, alone)}) == len(PROMPTS)
    streams = [backend.stream(model, prompt, **options) for prompt in PROMPTS]
    together = [[p.token for chunk in stream for p in chunk.logprobs] for stream in streams]
    assert together == alone


@pytest.mark.parametrize("architecture", ["gemma3_text", "gpt_oss", "mamba"])
def test_cancel_beside_others(backend: Backend, tiny: MakeModel, architecture: str) -> None:
    model = tiny(architecture=architecture)
    expected = backend.generate(model, "Hello", max_tokens=24).text
    keeper = backend.stream(model, "Hello", max_tokens=24)
    with backend.stream(model, "Something else", max_tokens=1500) as leaver:
        next(leaver)
    assert "".join(chunk.text for chunk in keeper) == expected


class TestQuantisedCache:
    """kv_bits: caches that cannot be merged, so requests are decoded in turn."""

    @pytest.fixture
    def backend(self, make_backend: MakeBackend, aliases: Aliases, tiny: MakeModel) -> Backend:
        return make_backend(
            aliases(
                whole={"model": tiny(hidden_size=128)},
                eight={"model": tiny(hidden_size=128), "kv_bits": 8, "kv_group_size": 32},
                four={"model": tiny(hidden_size=128), "kv_bits": 4, "kv_group_size": 32},
            )
        )

    def test_as_plain_mlx_lm(self, backend: Backend, tiny: MakeModel) -> None:
        raw = partial(
            raw_tokens,
            tiny(hidden_size=128),
            PROMPTS[1],
            20,
            kv_bits=8,
            kv_group_size=32,
            quantized_kv_start=0,
        )
        ours = backend.generate("eight", PROMPTS[1], max_tokens=20, logprobs=True)
        assert tokens_of(ours) == backend.run(raw)
        assert ours.finish_reason == "length" and ours.usage.completion_tokens == 20

    def test_it_changes_the_answer(self, backend: Backend) -> None:
        texts = {backend.generate(name, "Hello", max_tokens=40).text for name in ("whole", "four")}
        assert len(texts) == 2

    def test_both_resident_as_two_models(self, backend: Backend) -> None:
        for name in ("whole", "eight", "whole", "eight"):
            result = backend.generate(name, "Hello", max_tokens=4)
            assert result.guard.served_model == name
        assert len(events(backend, "load.finished")) == 2

    def test_two_at_once_advance_in_turn(self, backend: Backend) -> None:
        options: dict[str, Any] = {"temperature": 1.0, "max_tokens": 24, "logprobs": True}
        alone = [tokens_of(backend.generate("eight", "Hello", seed=s, **options)) for s in (1, 2)]
        streams = [backend.stream("eight", "Hello", seed=seed, **options) for seed in (1, 2)]
        together = [[p.token for c in stream for p in c.logprobs] for stream in streams]
        assert together == alone and alone[0] != alone[1]
        one, two = (
            [events(backend, f"request.{verb}", request_id=s.request_id)[0].time for s in streams]
            for verb in ("first_token", "finished")
        )
        assert max(one) < min(two), "each began before the other ended"

    def test_cancel(self, backend: Backend) -> None:
        expected = backend.generate("eight", "Hello", max_tokens=24).text
        keeper = backend.stream("eight", "Hello", max_tokens=24)
        leaver = backend.stream("eight", "Something else", max_tokens=1500)
        next(leaver)
        leaver.close()
        assert "".join(chunk.text for chunk in keeper) == expected
        wait_until(lambda: events(backend, "request.finished", request_id=leaver.request_id))
        (end,) = events(backend, "request.finished", request_id=leaver.request_id)
        assert end.cause == "cancelled" and end.details["completion_tokens"] < 200

    def test_a_prompt_is_read_in_chunks(
        self, make_backend: MakeBackend, aliases: Aliases, tiny: MakeModel
    ) -> None:
        """So others go on meanwhile, and it may be paused or cancelled in its midst."""
        folder = tiny(hidden_size=128, context_window=8192)
        given = aliases(eight={"model": folder, "kv_bits": 8, "kv_group_size": 32})
        prompt, seen = "Hello there. " * 400, threading.Event()
        whole = make_backend(given).generate("eight", prompt, max_tokens=8, logprobs=True)
        backend = make_backend(given, prefill_step_size=64)

        def hear(progress: Progress) -> None:
            if progress.stage == "prefill" and progress.total and progress.done < progress.total:
                seen.set()

        with backend.stream("eight", prompt, max_tokens=8, on_progress=hear):
            assert seen.wait(60)
        again = backend.generate("eight", prompt, max_tokens=8, logprobs=True)
        assert tokens_of(again) == tokens_of(whole)
        assert again.usage == whole.usage

    @pytest.mark.parametrize("options", [{"presence_penalty": 100.0}, {"top_logprobs": 3}])
    def test_options(self, backend: Backend, options: dict[str, Any]) -> None:
        result = backend.generate("eight", "Hello", max_tokens=20, logprobs=True, **options)
        assert len(result.logprobs) == 20
        if "presence_penalty" in options:
            assert len({*tokens_of(result)}) == 20
        else:
            assert all(p.top[0][0] == p.token for p in result.logprobs)

    def test_a_stop_token(
        self, make_backend: MakeBackend, aliases: Aliases, scripted: MakeModel
    ) -> None:
        model = scripted("The answer is 42.")
        backend = make_backend(aliases(eight={"model": model, "kv_bits": 8, "kv_group_size": 32}))
        for _ in range(2):
            result = backend.generate("eight", "Hello")
            assert (result.text, result.finish_reason) == ("The answer is 42.", "stop")


def make_adapter(folder: Path, *, layers: int = 2, hidden: int = 64, kv: int = 32) -> Path:
    """A LoRA adapter of rank 4 for the queries of a tiny llama."""
    random = np.random.default_rng(0)
    tensors = {}
    for layer in range(layers):
        name = f"model.layers.{layer}.self_attn.q_proj"
        tensors[f"{name}.lora_a"] = random.normal(0, 1, (hidden, 4)).astype(np.float32)
        tensors[f"{name}.lora_b"] = random.normal(0, 1, (4, hidden)).astype(np.float32)
    folder.mkdir()
    save_file(tensors, folder / "adapters.safetensors")
    config = {
        "fine_tune_type": "lora",
        "num_layers": layers,
        "lora_parameters": {
            "rank": 4,
            "scale": 4.0,
            "dropout": 0.0,
            "keys": ["self_attn.q_proj"],
        },
    }
    (folder / "adapter_config.json").write_text(json.dumps(config))
    return folder


def test_an_adapter_is_a_model_of_its_own(
    make_backend: MakeBackend, aliases: Aliases, tiny: MakeModel, tmp_path: Path
) -> None:
    adapter = make_adapter(tmp_path / "adapter")
    backend = make_backend(
        aliases(base={"model": tiny()}, tuned={"model": tiny(), "adapter_path": str(adapter)})
    )
    base, tuned = (backend.generate(name, "Hello", max_tokens=20) for name in ("base", "tuned"))
    assert base.text != tuned.text
    assert base.guard.fingerprint != tuned.guard.fingerprint
    assert {info.name for info in backend.models()} == {"base", "tuned"}
    again = [backend.generate(name, "Hello", max_tokens=20).text for name in ("base", "tuned")]
    assert again == [base.text, tuned.text]
    assert len(events(backend, "load.finished")) == 2


@pytest.mark.parametrize(
    ("lost", "settings"),
    [
        ("model.layers.1.self_attn.q_proj.lora_b", {}),
        ("", {"fine_tune_type": "dora"}),  # which has one weight more for each layer
        ("", {"lora_parameters": {"rank": 4, "scale": 4.0, "dropout": 0.0}}),  # of all layers
    ],
)
def test_an_adapter_that_lacks_weights_is_refused(
    make_backend: MakeBackend,
    tiny: MakeModel,
    tmp_path: Path,
    lost: str,
    settings: dict[str, Any],
) -> None:
    adapter = make_adapter(tmp_path / "adapter")
    tensors = load_file(adapter / "adapters.safetensors")
    kept = {name: tensor for name, tensor in tensors.items() if name != lost}
    save_file(kept, adapter / "adapters.safetensors")
    config = json.loads((adapter / "adapter_config.json").read_text())
    (adapter / "adapter_config.json").write_text(json.dumps({**config, **settings}))
    with pytest.raises(ModelInvalid, match=r"lacks [0-9]+ of the weights"):
        make_backend().load(tiny(), adapter_path=str(adapter))
