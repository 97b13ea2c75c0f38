"""Wrap the entry points of MLX and mlx-lm so that a witness sees their work.

A function is replaced wherever a module holds it (`mlx_lm.load`, `mlx_lm.utils.load`,
a user's `from mlx_lm import load`), and put back the same way. Work inside a section
of the same thread belongs to that section and is not counted again, so the engine's own
reports are never counted twice.
"""

from __future__ import annotations

import functools
import importlib
import inspect
import sys
import weakref
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mlx_guarded_llm.testing.sections import Generation
from mlx_guarded_llm.testing.witness import Witness

Function = Callable[..., Any]

EVALUATORS = (
    "eval",
    "async_eval",
    "synchronize",
    "save",
    "savez",
    "savez_compressed",
    "save_safetensors",
    "save_gguf",
)
"""Functions of `mlx.core` that put work on the device or wait for it."""

ARRAY_EVALUATORS = (
    "item",
    "tolist",
    "__array__",
    "__bool__",
    "__bytes__",
    "__complex__",
    "__dlpack__",
    "__float__",
    "__index__",
    "__int__",
    "__repr__",
)
"""Methods of `mlx.core.array` that evaluate it."""

_patches: Patches | None = None


def apply(witness: Witness) -> None:
    """Wrap everything for `witness`.

    Raises:
        RuntimeError: everything is wrapped already.
    """
    global _patches
    if _patches is not None:
        raise RuntimeError("a witness is installed already; call uninstall() first")
    _patches = Patches(witness)
    try:
        _patches.apply()
    except BaseException:
        undo()
        raise


def undo() -> None:
    """Put everything back. Does nothing if nothing is wrapped."""
    global _patches
    if _patches is not None:
        _patches.undo()
        _patches = None


class Patches:
    """One set of wrappers, until `undo`."""

    def __init__(self, witness: Witness) -> None:
        # None after undo, so that a wrapper still in use passes calls through.
        self.witness: Witness | None = witness
        self._functions: list[tuple[Function, Function]] = []
        self._methods: list[tuple[type, str, Function]] = []
        self._names: dict[int, str] = {}
        self._batches: weakref.WeakKeyDictionary[Any, Batch] = weakref.WeakKeyDictionary()

    def apply(self) -> None:
        """Wrap everything."""
        import mlx.core as mx

        # Imported by path, because the name `generate` in the package is the function.
        generate = importlib.import_module("mlx_lm.generate")
        utils = importlib.import_module("mlx_lm.utils")

        for name in EVALUATORS:
            self._function(mx, name, self._evaluator)
        for name in ARRAY_EVALUATORS:
            self._method(mx.array, name, self._evaluator)
        self._function(utils, "load_model", self._loader)
        self._function(generate, "generate_step", self._generator)
        self._function(generate, "speculative_generate_step", self._generator)
        self._method(generate.BatchGenerator, "insert_segments", self._batch_insert)
        self._method(generate.BatchGenerator, "next", self._batch_next)
        self._method(generate.BatchGenerator, "next_generated", self._batch_next)
        self._method(generate.BatchGenerator, "remove", self._batch_remove)
        self._method(generate.BatchGenerator, "close", self._batch_close)

    def undo(self) -> None:
        """Put everything back."""
        self.witness = None
        for original, wrapper in self._functions:
            _replace(wrapper, original)
        for owner, name, original in self._methods:
            setattr(owner, name, original)

    def _function(self, module: Any, name: str, wrap: Callable[[Function], Function]) -> None:
        original = getattr(module, name, None)
        if original is not None:  # not every version has all of them
            wrapper = wrap(original)
            self._functions.append((original, wrapper))
            _replace(original, wrapper)

    def _method(self, owner: type, name: str, wrap: Callable[[Function], Function]) -> None:
        original = vars(owner).get(name)
        if original is not None:
            self._methods.append((owner, name, original))
            setattr(owner, name, wrap(original))

    def _name(self, model: Any) -> str:
        """The folder a model was loaded from, or its class."""
        return self._names.get(id(model)) or type(model).__module__.rpartition(".")[2]

    def _outermost(self) -> Witness | None:
        """The witness, if the calling thread is in none of its sections."""
        witness = self.witness
        return None if witness is None or witness.is_inside() else witness

    def _evaluator(self, original: Function) -> Function:
        name = getattr(original, "__name__", "evaluation")

        @functools.wraps(original)
        def wrapper(*args: Any, **kwargs: Any) -> Any:
            witness = self._outermost()
            if witness is None:
                return original(*args, **kwargs)
            with witness.evaluation(name):
                return original(*args, **kwargs)

        return wrapper

    def _loader(self, original: Function) -> Function:
        @functools.wraps(original)
        def wrapper(model_path: Any, *args: Any, **kwargs: Any) -> Any:
            witness = self.witness
            # Not `_outermost`: a load inside a step of its own thread is an overlap too.
            if witness is None or witness.is_inside("load"):
                return original(model_path, *args, **kwargs)
            name = Path(model_path).name
            with witness.load(name):
                loaded = original(model_path, *args, **kwargs)
            model = loaded[0]
            self._names[id(model)] = name
            weakref.finalize(model, self._names.pop, id(model), None)
            return loaded

        return wrapper

    def _generator(self, original: Function) -> Function:
        signature = inspect.signature(original)

        @functools.wraps(original)
        def wrapper(*args: Any, **kwargs: Any) -> Iterator[Any]:
            tokens = original(*args, **kwargs)
            model = signature.bind_partial(*args, **kwargs).arguments.get("model")
            return self._tokens(tokens, self._name(model))

        return wrapper

    def _tokens(self, tokens: Any, name: str) -> Iterator[Any]:
        """Pass on the tokens of a generator; each `next` is a step."""
        generation: Generation | None = None
        try:
            while True:
                witness = self._outermost()
                if witness is None:
                    token = next(tokens, _END)
                else:
                    if generation is None:
                        generation = witness.generation(name)
                        generation.begin()
                    with witness.step(name, generation=generation):
                        token = next(tokens, _END)
                if token is _END:
                    return
                yield token
        finally:
            tokens.close()
            if generation is not None:
                generation.end()

    def _batch_insert(self, original: Function) -> Function:
        @functools.wraps(original)
        def wrapper(batch: Any, *args: Any, **kwargs: Any) -> Any:
            uids = original(batch, *args, **kwargs)
            self._batches.setdefault(batch, Batch()).uids.update(uids)
            return uids

        return wrapper

    def _batch_next(self, original: Function) -> Function:
        @functools.wraps(original)
        def wrapper(batch: Any, *args: Any, **kwargs: Any) -> Any:
            watched = self._batches.setdefault(batch, Batch())
            witness = self._outermost()
            if witness is None:
                result = original(batch, *args, **kwargs)
            else:
                name = self._name(batch.model)
                if watched.generation is None and watched.uids:
                    watched.generation = witness.generation(name)
                    watched.generation.begin()
                    weakref.finalize(batch, watched.generation.end)
                with witness.step(name, generation=watched.generation):
                    result = original(batch, *args, **kwargs)
            # `next` returns responses (of prompts, of generations), `next_generated` the latter.
            responses = result[1] if isinstance(result, tuple) else result
            watched.left(r.uid for r in responses if r.finish_reason is not None)
            return result

        return wrapper

    def _batch_remove(self, original: Function) -> Function:
        @functools.wraps(original)
        def wrapper(batch: Any, uids: Any, *args: Any, **kwargs: Any) -> Any:
            result = original(batch, uids, *args, **kwargs)
            self._batches.setdefault(batch, Batch()).left(uids)
            return result

        return wrapper

    def _batch_close(self, original: Function) -> Function:
        @functools.wraps(original)
        def wrapper(batch: Any, *args: Any, **kwargs: Any) -> Any:
            result = original(batch, *args, **kwargs)
            watched = self._batches.get(batch)
            if watched is not None:
                watched.left(tuple(watched.uids))
            return result

        return wrapper


_END = object()


@dataclass
class Batch:
    """One BatchGenerator, seen as one generation for all its uids."""

    uids: set[int] = field(default_factory=set)
    generation: Generation | None = None

    def left(self, uids: Iterable[int]) -> None:
        """These uids are finished or removed. The generation ends with the last of them."""
        self.uids.difference_update(uids)
        if not self.uids and self.generation is not None:
            self.generation.end()
            self.generation = None


def _replace(old: Function, new: Function) -> None:
    """Bind `new` in every module that holds `old` at its top level."""
    for module in tuple(sys.modules.values()):
        names = getattr(module, "__dict__", None)
        if not isinstance(names, dict):
            continue
        for name, value in tuple(names.items()):
            if value is old:
                setattr(module, name, new)
