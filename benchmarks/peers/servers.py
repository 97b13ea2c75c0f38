"""HTTP servers, ours and the peers, each with the options that serve it best."""

from __future__ import annotations

import json
import re
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from importlib import metadata
from pathlib import Path

from benchmarks.ours import budget_for_one
from benchmarks.peers.environments import Environment
from benchmarks.peers.http import HTTPServer, Refused, Streamed
from benchmarks.side import Ask, CannotRun, Setup
from mlx_guarded_llm import Catalog, GuardedLLMError, __version__

# The default wheel of torch for Linux brings CUDA; where a local one without it can be
# had (see environments.py), this version is taken from there.
TORCH = "torch==2.13.0"
# With this in the environment transformers picks processors that want CUDA.
WITHOUT = ("torchvision",)
AT_ONCE = 64
REQUEST_SECONDS = 900.0
GIB = 1024**3

# Tried: the same request with a penalty of 1.3 gives the greedy text when it is alone.
ALONE = "its mlx-lm, 0.31, applies no penalty to a request that is alone in its batch"

COMMON = ("temperature", "top_p", "top_k", "min_p", "repetition_penalty", "presence_penalty")


def _same(*names: str) -> Mapping[str, str]:
    return {name: name for name in names}


class GuardedServer(HTTPServer):
    """`mlx-guarded serve`, of this checkout."""

    name = "mlx-guarded serve"
    version = __version__
    sampling = _same(*COMMON, "frequency_penalty", "seed")

    def served(self, model: str) -> str:
        """See `HTTPServer`."""
        return model

    def command(self, setup: Setup, port: int, scratch: Path) -> Sequence[str | Path]:
        """See `HTTPServer`."""
        cache = scratch / "cache"  # what it learns of a model, crashes too, is of this run
        guard: dict[str, object] = {
            "load_wait": setup.load_wait,
            "max_active": AT_ONCE,
            "offline": True,
        }
        if not setup.prefix_cache:
            guard["prefix_cache"] = 0
        if setup.fits_one:
            catalog = Catalog(cache_dir=cache)
            try:
                folders = map(str, setup.models.values())
                guard["memory_budget"], note = budget_for_one(folders, guard | {"catalog": catalog})
            except GuardedLLMError as error:
                raise CannotRun(f"{type(error).__name__}: {error}") from error
            self._note(note)
        self.environment = {
            "MLX_GUARDED_CACHE_DIR": str(cache),
            **{f"MLX_GUARDED_GUARD__{name.upper()}": str(value) for name, value in guard.items()},
        }
        models = [f"--model={name}={folder}" for name, folder in setup.models.items()]
        script = Path(sys.executable).with_name("mlx-guarded")
        return [script, "serve", "--port", str(port), *models]

    def health(self) -> str:
        """See `HTTPServer`."""
        found = json.loads(self.get("/health")[1])
        cause = re.sub(r" \(pid \d+\)", "", found.get("last_death", {}).get("cause", ""))
        said = f"{super().health()}, engine_deaths {found['engine_deaths']}"
        return f"{said} ({cause})" if cause else said


class MLXLMServer(HTTPServer):
    """`mlx_lm.server`, of the mlx-lm in this environment. Holds one model."""

    name = "mlx_lm.server"
    version = metadata.version("mlx-lm")
    sampling = _same(*COMMON, "frequency_penalty", "seed")

    def command(self, setup: Setup, port: int, scratch: Path) -> Sequence[str | Path]:
        """See `HTTPServer`."""
        if len(setup.models) > 1 and not setup.fits_one:
            self._note("holds one model at a time even where both fit")
        self._note("serves a request with a seed alone, outside its batch")
        command: list[str | Path] = [Path(sys.executable).with_name("mlx_lm.server")]
        command += ["--port", str(port)]
        if setup.loaded:
            command += ["--model", setup.models[setup.loaded[0]]]
        command += ["--decode-concurrency", str(AT_ONCE), "--prompt-concurrency", str(AT_ONCE)]
        if not setup.prefix_cache:
            command += ["--prompt-cache-size", "0"]
        return command


class VLLMMLX(HTTPServer):
    """vllm-mlx: a registry of models in one process, loaded when asked for."""

    name = "vllm-mlx"
    version = "0.6.0"
    sampling = _same(*COMMON)
    installed = Environment(name=name, requirements=(f"{name}=={version}", TORCH), excludes=WITHOUT)

    def served(self, model: str) -> str:
        """See `HTTPServer`."""
        return model

    def command(self, setup: Setup, port: int, scratch: Path) -> Sequence[str | Path]:
        """See `HTTPServer`."""
        self._note(ALONE)
        self._note("samples a whole batch by one request's options, and ignores top_k")
        sizes = {model: _weights(folder) for model, folder in setup.models.items()}
        config = {
            "manager": {
                # It counts weights only, by the numbers given here.
                "memory_budget_gb": _room(list(sizes.values()), one=setup.fits_one) / GIB,
                "contention_policy": {"strategy": "wait", "wait_timeout_s": 0},
            },
            "models": [
                {
                    "name": model,
                    "path": str(folder),
                    "preload": model in setup.loaded,
                    "estimated_memory_gb": sizes[model] / GIB,
                }
                for model, folder in setup.models.items()
            ],
        }
        cache = "--enable-prefix-cache" if setup.prefix_cache else "--disable-prefix-cache"
        return [
            *(self.installed.script("vllm-mlx"), "serve", "--offline"),
            *("--models-config", _write(scratch / "models.yaml", config)),
            *("--port", str(port), "--timeout", str(REQUEST_SECONDS)),
            *("--continuous-batching", "--max-num-seqs", str(AT_ONCE)),
            *("--completion-batch-size", str(AT_ONCE), cache),
        ]


class RapidMLX(HTTPServer):
    """rapid-mlx: one model from the start; its caller loads others.

    A request for a model that is not resident is refused, so this client loads it and
    asks again; the time that takes is the request's.

    Args:
        plain: the client knows OpenAI's API only, and so loads nothing.
    """

    name = "rapid-mlx"
    version = "0.16.10"
    sampling = _same(*COMMON, "frequency_penalty")
    environment: Mapping[str, str] = {"RAPID_MLX_TELEMETRY": "0", "DO_NOT_TRACK": "1"}
    installed = Environment(name=name, requirements=(f"{name}=={version}", TORCH), excludes=WITHOUT)

    def __init__(self, *, plain: bool = False) -> None:
        super().__init__()
        self._plain = plain
        self._loading = threading.Lock()

    def command(self, setup: Setup, port: int, scratch: Path) -> Sequence[str | Path]:
        """See `HTTPServer`."""
        self._note(ALONE)
        if len(setup.models) > 1 and not self._plain:
            self._note("loads nothing by itself: the client loads a model that it lacks")
            if setup.fits_one:
                self._note("for one model at a time it is told to replace, after a drain")
        first = setup.models[setup.loaded[0] if setup.loaded else next(iter(setup.models))]
        cache = "--enable-prefix-cache" if setup.prefix_cache else "--disable-prefix-cache"
        return [
            *(self.installed.script("rapid-mlx"), "serve", first, "--yes", "--no-preflight"),
            *("--port", str(port), "--timeout", str(REQUEST_SECONDS)),
            *("--disable-disk-caches", "--disable-model-downloads", cache),
            *("--max-num-seqs", str(AT_ONCE), "--completion-batch-size", str(AT_ONCE)),
            *("--prefill-batch-size", str(AT_ONCE)),
        ]

    def load(self, model: str) -> None:
        """See `HTTPServer`."""
        try:
            self._make_resident(model)
        except (OSError, Refused) as error:
            raise CannotRun(f"{model} is not loaded: {error}") from error
        super().load(model)

    def _answer(self, ask: Ask, hearing: Streamed) -> None:
        while True:
            try:
                return super()._answer(ask, hearing)
            except Refused as refusal:
                late = time.monotonic() - hearing.began > self.patience
                # 404: not resident; 503: another takes its place at this moment.
                final = self._plain or refusal.status not in (404, 503)
                if final or hearing.pieces or late:
                    raise
            self._make_resident(ask.model)

    def _make_resident(self, model: str) -> None:
        setup = self._opened()
        folder = setup.models[model]
        body: dict[str, object] = {
            "model": str(folder),
            "estimated_size_gb": max(_weights(folder) / GIB, 0.001),
        }
        if setup.fits_one:
            body |= {"replace_group": "assistant", "replace_mode": "wait"}
        with self._loading, self._post("/v1/models/load", body) as response:
            response.read()


class MLXOpenAIServer(HTTPServer):
    """mlx-openai-server: each model in a process of its own."""

    name = "mlx-openai-server"
    version = "1.8.1"
    sampling = _same(*COMMON, "frequency_penalty", "seed")
    # mflux makes images, and asks for an mlx that no longer goes with the rest.
    installed = Environment(
        name=name,
        requirements=(f"{name}=={version}", TORCH),
        excludes=(*WITHOUT, "mflux"),
    )

    def served(self, model: str) -> str:
        """See `HTTPServer`."""
        return model

    def command(self, setup: Setup, port: int, scratch: Path) -> Sequence[str | Path]:
        """See `HTTPServer`."""
        self._note(ALONE)
        self._note("ignores seeds while it batches")
        self._note("writes the KV cache of each answer to disk between steps; no option ends that")
        if setup.fits_one:
            # Its count of a model's requests ends when a stream begins.
            self._note("to make room it unloads a model that still streams; the answer never ends")
        config = {
            "server": {"host": "127.0.0.1", "port": port, "no_log_file": True},
            "models": [
                {
                    "model_path": str(folder),
                    "served_model_name": model,
                    "on_demand": setup.fits_one or model not in setup.loaded,
                    "on_demand_idle_timeout": 24 * 3600,
                    "queue_timeout": int(REQUEST_SECONDS),
                    "batch_completion_size": AT_ONCE,
                    "batch_prefill_size": AT_ONCE,
                    **({} if setup.prefix_cache else {"prompt_cache_size": 0}),
                }
                for model, folder in setup.models.items()
            ],
        }
        script = self.installed.script("mlx-openai-server")
        return [script, "launch", "--config", _write(scratch / "config.yaml", config)]


def _write(file: Path, config: Mapping[str, object]) -> Path:
    file.write_text(json.dumps(config))  # which is YAML too
    return file


def _weights(folder: Path) -> int:
    """Bytes of a model's weights."""
    return sum(file.stat().st_size for file in folder.glob("*.safetensors"))


def _room(sizes: Sequence[int], *, one: bool) -> float:
    """Bytes for all the models, or for any one of them but no two."""
    return max(sizes) + min(sizes) / 2 if one and len(sizes) > 1 else 2 * sum(sizes)
