"""Compares us with raw mlx-lm, and with other servers, case by case.

    python -m benchmarks                              every case against raw mlx-lm, then
                                                      the scripts; or: make bench
    python -m benchmarks --peers                      every case, peers as well; or:
                                                      make bench-peers
    python -m benchmarks single batch-32 --tokens 200 --json some.json --plot some.png
    python -m benchmarks --large llama-8b --small phi3-mini     shapes, random weights
    python -m benchmarks --list

What a case or a script needs is taken from its name; `python -m benchmarks.NAME --help`
tells the options of a script.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import shutil
import signal
import subprocess
import sys
import tempfile
import textwrap
import traceback
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from mlx_guarded_llm import Catalog

from . import report
from .cases import NAMES, all_cases, chosen_cases
from .harness import Case, Comparison, compare
from .ours import Ours
from .peers import PYTHON_APIS, SERVERS
from .raw import Raw
from .shapes import SHAPES
from .side import Side

# What compares nothing with raw mlx-lm or a peer. Each runs in a process of its own.
SCRIPTS = (
    ("overhead",),
    ("grammar", "--tokens", "24", "--rows", "8", "--rounds", "3"),
    ("layers", "--shape", "tiny"),
    ("steps", "--shape", "tiny", "--rows", "1", "8", "--tokens", "16"),
    ("products", "--columns", "512", "--outputs", "512", "--matrices", "2", "--rows", "1", "8"),
    ("repeat", "--shape", "tiny", "--tokens", "250", "--runs", "2"),
    ("turn_tokens",),
    ("prompt_lengths", "--shape", "tiny"),
    ("isolation", "--shape", "tiny", "--tokens", "200"),
    ("http", "--shape", "tiny", "--rounds", "3"),
    ("isolation", "--tokens", "24", "--rows", "8", "--rounds", "2"),
    ("crash", "--shape", "tiny", "--tokens", "200", "--rounds", "3"),
    ("crash", "--model", "smollm2-135m-bf16", "--rounds", "2"),
    ("incident",),
)
DEVICE = """
import mlx.core as mx
print(mx.default_device() == mx.Device(mx.gpu), mx.device_info().get("device_name"))
"""


def main() -> int:
    """Run what was asked for. Returns 1 if something of it failed."""
    # Whatever ends this is to end the sides as well.
    signal.signal(signal.SIGTERM, lambda number, _frame: sys.exit(128 + number))
    args = arguments()
    if args.list:
        listing(args)
        return 0
    scripts = [script for script in SCRIPTS if script[0] in args.names]
    if not args.names and not args.peers:
        scripts = list(SCRIPTS)
    failed = run_cases(args) if chosen_cases(args) else []
    failed += [script[0] for script in scripts if not run_script(script)]
    if failed:
        print(f"\nfailed: {', '.join(failed)}", file=sys.stderr)
    return 1 if failed else 0


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    peers = [make().name for make in (*SERVERS, *PYTHON_APIS)]
    choices = list(dict.fromkeys([*NAMES, *(script[0] for script in SCRIPTS)]))
    told = f"of {', '.join(choices)}, or of one case, see --list"
    parser.add_argument("names", nargs="*", metavar="NAME", help=told)
    parser.add_argument("--peers", action="store_true", help="other servers take part")
    parser.add_argument(
        "--without", action="append", default=[], choices=peers, help="a peer to leave out"
    )
    parser.add_argument(
        "--folded", action="store_true", help="raw mlx-lm takes part with its rows folded as well"
    )
    parser.add_argument("--large", default="mini", help="a model, or a shape")
    parser.add_argument("--small", default="tiny", help="a model, or a shape")
    parser.add_argument("--folder", type=Path, help="where shapes are made, and kept")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--tokens", type=int, default=48, help="of an answer")
    parser.add_argument("--passages", type=int, help="of the case rag; 1000, on a CPU 40")
    parser.add_argument("--json", type=Path, help="write every figure of every round")
    parser.add_argument("--plot", type=Path, help="draw the ratios")
    parser.add_argument("--list", action="store_true", help="tell the cases and scripts")
    args = parser.parse_args()
    args.gpu = False  # until it is known
    cases = {case.name for cases in all_cases(args).values() for case in cases}
    if unknown := sorted(set(args.names) - set(choices) - cases):
        parser.error(f"no {', '.join(unknown)}; there are {', '.join(choices)}")
    return args


def listing(args: argparse.Namespace) -> None:
    """Print what there is."""
    for case in itertools.chain.from_iterable(all_cases(args).values()):
        print(textwrap.fill(f"{case.name}: {case.what} Aim: {case.aim}.", report.WIDTH))
    for script in SCRIPTS:
        print(f"python -m benchmarks.{' '.join(script)}")


def run_cases(args: argparse.Namespace) -> list[str]:
    """Run the cases asked for and report them. Returns the names of those that failed."""
    on_gpu, device = subprocess.run(
        [sys.executable, "-c", DEVICE], check=True, capture_output=True, text=True
    ).stdout.split(maxsplit=1)
    args.gpu, device = on_gpu == "True", device.strip()
    print(f"large is {args.large}, small is {args.small}, on {device}")
    comparisons: list[Comparison] = []
    failed: list[str] = []
    with folders(args) as models:
        for case in chosen_cases(args):
            try:
                comparison = run_case(case, models, args)
                comparisons.append(comparison)
                write(comparisons, args, device)
                if comparison.failed:
                    failed.append(case.name)
            except Exception:
                traceback.print_exc()
                failed.append(case.name)
    return failed


def run_case(case: Case, models: Mapping[str, Path], args: argparse.Namespace) -> Comparison:
    print(f"\n== {case.name}")
    print(textwrap.fill(case.what, report.WIDTH), flush=True)
    comparison = compare(case, sides(case, args), models, args.rounds, say=_say)
    report.show(comparison)
    return comparison


def sides(case: Case, args: argparse.Namespace) -> list[Side]:
    """Those that take part in a case, not open yet."""
    taking: list[Side] = [Raw()] if case.needs_raw else []
    if case.needs_raw and args.folded:
        taking.append(Raw(folded=True))
    taking.append(Ours())
    if args.peers:
        makers = [*(SERVERS if case.peers else ()), *(PYTHON_APIS if case.python_apis else ())]
        peers = [make() for make in makers]
        taking += [peer for peer in peers if peer.name not in args.without]
    return taking


def write(comparisons: Sequence[Comparison], args: argparse.Namespace, device: str) -> None:
    """Write the files that were asked for, after each case anew."""
    if args.json:
        models = {"large": args.large, "small": args.small}
        report.write_json(args.json, comparisons, models=models, device=device)
    if args.plot:
        title = f"{args.large} (and {args.small}) on {device}"
        report.plot(args.plot, comparisons, title=title)


@contextlib.contextmanager
def folders(args: argparse.Namespace) -> Iterator[dict[str, Path]]:
    """The folders of the two models, which are two even if one is named twice."""
    with tempfile.TemporaryDirectory() as scratch:
        home = args.folder or Path(scratch)
        catalog = Catalog()
        found: dict[str, Path] = {}
        for seed, (size, name) in enumerate((("large", args.large), ("small", args.small))):
            if name in SHAPES:
                found[size] = home / f"{size}-{name}"
                command = [sys.executable, "-m", "benchmarks.shapes", name, str(found[size])]
                subprocess.run([*command, "--seed", str(seed)], check=True)
            else:
                found[size] = catalog.ensure(catalog.resolve(name)).path
        if found["small"] == found["large"]:
            found["small"] = Path(scratch) / "small"
            shutil.copytree(found["large"], found["small"])
        yield found


def run_script(script: Sequence[str]) -> bool:
    """Run one in a process of its own. Returns whether it went well."""
    name, *options = script
    print(f"\n== python -m benchmarks.{' '.join(script)}", flush=True)
    command = [sys.executable, "-m", f"benchmarks.{name}", *options]
    return not subprocess.run(command, check=False).returncode


def _say(line: str) -> None:
    print(line, flush=True)


if __name__ == "__main__":
    sys.exit(main())
