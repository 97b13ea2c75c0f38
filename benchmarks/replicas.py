"""Two replicas, three models, memory for one and a half each: our router and Ray Serve's own.

    python -m benchmarks.replicas [--shape llama-8b --gpus 1]

It needs what `make test-ray` installs. Both routers get the same requests in the same run: models
A, B, C, A, B, C and so on, a few at a time. Everything runs on this machine, over HTTP. Before
that one model answers in this program, which compiles kernels and tells how long a load takes.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from itertools import cycle, islice, product
from pathlib import Path

import httpx
from mlx_guarded_ray.testing import LocalCluster, local_cluster

from mlx_guarded_llm import Backend
from mlx_guarded_llm.server import Settings
from mlx_guarded_llm.server.settings import GuardSection, ModelEntry
from mlx_guarded_llm.testing.tiny import make_tiny_model

from .shapes import SHAPES

with warnings.catch_warnings():  # Ray's own code has some at its import
    warnings.simplefilter("ignore")
    from mlx_guarded_ray import Cluster
    from mlx_guarded_ray.application import ROUTER

ROUTERS = {
    "guarded": ROUTER,
    "Ray Serve's default": "ray.serve._private.request_router:PowerOfTwoChoicesRequestRouter",
}


@dataclass(frozen=True)
class Outcome:
    """What came of one router."""

    router: str
    at_once: int
    loads: int
    waits: list[float]  # seconds from a request's arrival at its replica to its start
    seconds: float  # from the first request to the last answer


def measure(
    cluster: LocalCluster, settings: Settings, router: str, at_once: int, given: argparse.Namespace
) -> Outcome:
    """Send the requests to two fresh replicas."""
    replicas = Cluster(replicas=2, cpus=0.5, gpus=given.gpus)
    cluster.deploy(settings, replicas, router=ROUTERS[router])
    with httpx.Client(base_url=cluster.url, timeout=300, trust_env=False) as client:

        def ask(model: str) -> float:
            messages = [{"role": "user", "content": "hi"}]
            body = {"model": model, "messages": messages, "max_tokens": given.tokens}
            answer = client.post("/v1/chat/completions", json=body).raise_for_status()
            return float(answer.json()["guard"]["queued"])

        began = time.monotonic()
        with ThreadPoolExecutor(at_once) as pool:
            waits = list(pool.map(ask, islice(cycle("abc"), given.requests)))
        seconds = time.monotonic() - began
        time.sleep(2.0)  # the record of all replicas is a second late at the most
        metrics = client.get("/metrics").raise_for_status().text
    counts = (line.split() for line in metrics.splitlines() if "load_seconds_count{" in line)
    return Outcome(router, at_once, round(sum(float(count) for _, count in counts)), waits, seconds)


def models(folder: Path, shape: str | None) -> dict[str, Path]:
    """Three models of a shape, or of some 90 MB each."""
    if shape is not None:
        made = {name: folder / name for name in "abc"}
        for seed, path in enumerate(made.values()):
            command = [
                sys.executable,
                "-m",
                "benchmarks.shapes",
                shape,
                str(path),
                "--seed",
                str(seed),
            ]
            subprocess.run(command, check=True)
        return made
    return {
        name: make_tiny_model(folder / name, seed=seed, hidden_size=768, layers=4)
        for seed, name in enumerate("abc")
    }


def load_seconds(model: Path, tokens: int) -> float:
    """How long a load takes, of a model that was loaded and has answered before."""
    with Backend(offline=True) as backend:
        backend.generate(model, "hi", max_tokens=tokens)
        backend.unload(model)
        began = time.monotonic()
        backend.load(model)
        return time.monotonic() - began


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.replicas")
    parser.add_argument("--requests", type=int, default=60)
    parser.add_argument("--at-once", type=int, nargs="+", default=[2])
    parser.add_argument("--tokens", type=int, default=16, help="of an answer")
    parser.add_argument("--shape", choices=SHAPES)
    parser.add_argument("--gpus", type=float, default=0.0, help="of a replica")
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, local_cluster() as cluster:
        made = models(Path(folder), given.shape)
        load = load_seconds(made["a"], given.tokens)
        size = sum(file.stat().st_size for file in made["a"].glob("*.safetensors"))
        settings = Settings(
            models={name: ModelEntry(model=str(model)) for name, model in made.items()},
            port=0,
            guard=GuardSection(
                offline=True,
                count_others=False,
                prefix_cache=0,
                memory_budget=int(1.5 * size) + HEAD,
            ),
        )
        print(f"{given.requests} requests; models of {size / 1e6:.0f} MB, loaded in {load:.1f} s\n")
        print("| router | at once | loads | median wait (s) | mean wait | worst wait | all (s) |")
        print("|---|---:|---:|---:|---:|---:|---:|")
        outcomes = []
        for at_once, router in product(given.at_once, ROUTERS):
            one = measure(cluster, settings, router, at_once, given)
            median, mean = statistics.median(one.waits), statistics.mean(one.waits)
            waits = f"{median:.2f} | {mean:.2f} | {max(one.waits):.2f}"
            print(
                f"| {router} | {at_once} | {one.loads} | {waits} | {one.seconds:.1f} |", flush=True
            )
            outcomes.append(one)
    if given.json:
        rows = [asdict(one) for one in outcomes]
        given.json.write_text(json.dumps({"bytes": size, "load": load, "rows": rows}, indent=1))


HEAD = 64 * 2**20  # bytes for KV caches and prefill, which the guard promises to requests

if __name__ == "__main__":
    main()
