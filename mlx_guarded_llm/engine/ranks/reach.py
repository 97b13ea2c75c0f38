"""Whether each rank can reach the next one, before MLX waits for that without a limit."""

from __future__ import annotations

import socket
from collections.abc import Sequence
from contextlib import ExitStack

from ...errors import HostUnavailable

PATIENCE = 10.0  # seconds for one connection

Address = tuple[str, int]


class Listening:
    """Sockets at the addresses of this rank, which MLX will use.

    Raises:
        HostUnavailable: one of them is not this machine's, or is taken.
    """

    def __init__(self, addresses: Sequence[Address]) -> None:
        self._sockets: list[socket.socket] = []
        for address in addresses:
            try:
                self._sockets.append(socket.create_server(address, family=_family(address)))
            except OSError as error:
                self.close()
                raise HostUnavailable(
                    f"{_shown(address)} cannot be listened at ({error.strerror or error}).",
                    hint="Each host is named by an address of its own.",
                ) from None

    def close(self) -> None:
        """Leave the addresses to MLX."""
        for each in self._sockets:
            each.close()
        self._sockets.clear()


def reach(addresses: Sequence[Address]) -> None:
    """Connect to each address once.

    Raises:
        HostUnavailable: one does not answer.
    """
    for address in addresses:
        try:
            socket.create_connection(address, timeout=PATIENCE).close()
        except OSError as error:
            raise HostUnavailable(
                f"{_shown(address)} cannot be reached ({error.strerror or error}).",
                hint="Look at the address, and at the firewalls between the machines.",
            ) from None


def free_ports(host: str, count: int) -> list[int]:
    """Ports that nothing uses on this machine."""
    with ExitStack() as stack:
        sockets = [
            stack.enter_context(socket.create_server((host, 0), family=_family((host, 0))))
            for _ in range(count)
        ]
        return [each.getsockname()[1] for each in sockets]


def _family(address: Address) -> socket.AddressFamily:
    return socket.AF_INET6 if ":" in address[0] else socket.AF_INET


def _shown(address: Address) -> str:
    host, port = address
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
