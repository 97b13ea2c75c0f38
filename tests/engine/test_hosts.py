"""One model over several ranks: real processes and MLX's ring, on this machine."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import psutil
import pytest

from mlx_guarded_llm import Backend, Catalog, Result
from mlx_guarded_llm.errors import (
    HostUnavailable,
    InvalidRequest,
    MemoryRefused,
    ModelUnsupported,
)
from mlx_guarded_llm.models.hosts import read_hosts
from tests.conftest import MakeModel
from tests.engine._backend import events, text_of, wait_for, wait_until

pytestmark = pytest.mark.slow  # a group is started, and started again

LOCAL = "local:2"
NOBODY = [["127.0.0.1:1"], ["127.0.0.1:2"]]  # addresses at which no rank answers
GREEDY: dict[str, Any] = {"max_tokens": 40, "temperature": 0.0}
SSH = """#!/bin/sh
for last; do :; done
case "$*" in
*nobody*) echo "ssh: connect to host nobody port 22: No route to host" >&2; exit 255 ;;
*silent*) exec sleep 60 ;;
*late*) until [ -e "{folder}/come" ]; do sleep 0.1; done; exec sh -c "$last" ;;
*once*) if [ -e "{folder}/was" ]; then until [ -e "{folder}/come" ]; do sleep 0.1; done; fi
        touch "{folder}/was"; exec sh -c "$last" ;;
*) echo "Welcome to second."; exec sh -c "$last" ;;
esac
"""


# An interpreter whose rank stands still, once, where MLX would connect it.
STANDS_STILL = """#!{python}
import os, pathlib, runpy, sys, time
from mlx_guarded_llm.engine.ranks.group import Group

here = pathlib.Path({folder!r}, "pid")
join = Group.join


def stand_still(form):
    if here.exists():
        return join(form)
    here.with_name("new").write_text(str(os.getpid()))
    here.with_name("new").rename(here)
    time.sleep(1000)


Group.join = stand_still
sys.argv[1:] = []
runpy.run_module("mlx_guarded_llm.worker.rank", run_name="__main__")
"""


def make(folder: Path, **options: Any) -> Backend:
    catalog = Catalog(cache_dir=folder / "cache")
    defaults: dict[str, Any] = {"memory_budget": "1GiB", "prefix_cache": "64MiB", "offline": True}
    return Backend(catalog=catalog, count_others=False, **{**defaults, **options})


@pytest.fixture(scope="module")
def spread(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Backend]:
    """A backend whose engine has one group for all tests of this module."""
    with make(tmp_path_factory.mktemp("spread")) as backend:
        yield backend


def other_ranks(backend: Backend) -> list[psutil.Process]:
    assert backend.worker_pid is not None
    return psutil.Process(backend.worker_pid).children()


def answers(backend: Backend, model: str, asked: Sequence[dict[str, Any]]) -> list[Result]:
    """The answers to requests that are sent at the same time."""
    with ThreadPoolExecutor(len(asked)) as pool:
        return list(pool.map(lambda options: backend.generate(model, **options), asked))


@pytest.mark.parametrize(
    ("architecture", "hosts"), [("llama", LOCAL), ("qwen2", LOCAL), ("qwen2", f"pipeline:{LOCAL}")]
)
def test_two_ranks_give_the_tokens_of_one_process(
    spread: Backend, tiny: MakeModel, architecture: str, hosts: str
) -> None:
    folder = tiny(architecture=architecture, layers=3)
    alone = spread.generate(folder, "Hello there", **GREEDY)
    together = spread.generate(folder, "Hello there", hosts=hosts, **GREEDY)
    assert together.text == alone.text and together.usage.cached_tokens == 0
    again = spread.generate(folder, "Hello there", hosts=hosts, **GREEDY)
    assert again.text == alone.text
    assert again.usage.cached_tokens > 0  # its caches were kept, by both ranks
    assert len(other_ranks(spread)) == 1  # one group for all models


def test_a_batch_is_that_of_one_process(spread: Backend, tiny: MakeModel) -> None:
    folder = tiny(layers=3)
    schema = {"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"]}
    asked: list[dict[str, Any]] = [
        {"prompt": "Hello there", **GREEDY},
        {"prompt": "A longer prompt, " * 20, **GREEDY, "max_tokens": 15},
        {"prompt": "Sampled", "temperature": 0.9, "seed": 7, "top_p": 0.9, "max_tokens": 25},
        {"prompt": "Once more", **GREEDY, "repetition_penalty": 1.3},
        {"prompt": "As JSON", **GREEDY, "schema": schema, "max_tokens": 60},
        {"prompt": "With a stop", **GREEDY, "stop": ["e"]},
    ]
    alone = [spread.generate(folder, **options) for options in asked]
    together = answers(spread, f"{folder}[hosts={LOCAL}]", asked)
    assert [answer.text for answer in together] == [answer.text for answer in alone]
    names = {event.model for event in events(spread, "request.started")}
    assert len(names) > 1  # the models of one process and of two took turns in one engine


def test_what_this_machine_takes_is_counted(spread: Backend, tiny: MakeModel) -> None:
    folder = tiny(layers=3)
    whole = spread.load(folder)
    parts = spread.load(folder, hosts=LOCAL)
    # Each rank has all of the embedding and the head, and half of the rest.
    counted = read_hosts(LOCAL).counted  # 1 where each has a GPU of its own
    assert counted * whole.memory_bytes / 2 < parts.memory_bytes < counted * whole.memory_bytes
    assert parts.options == {"hosts": LOCAL}
    spread.unload(folder, hosts=LOCAL)
    assert spread.generate(folder, "Hello", hosts=LOCAL, **GREEDY).text  # it comes back


def test_what_cannot_be_spread_is_refused_by_name(
    spread: Backend, tiny: MakeModel, embedder: MakeModel, tmp_path: Path
) -> None:
    folder = tiny(layers=3)
    for options in ({"adapter_path": tmp_path}, {"draft": "prompt"}):
        with pytest.raises(InvalidRequest, match=next(iter(options))):
            spread.load(folder, hosts=LOCAL, **options)
    with pytest.raises(InvalidRequest, match="embedding model"):
        spread.load(embedder(), hosts=LOCAL)
    with pytest.raises(ModelUnsupported, match="gemma2 has no shard and no pipeline"):
        spread.load(tiny(architecture="gemma2"), hosts=LOCAL)
    with pytest.raises(ModelUnsupported, match="llama has no pipeline"):
        spread.load(folder, hosts=f"pipeline:{LOCAL}")
    with pytest.raises(InvalidRequest, match="no IP address"):
        spread.load(folder, hosts=["127.0.0.1", "not an address"])
    spread.load(folder, hosts=LOCAL)
    with pytest.raises(InvalidRequest, match=r"spread over 127\.0\.0\.1, 127\.0\.0\.1"):
        spread.load(tiny(architecture="qwen2", layers=3), hosts="pipeline:local:3")
    backend = make(tmp_path, isolation="thread")
    with backend, pytest.raises(InvalidRequest, match="thread"):
        backend.generate(folder, "Hello", hosts=LOCAL, **GREEDY)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGABRT])
def test_the_death_of_a_rank_is_a_pause(
    spread: Backend, tiny: MakeModel, number: signal.Signals
) -> None:
    folder = tiny(layers=3)
    options: dict[str, Any] = {"max_tokens": 150, "temperature": 0.8, "seed": 5}
    undisturbed = spread.generate(folder, "Hello", **options)
    spread.load(folder, hosts=LOCAL)
    pid, (other,) = spread.worker_pid, other_ranks(spread)
    stream = spread.stream(folder, "Hello", hosts=LOCAL, **options)
    chunks = [next(stream)]
    other.send_signal(number)
    chunks += stream
    assert text_of(chunks) == undisturbed.text
    guard = chunks[-1].guard
    assert guard is not None and guard.resumed
    assert spread.worker_pid != pid and not other.is_running()
    death = events(spread, "engine.died")[-1]
    assert "rank 1 on 127.0.0.1" in death.cause or "several ranks" in death.cause
    assert death.details["how"] == ("rank_lost" if number == signal.SIGKILL else "condemned")


def test_no_rank_outlives_the_engine(spread: Backend, tiny: MakeModel) -> None:
    folder = tiny(layers=3)
    spread.load(folder, hosts=LOCAL)
    pid, others = spread.worker_pid, other_ranks(spread)
    assert pid is not None and others
    os.kill(pid, signal.SIGKILL)
    wait_until(lambda: not any(other.is_running() for other in others))
    assert spread.generate(folder, "Hello", hosts=LOCAL, **GREEDY).text


def program(path: Path, text: str) -> None:
    path.write_text(text)
    path.chmod(0o755)


@pytest.fixture
def hostfile(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., str]:
    """Writes a hostfile whose second host is behind what calls itself ssh."""
    program(tmp_path / "ssh", SSH.replace("{folder}", str(tmp_path)))
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")

    def write(name: str, **facts: Any) -> str:
        second = {"ssh": name, "ips": ["127.0.0.2"], **facts}
        hosts = [{"ssh": "first", "ips": ["127.0.0.1"]}, second]
        (tmp_path / f"{name}.json").write_text(json.dumps(hosts))
        return str(tmp_path / f"{name}.json")

    return write


def test_a_rank_that_is_lost_while_mlx_connects_is_a_pause(
    tiny: MakeModel, tmp_path: Path, hostfile: Callable[..., str]
) -> None:
    program(tmp_path / "python", STANDS_STILL.format(python=sys.executable, folder=str(tmp_path)))
    hosts, folder = hostfile("second", python=str(tmp_path / "python")), tiny(layers=3)
    # The watchdog would end it as well, but after minutes, and would call it hung.
    with make(tmp_path, stall_timeout=300.0) as backend, ThreadPoolExecutor(1) as pool:
        alone = backend.generate(folder, "Hello", **GREEDY)
        answer = pool.submit(backend.generate, folder, "Hello", hosts=hosts, **GREEDY)
        wait_until((tmp_path / "pid").exists)
        os.kill(int((tmp_path / "pid").read_text()), signal.SIGKILL)
        assert answer.result().text == alone.text
        death = events(backend, "engine.died")[-1]
        assert death.details["how"] == "rank_lost" and "rank 1 on second" in death.cause
        assert len(other_ranks(backend)) == 1


def test_a_rank_does_not_wait_for_ever_for_those_that_never_come() -> None:
    form = (
        f"Form(rank=1, options=EngineOptions(prepare_timeout=1.0), network='ring', variables="
        f"{{'MLX_RANK': '1'}}, files={{'MLX_HOSTFILE': {json.dumps(NOBODY)!r}}})"
    )
    code = (
        "from mlx_guarded_llm.engine.protocol import EngineOptions\n"
        "from mlx_guarded_llm.engine.ranks.orders import Form\n"
        "from mlx_guarded_llm.engine.ranks.group import Group\n"
        f"Group.join({form})"
    )
    ended = subprocess.run([sys.executable, "-c", code], check=False, timeout=60)
    assert ended.returncode == -signal.SIGALRM


def test_a_load_holds_up_nobody_while_its_ranks_start(
    tiny: MakeModel, tmp_path: Path, hostfile: Callable[..., str]
) -> None:
    folder = tiny(layers=3)
    with make(tmp_path) as backend, ThreadPoolExecutor(1) as pool:
        load = pool.submit(backend.load, folder, hosts=hostfile("late"))
        alone = backend.generate(folder, "Hello", **GREEDY)
        assert not load.done()
        (tmp_path / "come").touch()
        load.result()
        assert backend.generate(folder, "Hello", **GREEDY).text == alone.text  # the one with hosts
        assert len(events(backend, "load.finished")) == 2


def test_a_machine_that_stays_away_holds_up_its_own_models_only(
    tiny: MakeModel, tmp_path: Path, hostfile: Callable[..., str]
) -> None:
    folder, hosts = tiny(layers=3), hostfile("once")
    options: dict[str, Any] = {"max_tokens": 150, "temperature": 0.8, "seed": 5}
    with make(tmp_path) as backend, ThreadPoolExecutor(1) as pool:
        undisturbed = backend.generate(folder, "Hello", **options)
        backend.load(folder, hosts=hosts)
        stream = backend.stream(folder, "Hello", hosts=hosts, **options)
        chunks = [next(stream)]
        rest = pool.submit(list, stream)
        (behind_ssh,) = other_ranks(backend)
        for process in (*behind_ssh.children(recursive=True), behind_ssh):
            process.kill()
        wait_for(backend, "engine.died")
        assert backend.generate(f"{folder}[]", "Hello", **options).text == undisturbed.text
        assert not rest.done()
        (tmp_path / "come").touch()
        chunks += rest.result()
        assert text_of(chunks) == undisturbed.text
        assert chunks[-1].guard is not None and chunks[-1].guard.resumed


def test_a_machine_with_less_memory_bounds_the_group(
    tiny: MakeModel, tmp_path: Path, hostfile: Callable[..., str]
) -> None:
    # Half of the weights and a prefill take 10.0 MB, and a KV cache 0.5 MB for 1024 tokens.
    folder, small = tiny(layers=3), hostfile("small", memory_budget="10.9MB")
    with make(tmp_path, prefix_cache=0) as backend, ThreadPoolExecutor(1) as pool:
        with pytest.raises(MemoryRefused, match=r"tokens .* at rank 1 on small") as refused:
            backend.generate(folder, "Hello", hosts=small, max_tokens=1900)
        assert refused.value.budget_bytes == 10_900_000
        backend.load(folder, hosts=small)
        name = f"{folder}[hosts={small}]"
        long: dict[str, Any] = {"max_tokens": 900, "temperature": 0.0}
        stream = backend.stream(name, "Hello", request_id="first", **long)
        next(stream)
        second = pool.submit(backend.generate, name, "Hello", request_id="second", **long)
        wait_for(backend, "request.queued", request_id="second")
        stream.close()
        assert second.result().text
        stories = [(event.kind, event.request_id) for event in events(backend, "request.")]
        ended = stories.index(("request.finished", "first"))
        assert stories.index(("request.started", "second")) > ended  # both fit here, not there
    with make(tmp_path, prefix_cache=0) as backend:
        with pytest.raises(MemoryRefused, match="rank 1 on tiny"):
            backend.load(folder, hosts=hostfile("tiny", memory_budget="9MB"))
        assert not events(backend, "load.started")


def test_other_machines_are_reached_by_ssh(
    tiny: MakeModel, tmp_path: Path, hostfile: Callable[..., str]
) -> None:
    folder = tiny(layers=3)
    with make(tmp_path) as backend:
        with pytest.raises(HostUnavailable, match=r"rank 1 on nobody .*No route to host"):
            backend.generate(folder, "Hello", hosts=hostfile("nobody"), **GREEDY)
        alone = backend.generate(folder, "Hello", **GREEDY)
        answer = backend.generate(folder, "Hello", hosts=hostfile("second"), **GREEDY)
        assert answer.text == alone.text
    with make(tmp_path, stall_timeout=3.0) as backend:
        with pytest.raises(HostUnavailable, match="rank 1 on silent did not answer in time"):
            backend.generate(folder, "Hello", hosts=hostfile("silent"), **GREEDY)
        assert not events(backend, "engine.died")
