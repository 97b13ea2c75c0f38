"""Two replicas, three models, memory for one and a half each: our router and Ray Serve's own.

    python -m benchmarks.replicas

It needs what `make test-ray` installs. Both routers get the same requests in the same run: models
A, B, C, A, B, C and so on, a few at a time. Everything runs on this machine, over HTTP.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
import warnings
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import cycle, islice
from pathlib import Path

import httpx
from mlx_guarded_ray.testing import LocalCluster, local_cluster

from mlx_guarded_llm.server import Settings
from mlx_guarded_llm.server.settings import GuardSection, ModelEntry
from mlx_guarded_llm.testing.tiny import make_tiny_model

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
    loads: int
    waits: list[float]  # seconds from a request's arrival at its replica to its start


def measure(
    cluster: LocalCluster, settings: Settings, router: str, requests: int, at_once: int
) -> Outcome:
    """Send the requests to two fresh replicas."""
    cluster.deploy(settings, Cluster(replicas=2, cpus=0.5), router=ROUTERS[router])
    with httpx.Client(base_url=cluster.url, timeout=300, trust_env=False) as client:

        def ask(model: str) -> float:
            messages = [{"role": "user", "content": "hi"}]
            body = {"model": model, "messages": messages, "max_tokens": 16}
            answer = client.post("/v1/chat/completions", json=body).raise_for_status()
            return float(answer.json()["guard"]["queued"])

        with ThreadPoolExecutor(at_once) as pool:
            waits = list(pool.map(ask, islice(cycle("abc"), requests)))
        time.sleep(2.0)  # the record of all replicas is a second late at the most
        metrics = client.get("/metrics").raise_for_status().text
    counts = (line.split() for line in metrics.splitlines() if "load_seconds_count{" in line)
    return Outcome(router, round(sum(float(count) for _, count in counts)), waits)


def models(folder: Path) -> dict[str, Path]:
    """Three models of some 90 MB each."""
    return {
        name: make_tiny_model(folder / name, seed=seed, hidden_size=768, layers=4)
        for seed, name in enumerate("abc")
    }


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.replicas")
    parser.add_argument("--requests", type=int, default=60)
    parser.add_argument("--at-once", type=int, default=2)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, local_cluster() as cluster:
        made = models(Path(folder))
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
        outcomes = [
            measure(cluster, settings, router, given.requests, given.at_once) for router in ROUTERS
        ]
    print(f"{given.requests} requests, {given.at_once} at a time; models of {size / 1e6:.0f} MB\n")
    print("| router | loads | median wait (s) | mean wait (s) | worst wait (s) |")
    print("|---|---:|---:|---:|---:|")
    for one in outcomes:
        median, mean = statistics.median(one.waits), statistics.mean(one.waits)
        print(f"| {one.router} | {one.loads} | {median:.2f} | {mean:.2f} | {max(one.waits):.2f} |")


HEAD = 64 * 2**20  # bytes for KV caches and prefill, which the guard promises to requests

if __name__ == "__main__":
    main()
