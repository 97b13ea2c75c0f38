"""A small cluster on this machine, for tests and benchmarks: loopback only, no dashboard."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from mlx_guarded_llm.engine.ranks.reach import free_ports

ATTEMPTS = 4
PATIENCE = 120.0  # seconds for one more node
OBJECT_STORE = 80 * 2**20  # bytes; nothing of ours lies in it for long


class Node:
    """One more node of the cluster: another raylet, and what it starts.

    Args:
        cpus: that Ray counts.
        memory: bytes that Ray counts.

    Attributes:
        id: by which Ray knows it.
    """

    def __init__(self, *, cpus: int, memory: int) -> None:
        for attempt in range(1, ATTEMPTS + 1):
            self._process = _start_node(cpus, memory)
            try:
                self.id = self._found()
            except RuntimeError:
                self.kill()
                if attempt == ATTEMPTS:
                    raise
            else:
                return

    def _found(self) -> str:
        import ray

        before = {node["NodeID"] for node in ray.nodes()}
        deadline = time.monotonic() + PATIENCE
        while self._process.poll() is None and time.monotonic() < deadline:
            for node in ray.nodes():
                if node["Alive"] and node["NodeID"] not in before:
                    return str(node["NodeID"])
            time.sleep(0.2)
        raise RuntimeError("the node did not start.")

    def kill(self) -> None:
        """End all of its processes at once, as if the power failed."""
        self._signal(signal.SIGKILL)
        self._process.wait(PATIENCE)

    def freeze(self) -> None:
        """Stop all of its processes: its connections stay, and nothing answers any more."""
        self._signal(signal.SIGSTOP)

    def _signal(self, number: signal.Signals) -> None:
        import psutil  # Ray brings it along

        with suppress(psutil.NoSuchProcess):
            top = psutil.Process(self._process.pid)
            for process in (*top.children(recursive=True), top):
                with suppress(psutil.NoSuchProcess):
                    process.send_signal(number)


@dataclass(frozen=True)
class LocalCluster:
    """Ray Serve on this machine.

    Attributes:
        url: where its application is served.
    """

    url: str
    _end: ExitStack = field(repr=False)

    def add_node(self, **options: Any) -> Node:
        """One more node, until it is killed or the cluster ends; see `Node`."""
        node = Node(**options)
        self._end.callback(node.kill)
        return node

    def deploy(self, settings: Any, cluster: Any, **options: Any) -> Any:
        """Run an application in place of the one before; wait until it serves.

        Args:
            settings: of the server.
            cluster: `application.Cluster`.
            **options: of `application.build`.

        Returns:
            A handle of the deployment of its replicas.
        """
        from ray import serve

        from .application import NAME, build

        if "mlx-guarded" in serve.status().applications:
            serve.delete("mlx-guarded")  # so that nothing of it is counted
        serve.run(build(settings, cluster, **options), name="mlx-guarded", route_prefix="/")
        return serve.get_deployment_handle(NAME, "mlx-guarded")


@contextmanager
def local_cluster(cpus: int = 4, memory: int | None = None) -> Iterator[LocalCluster]:
    """Start Ray and Ray Serve, and end both.

    Args:
        cpus: of the first node as Ray counts them, whatever the machine has.
        memory: bytes of the first node, likewise.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    import ray
    from ray import serve

    (port,) = free_ports("127.0.0.1", 1)
    # Short, as Unix sockets lie in it whose paths may have 107 characters.
    with TemporaryDirectory(prefix="ray-", dir="/tmp") as folder:
        _start(cpus, memory, Path(folder))
        with ExitStack() as end:
            end.callback(ray.shutdown)
            # By default there is a proxy at each node: all would share the port of this machine.
            serve.start("HeadOnly", http_options={"host": "127.0.0.1", "port": port})
            yield LocalCluster(f"http://127.0.0.1:{port}", end)
            serve.shutdown()


def _start(cpus: int, memory: int | None, folder: Path) -> None:
    """Start Ray, again if it gives up: it waits for itself half a minute, however busy it is."""
    import ray

    for attempt in range(ATTEMPTS):
        try:
            ray.init(
                num_cpus=cpus,
                _memory=memory,
                include_dashboard=False,
                object_store_memory=OBJECT_STORE,
                log_to_driver=False,
                logging_level="error",
                _node_ip_address="127.0.0.1",
                _temp_dir=str(folder / str(attempt)),
            )
        except Exception:
            ray.shutdown()
            if attempt == ATTEMPTS - 1:
                raise
        else:
            return


def _start_node(cpus: int, memory: int) -> subprocess.Popen[bytes]:
    import ray

    options = {
        "address": ray.get_runtime_context().gcs_address,
        "node-ip-address": "127.0.0.1",
        "num-cpus": cpus,
        "memory": memory,
        "object-store-memory": OBJECT_STORE,
    }
    return subprocess.Popen(
        [
            sys.executable,
            *("-m", "ray.scripts.scripts", "start", "--block", "--disable-usage-stats"),
            *(f"--{name}={value}" for name, value in options.items()),
        ],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,  # a Ctrl-C is for the test
    )
