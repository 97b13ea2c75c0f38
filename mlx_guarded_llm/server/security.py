"""Who may ask: keys, and the checks against pages of other sites and rebound names.

A page of another site can make a browser send requests to this machine. What it sends has
an `Origin`, or says `Sec-Fetch-Site: cross-site`; and if it came by a name of its own that
was rebound to this address, its `Host` is that name and not ours.
"""

from __future__ import annotations

import hmac
import ipaddress
import socket
from collections.abc import Mapping
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from urllib.parse import urlsplit

from pydantic import SecretStr
from starlette.datastructures import Headers

from ..backend.shared_server import socket_path
from ..errors import InvalidRequest
from .errors import HTTPError
from .settings import Key, Settings

LOOPBACK = ("localhost", "127.0.0.1", "::1")
OPEN_PATHS = (
    *("/health", "/ready", "/api/hello"),  # to see whether it lives needs no key,
    *("/", "/live/live.css", "/live/live.js", "/live/icon.svg"),  # nor the page that asks for it
)


@dataclass(frozen=True)
class Client:
    """Who asks.

    Attributes:
        name: of the key; "" where none is needed.
        models: that it may use; empty for all.
        admin: may load, unload and pin models, and see what others do.
        owner: the user whose shared server it is. Everything is as in a program of this user's:
            every model can be asked for, with every option.
    """

    name: str = ""
    models: tuple[str, ...] = ()
    admin: bool = False
    owner: bool = False

    def may_use(self, model: str) -> bool:
        """Whether a model is there for it."""
        return not self.models or model in self.models


class Gate:
    """Lets requests through, or says why not.

    Args:
        settings: of the server.

    Raises:
        InvalidRequest: it would be open to others without a key.
    """

    def __init__(self, settings: Settings) -> None:
        keys = all_keys(settings)
        self._keys = [
            (
                sha256(key.key.get_secret_value().encode()).digest(),
                Client(name, key.models, key.admin),
            )
            for name, key in keys.items()
        ]
        self._any_host = settings.uds is not None
        self._own_socket = str(socket_path()) if settings.share else None
        self._names = {*LOOPBACK, settings.host.lower(), socket.gethostname().lower()}
        self._names |= {name.lower() for name in settings.allowed_hosts}
        self._origins = {origin.rstrip("/").lower() for origin in settings.allowed_origins}
        if not (self._keys or settings.uds or is_loopback(settings.host)):
            raise InvalidRequest(
                f"host is {settings.host}, which others can reach, and there is no key.",
                hint="Give --key-file FILE, or leave --host out.",
            )

    @property
    def needs_key(self) -> bool:
        """Whether clients have to show one."""
        return bool(self._keys)

    def client(self, path: str, headers: Headers, socket: str | None = None) -> Client:
        """Who asks.

        Args:
            path: of the request.
            headers: of it.
            socket: the path of the Unix socket that it came through.

        Raises:
            HTTPError: 401 or 403.
        """
        if socket is not None and socket == self._own_socket:
            # The system lets only this user connect, and no browser can.
            return Client(admin=True, owner=True)
        self._check_host(headers.get("host", ""))
        self._check_origin(headers)
        if not self._keys:
            return Client(admin=True)
        shown = _shown_key(headers)
        digest = sha256(shown.encode()).digest()
        # All are compared, whichever fits, so that the time tells nothing.
        found = [client for known, client in self._keys if hmac.compare_digest(known, digest)]
        if not found and path in OPEN_PATHS:
            return Client()
        if not found:
            raise HTTPError(
                401,
                "invalid_api_key",
                "the key is not known here." if shown else "this server needs a key.",
                hint="Send it as `Authorization: Bearer KEY` or `x-api-key: KEY`.",
                headers={"www-authenticate": "Bearer"},
            )
        return found[0]

    def _check_host(self, host: str) -> None:
        name = _host_name(host)
        if self._any_host or name in self._names or name.endswith(".localhost") or _is_ip(name):
            return
        raise HTTPError(
            403,
            "host_not_allowed",
            f"this server is not known as {name[:200]!r}.",
            hint="The setting allowed_hosts takes more names.",
        )

    def _check_origin(self, headers: Headers) -> None:
        origin = headers.get("origin", "").rstrip("/").lower()
        if origin in self._origins:
            return
        same = bool(origin) and _netloc(origin) == headers.get("host", "").lower()
        elsewhere = headers.get("sec-fetch-site", "none") in ("cross-site", "same-site")
        if (origin and not same) or (elsewhere and not same):
            raise HTTPError(
                403,
                "origin_not_allowed",
                f"pages of {origin[:200] or 'other sites'} may not use this server.",
                hint="The setting allowed_origins takes those that may.",
            )


def all_keys(settings: Settings) -> Mapping[str, Key]:
    """The keys of the settings, and those of the key file.

    Raises:
        InvalidRequest: the file cannot be read, or a line of it is wrong.
    """
    keys = dict(settings.keys)
    if settings.key_file is not None:
        keys |= _read_keys(settings.key_file)
    for name, key in keys.items():
        if not key.key.get_secret_value().strip():
            raise InvalidRequest(f"the key {name} is empty.")
    return keys


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches an address."""
    if host.lower() == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _read_keys(file: Path) -> dict[str, Key]:
    try:
        lines = file.read_text().splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidRequest(f"key_file: {file} cannot be read ({error}).") from error
    keys = {}
    for number, line in enumerate(lines, 1):
        words = line.split("#", 1)[0].split()
        if not words:
            continue
        if len(words) not in (2, 3, 4) or words[3:] not in ([], ["admin"]) or words[0] in keys:
            raise InvalidRequest(
                f"key_file: line {number} of {file} is wrong.",
                hint='A line is "name key", "name key model,model" or "name key * admin"; names '
                "differ.",
            )
        named = words[2] if len(words) > 2 else "*"
        models = () if named == "*" else tuple(named.split(","))
        keys[words[0]] = Key(key=SecretStr(words[1]), models=models, admin=len(words) == 4)
    if not keys:
        raise InvalidRequest(f"key_file: there is no key in {file}.")
    return keys


def _shown_key(headers: Headers) -> str:
    scheme, _, key = headers.get("authorization", "").partition(" ")
    return key.strip() if scheme.lower() == "bearer" else headers.get("x-api-key", "")


def _netloc(origin: str) -> str | None:
    try:
        return urlsplit(origin).netloc
    except ValueError:
        return None


def _host_name(host: str) -> str:
    try:
        return (urlsplit(f"//{host}").hostname or "").lower()
    except ValueError:
        return ""


def _is_ip(name: str) -> bool:
    # An address is no name, and so cannot have been rebound.
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True
