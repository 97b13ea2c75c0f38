"""Opens each peer, asks it something short, and prints what worked.

    python -m benchmarks.peers [NAME ...]

Makes the environments on first use. Run it before `make bench-peers`, to see which of the
peers run on this machine, and what they answer.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Mapping
from pathlib import Path

from benchmarks.peers import PYTHON_APIS, SERVERS
from benchmarks.shapes import chosen
from benchmarks.side import Ask, CannotRun, Setup, Side

QUESTION = ({"role": "user", "content": "Write the days of the week."},)


def main() -> int:
    names = [side().name for side in (*SERVERS, *PYTHON_APIS)]
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", metavar="NAME", help=", ".join(names))
    parser.add_argument("--tokens", type=int, default=24)
    arguments = parser.parse_args()
    if unknown := set(arguments.names) - set(names):
        parser.error(f"no peer is called {', '.join(sorted(unknown))}")
    failed = 0
    with (
        chosen(None, "smollm2-135m-bf16") as (_, large, _),
        chosen("tiny", "") as (_, small, _),
    ):
        both = {"large": Path(large), "small": Path(small)}
        for make in (*SERVERS, *PYTHON_APIS):
            side = make()
            if not arguments.names or side.name in arguments.names:
                models = both if make in SERVERS else {"large": both["large"]}
                failed += not _try(side, models, arguments.tokens)
    return 1 if failed else 0


def _try(side: Side, models: Mapping[str, Path], tokens: int) -> bool:
    """Ask each of the models once. Returns whether all answered."""
    print(f"\n{side.name}", flush=True)
    began = time.monotonic()
    worked = True
    try:
        side.open(Setup(models=models))
        print(f"  open after {time.monotonic() - began:.1f} s")
        for model in models:
            heard = side.ask(Ask(model=model, messages=QUESTION, max_tokens=tokens))
            worked &= not heard.error
            print(
                f"  {model}: {heard.tokens} tokens in {len(heard.pieces)} pieces,"
                f" first after {heard.first:.2f} s, all after {heard.seconds:.2f} s:"
                f" {heard.error or repr(heard.text)}",
                flush=True,
            )
    except CannotRun as error:
        print(f"  does not run: {error}")
        return False
    finally:
        side.close()
    for note in side.notes:
        print(f"  note: {note}")
    return worked


if __name__ == "__main__":
    sys.exit(main())
