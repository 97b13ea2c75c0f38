"""What clients of our server, and of others, meet; or: make bench-clients.

    python -m benchmarks.clients                         every scenario, on every server
    python -m benchmarks.clients incident crash --rounds 2 --json some.json
    python -m benchmarks.clients --only mlx_lm.server --only "mlx-guarded serve"

Servers take turns: in each round every one is started, asked and ended, in an order that
rotates. Texts are compared with those of raw mlx-lm, alone; weights are float32, so that
they are the same however requests are batched. The tables are Markdown. Rounds
in the file of `--json` are kept and count, so that what takes long can be done in parts;
`--rounds 0` only prints its tables.
`python -m benchmarks.peers` makes the environments of the others, and says which run here.
"""

from __future__ import annotations

import argparse
import datetime
import json
import platform
import signal
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import suppress
from importlib import metadata
from pathlib import Path
from typing import Any

from benchmarks.clients.crash import Crash
from benchmarks.clients.incident import Incident
from benchmarks.clients.scenario import Contender, Expected, Met, Scenario, shorten
from benchmarks.clients.starvation import Starvation
from benchmarks.clients.table import table
from benchmarks.clients.two_models import TwoModels
from benchmarks.peers import SERVERS
from benchmarks.peers.servers import GuardedServer, RapidMLX
from benchmarks.shapes import SHAPES
from benchmarks.side import CannotRun

SCENARIOS = (Incident, Starvation, TwoModels, Crash)
NAMES = [make.name for make in SCENARIOS]


def main() -> int:
    """Run what was asked for. Returns 1 if our server did not start."""
    # Whatever ends this is to end the servers as well.
    signal.signal(signal.SIGTERM, lambda number, _frame: sys.exit(128 + number))
    args = arguments()
    record = Record(args.json)
    with tempfile.TemporaryDirectory() as scratch:
        models = made(args.folder or Path(scratch), args.large, args.small)
        scenarios = [make(args.tokens) for make in SCENARIOS]
        for scenario in scenarios:
            if not args.names or scenario.name in args.names:
                run(scenario, models, record, args)
    return 1 if record.failed else 0


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.clients",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    servers = [GuardedServer.name, *(make().name for make in SERVERS)]
    parser.add_argument("names", nargs="*", metavar="SCENARIO", help=", ".join(NAMES))
    parser.add_argument(
        "--only", action="append", choices=servers, help="a server that takes part; else all do"
    )
    parser.add_argument("--large", default="mini", choices=SHAPES, help="model A")
    parser.add_argument("--small", default="tiny", choices=SHAPES, help="model B")
    parser.add_argument("--folder", type=Path, help="where the models are made, and kept")
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--tokens", type=int, default=48, help="of an answer")
    parser.add_argument("--json", type=Path, help="keep every answer of every round here")
    args = parser.parse_args()
    if unknown := sorted(set(args.names) - set(NAMES)):
        parser.error(f"no {', '.join(unknown)}; there are {', '.join(NAMES)}")
    return args


def made(home: Path, large: str, small: str) -> Mapping[str, Path]:
    """The folders of the two models, made if they are not there."""
    found = {}
    for seed, (size, shape) in enumerate((("large", large), ("small", small))):
        found[size] = home / f"{size}-{shape}"
        command = [sys.executable, "-m", "benchmarks.shapes", shape, str(found[size])]
        subprocess.run([*command, "--seed", str(seed), "--dtype", "float32"], check=True)
    return found


def contenders(scenario: Scenario, only: Sequence[str] | None) -> list[Contender]:
    """Who takes part, ours first."""
    ours = GuardedServer.name
    several = len(scenario.waits) > 1
    taking = [
        Contender(f"{ours}, load_wait={wait:g}" if several else ours, GuardedServer, wait)
        for wait in scenario.waits
        if not only or ours in only
    ]
    for make in SERVERS:
        name = make().name
        if only and name not in only:
            continue
        if make is RapidMLX and scenario.plain:
            taking.append(Contender(f"{name}, plain client", lambda: RapidMLX(plain=True)))
            name += ", its client loads"
        taking.append(Contender(name, make))
    return taking


def run(
    scenario: Scenario, models: Mapping[str, Path], record: Record, args: argparse.Namespace
) -> None:
    """Run the rounds of a scenario, and print its table."""
    print(f"\n== {scenario.name}: {scenario.what}", flush=True)
    taking = contenders(scenario, args.only)
    expected = Expected.of(models, scenario.asks) if args.rounds else Expected([])
    for round_ in range(args.rounds):
        turn = round_ % len(taking)
        for server in (*taking[turn:], *taking[:turn]):
            try:
                met = scenario.run(server, models, expected)
            except CannotRun as error:
                met = Met({"does not run": shorten(str(error))})
                record.failed |= server.make is GuardedServer
            record.add(scenario.name, server, round_, met)
            told = ", ".join(f"{name} {_told(value)}" for name, value in met.row.items())
            print(f"  {round_ + 1}  {server.name}: {told}", flush=True)
    rounds = {server.name: record.rows(scenario.name, server.name) for server in taking}
    found = {name: rows for name, rows in rounds.items() if rows}
    print(f"\n{table(found, ratio=scenario.ratio)}\n" if found else "\nno rounds\n")
    for server in taking:
        for note in server.notes:
            print(f"{server.name}: {note}")


class Record:
    """Every answer of every round, in a file if there is to be one."""

    def __init__(self, path: Path | None) -> None:
        self.failed = False
        self._run = _now()
        self._path = path
        self._rounds: list[dict[str, Any]] = []
        if path is not None and path.exists():
            self._rounds = json.loads(path.read_text())["rounds"]

    def add(self, scenario: str, server: Contender, round_: int, met: Met) -> None:
        """Keep a round."""
        self._rounds.append(
            {
                "scenario": scenario,
                "server": server.name,
                "version": server.make().version,
                "round": f"{self._run} {round_ + 1}",
                "when": _now(),
                "row": met.row,
                "clients": met.clients,
            }
        )
        if self._path is not None:
            versions = {}
            for name in ("mlx", "mlx-lm", "mlx-cpu"):
                with suppress(metadata.PackageNotFoundError):
                    versions[name] = metadata.version(name)
            document = {
                "command": ["python", "-m", "benchmarks.clients", *sys.argv[1:]],
                "system": platform.platform(),
                "versions": versions,
                "rounds": self._rounds,
            }
            self._path.write_text(json.dumps(document, indent=1) + "\n")

    def rows(self, scenario: str, server: str) -> dict[str, dict[str, Any]]:
        """The rows of a server, by round."""
        return {
            one["round"]: one["row"]
            for one in self._rounds
            if (one["scenario"], one["server"]) == (scenario, server)
        }


def _now() -> str:
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")


def _told(value: float | str) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)


if __name__ == "__main__":
    sys.exit(main())
