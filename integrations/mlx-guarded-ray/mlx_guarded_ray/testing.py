"""A small cluster on this machine, for tests and benchmarks: loopback only, no dashboard."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

ATTEMPTS = 4
OBJECT_STORE = 80 * 2**20  # bytes; nothing of ours lies in it for long


@dataclass(frozen=True)
class LocalCluster:
    """Ray Serve on this machine.

    Attributes:
        url: where its application is served.
    """

    url: str

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
def local_cluster(cpus: int = 4) -> Iterator[LocalCluster]:
    """Start Ray and Ray Serve, and end both.

    Args:
        cpus: that Ray counts, whatever the machine has.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    import ray
    from ray import serve

    port = _free_port()
    # Short, as Unix sockets lie in it whose paths may have 107 characters.
    with TemporaryDirectory(prefix="ray-", dir="/tmp") as folder:
        _start(cpus, Path(folder))
        try:
            serve.start(http_options={"host": "127.0.0.1", "port": port})
            yield LocalCluster(f"http://127.0.0.1:{port}")
            serve.shutdown()
        finally:
            ray.shutdown()


def _start(cpus: int, folder: Path) -> None:
    """Start Ray, again if it gives up: it waits for itself half a minute, however busy it is."""
    import ray

    for attempt in range(ATTEMPTS):
        try:
            ray.init(
                num_cpus=cpus,
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


def _free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])
