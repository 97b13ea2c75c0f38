"""That the rows of a batch are folded, and that nothing but speed changes by it."""

from __future__ import annotations

import ast
import importlib
import math
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx_lm
import pytest
from mlx.utils import tree_flatten
from mlx_lm.models.afm7 import FusedQuantizedLinear
from mlx_lm.models.cache import make_prompt_cache
from mlx_lm.models.mla import MultiLinear
from mlx_lm.models.prism_hadamard_qwen35 import HadamardQuantizedEmbedding, HadamardQuantizedLinear
from mlx_lm.models.switch_layers import SwitchLinear
from mlx_lm.tuner.dora import DoRAEmbedding, DoRALinear
from mlx_lm.tuner.lora import LoRAEmbedding, LoRALinear
from mlx_lm.utils import load_model

from mlx_guarded_llm import Backend
from mlx_guarded_llm.engine.residency import loading
from mlx_guarded_llm.engine.residency.folding import fold_rows
from mlx_guarded_llm.testing.architectures import ARCHITECTURES
from tests.conftest import MakeModel
from tests.engine._backend import raw_tokens, tokens_of

nn: Any = importlib.import_module("mlx.nn")
ROWS, WIDTH, OUTPUTS = 3, 128, 64
MODES: dict[str, dict[str, Any]] = {
    **{f"affine-{bits}": {"group_size": 64, "bits": bits} for bits in (2, 3, 4, 6, 8)},
    **{mode: {"mode": mode} for mode in ("mxfp4", "nvfp4", "mxfp8")},
}
# Where mlx and mlx-lm multiply by a quantised matrix; what is not here has to be looked at.
FOLDED = {
    *("QuantizedLinear", "QQLinear", "QuantizedEmbedding", "QuantizedMultiLinear"),
    "HadamardQuantizedLinear",
}
NOT_FOLDED = {
    "QuantizedSwitchLinear": "each row has matrices of its own",
    "quantized_scaled_dot_product_attention": "each row has a cache of its own",
    "QuantizedAllToShardedLinear": "of several machines, which are not used here",
    "QuantizedShardedToAllLinear": "of several machines, which are not used here",
}
PRODUCTS = {"quantized_matmul", "qqmm", "gather_qmm", "gather_qqmm"}


@pytest.fixture
def apart(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, ...]]:
    """The shapes of activations whose rows would each read the matrix anew."""
    found: list[tuple[int, ...]] = []

    def watched(name: str, product: Callable[..., Any]) -> Callable[..., Any]:
        def multiply(x: mx.array, weight: mx.array, *args: Any, **kwargs: Any) -> Any:
            leading = x.shape[: -weight.ndim]
            if weight.dtype == mx.uint32 and math.prod(leading) > 1:
                found.append(x.shape)
            return product(x, weight, *args, **kwargs)

        return multiply

    for name in ("quantized_matmul", "qqmm"):
        monkeypatch.setattr(mx, name, watched(name, getattr(mx, name)))
    return found


def activations(*shape: int) -> mx.array:
    mx.random.seed(len(shape))
    return mx.random.normal(shape)


def with_noise(layer: Any) -> Any:
    """Adapters are 0 when they are made."""
    layer.lora_b = activations(*layer.lora_b.shape)
    return layer


def linear(**mode: Any) -> Any:
    return nn.Linear(WIDTH, OUTPUTS).to_quantized(**mode)


def embedding() -> Any:
    return nn.Embedding(OUTPUTS, WIDTH).to_quantized(64, 4)


def hadamard(kind: Callable[..., Any]) -> Any:
    layer = kind(WIDTH, OUTPUTS, 0)
    layer.weight = mx.random.randint(0, 2**31 - 1, layer.weight.shape).astype(mx.uint32)
    layer.scales = activations(*layer.scales.shape).astype(mx.float16)
    return layer


LAYERS: dict[str, Callable[[], Any]] = {
    **{f"linear {name}": partial(linear, **mode) for name, mode in MODES.items()},
    "linear, dense": lambda: nn.Linear(WIDTH, OUTPUTS),
    "linear, split": lambda: FusedQuantizedLinear(WIDTH, [16, 48]),
    "linear, rotated": lambda: hadamard(HadamardQuantizedLinear),
    "linear, LoRA": lambda: with_noise(LoRALinear.from_base(linear(bits=4))),
    "linear, DoRA": lambda: with_noise(DoRALinear.from_base(linear(bits=4))),
}
HEADS: dict[str, Callable[[], Any]] = {
    "embedding": embedding,
    "embedding, dense": lambda: nn.Embedding(OUTPUTS, WIDTH),
    "embedding, rotated": lambda: hadamard(HadamardQuantizedEmbedding),
    "embedding, LoRA": lambda: with_noise(LoRAEmbedding.from_base(embedding())),
    "embedding, DoRA": lambda: with_noise(DoRAEmbedding.from_base(nn.Embedding(OUTPUTS, WIDTH))),
}


def both_ways(call: Callable[[], Any], layer: Any, apart: list[Any]) -> tuple[Any, Any]:
    """What a call of a layer gives before its rows are folded, and folded."""
    before = dict(tree_flatten(layer.parameters()))
    expected = call()
    apart.clear()
    fold_rows(layer)
    found = call()
    after = dict(tree_flatten(layer.parameters()))
    assert before.keys() == after.keys()
    assert all(before[name] is after[name] for name in before)
    assert not apart
    return expected, found


def alike(some: Any, others: Any) -> bool:
    if isinstance(some, (list, tuple)):
        return len(some) == len(others) and all(map(alike, some, others))
    return some.shape == others.shape and bool(mx.array_equal(some, others))


@pytest.mark.parametrize("shape", [(ROWS, 1), (ROWS, 2), (1, 4), (5,), (2, ROWS, 2)])
@pytest.mark.parametrize("name", LAYERS)
def test_a_layer_gives_the_same(name: str, shape: tuple[int, ...], apart: list[Any]) -> None:
    layer, x = LAYERS[name](), activations(*shape, WIDTH)
    assert alike(*both_ways(lambda: layer(x), layer, apart))


def test_a_layer_that_quantises_its_input(apart: list[Any]) -> None:
    """Its product is not there on a CPU, so nothing is computed."""
    layer = nn.QQLinear.from_linear(nn.Linear(WIDTH, OUTPUTS, bias=False), mode="nvfp4")
    layer.eval()
    x = activations(ROWS, 1, WIDTH)
    expected, found = both_ways(lambda: layer(x), layer, apart)
    assert expected.shape == found.shape == (ROWS, 1, OUTPUTS)


@pytest.mark.parametrize("name", HEADS)
def test_an_output_head_gives_the_same(name: str, apart: list[Any]) -> None:
    layer, x = HEADS[name](), activations(ROWS, 1, WIDTH)
    assert alike(*both_ways(lambda: layer.as_linear(x), layer, apart))
    assert layer(mx.array([[1], [2], [3]])).shape == (ROWS, 1, WIDTH)


@pytest.mark.parametrize("quantised", [True, False])
@pytest.mark.parametrize(("heads", "length"), [(4, 1), (4, 3), (1, 5)])
@pytest.mark.parametrize("rows", [1, ROWS])
def test_a_matrix_for_each_head(
    quantised: bool, heads: int, length: int, rows: int, apart: list[Any]
) -> None:
    layer: Any = MultiLinear(WIDTH, WIDTH, 4)
    if quantised:
        layer = layer.to_quantized(64, 4)
    x = activations(rows, heads, length, WIDTH)
    for options in ({}, {"transpose": False}):
        expected, found = both_ways(partial(layer, x, **options), layer, apart)
        assert expected.shape == found.shape == (rows, 4, length, WIDTH)
        assert mx.allclose(expected, found, rtol=1e-4, atol=1e-4)


def test_experts_are_left_as_they_are() -> None:
    layer = SwitchLinear(WIDTH, OUTPUTS, 4).to_quantized(64, 4)
    kind = type(layer)
    fold_rows(layer)
    assert type(layer) is kind


def test_a_layer_stays_of_its_kind() -> None:
    layer = linear(bits=4)
    fold_rows(layer)
    fold_rows(layer)
    assert isinstance(layer, nn.QuantizedLinear)
    assert type(layer).__mro__[2] is nn.QuantizedLinear, "folded once"


@pytest.mark.parametrize("architecture", sorted(ARCHITECTURES))
def test_a_step_of_every_architecture(
    architecture: str, tiny: MakeModel, apart: list[tuple[int, ...]]
) -> None:
    folder = Path(tiny(architecture=architecture, quantize_bits=4))
    model, _ = load_model(folder)

    def step() -> mx.array:
        cache = make_prompt_cache(model)
        model(mx.array([[5, 6, 7], [8, 9, 10], [11, 12, 13]]), cache=cache)
        logits: mx.array = model(mx.array([[1], [2], [3]]), cache=cache)
        mx.eval(logits)
        return logits

    expected = step()
    assert (ROWS, 1) in {shape[:2] for shape in apart}, "the test sees what is not folded"
    apart.clear()
    fold_rows(model)
    assert mx.array_equal(step(), expected)
    assert not apart


def multiplying() -> Iterator[str]:
    """Every class or function of mlx and mlx-lm that multiplies by a quantised matrix."""
    folders = [Path(nn.__file__).parent, Path(mlx_lm.__file__).parent]
    for file in (file for folder in folders for file in folder.rglob("*.py")):
        for node in ast.parse(file.read_text()).body:
            named = {child.attr for child in ast.walk(node) if isinstance(child, ast.Attribute)}
            if isinstance(node, (ast.ClassDef, ast.FunctionDef)) and named & PRODUCTS:
                yield node.name


def test_every_kind_of_layer_is_known() -> None:
    assert set(multiplying()) == FOLDED | NOT_FOLDED.keys()


def test_a_model_that_is_folded_answers_the_same(
    tiny: MakeModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loading, "on_cuda", lambda: True)
    folded: list[Any] = []

    def fold(model: Any) -> None:
        folded.append(model)
        fold_rows(model)

    monkeypatch.setattr(loading, "fold_rows", fold)
    model = tiny(quantize_bits=4)
    with Backend(isolation="thread") as backend, ThreadPoolExecutor(ROWS) as pool:
        prompts = ["Hello", "What is the capital of France?", "Count to many"]
        ask = partial(backend.generate, model, max_tokens=16, logprobs=True)
        together = [tokens_of(result) for result in pool.map(ask, prompts)]
        alone = [backend.run(partial(raw_tokens, model, prompt, 16)) for prompt in prompts]
        assert together == alone
        assert len(folded) == 1
        folded.clear()  # the engine's thread frees the model
