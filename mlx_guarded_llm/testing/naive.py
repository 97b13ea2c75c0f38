"""The server of the incident, as small as it can be: no guard, two threads.

    python -m mlx_guarded_llm.testing.naive MODEL_A MODEL_B

One thread streams an answer of model A. After some tokens another request wants
model B, and a second thread loads it at once. Under the witness this dies as the
real server died on Metal; with `--serial` the load waits for the answer and nothing
happens. This program must not use the library's guard: it shows what happens without.

With `--record FILE` each event is a line of JSON there, written when it happens: nothing can be
written after an abort.
"""

# ruff: noqa: T201 - a program that prints
from __future__ import annotations

import argparse
import json
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from mlx_guarded_llm.record.events import Event, Kind, as_dict
from mlx_guarded_llm.testing import witness

Tell = Callable[[Kind, str], None]


def main(arguments: Sequence[str] | None = None) -> None:
    """Answer with model A while model B is loaded."""
    parser = argparse.ArgumentParser(prog="python -m mlx_guarded_llm.testing.naive")
    parser.add_argument("model_a", help="the model that answers: a folder or a repository")
    parser.add_argument("model_b", help="the model that is loaded meanwhile")
    parser.add_argument("--prompt", default="Why is the sky blue?")
    parser.add_argument("--max-tokens", type=int, default=256)
    parser.add_argument("--at", type=int, default=16, help="load after this many tokens")
    parser.add_argument("--serial", action="store_true", help="load after the answer instead")
    parser.add_argument("--record", type=Path, help="a file for its events, as lines of JSON")
    options = parser.parse_args(arguments)

    tell = recorder(options.record, {"A": options.model_a, "B": options.model_b})
    witness.install()
    import mlx.core as mx
    import mlx_lm

    def load_b() -> None:
        print(f"\n[second thread] loading {options.model_b}", file=sys.stderr, flush=True)
        tell("load.started", "B")
        mlx_lm.load(options.model_b)
        tell("load.finished", "B")
        print(f"[second thread] loaded {options.model_b}", file=sys.stderr, flush=True)
        # Without this the exit of a thread that used MLX aborts the process as well.
        mx.clear_streams()

    loader = threading.Thread(target=load_b, name="loader")
    tell("load.started", "A")
    model, tokenizer = mlx_lm.load(options.model_a)[:2]
    tell("load.finished", "A")
    prompt: str | list[int] = options.prompt
    if tokenizer.has_chat_template:
        messages = [{"role": "user", "content": options.prompt}]
        prompt = tokenizer.apply_chat_template(messages, add_generation_prompt=True)
    answer = mlx_lm.stream_generate(model, tokenizer, prompt, max_tokens=options.max_tokens)
    tell("request.started", "A")
    for count, response in enumerate(answer, start=1):
        if count == 1:
            tell("request.first_token", "A")
        print(response.text, end="", flush=True)
        if count == options.at and not options.serial:
            loader.start()
    print()
    tell("request.finished", "A")
    if options.serial:
        loader.start()
    if loader.ident is not None:
        loader.join()


def recorder(path: Path | None, models: Mapping[str, str]) -> Tell:
    """What writes the events of this server, in the form of the record."""
    if path is None:
        return lambda kind, label: None
    file = path.open("w", encoding="utf-8", buffering=1)

    def tell(kind: Kind, label: str) -> None:
        event = Event(
            kind,
            time.monotonic(),
            model=Path(models[label]).name,
            request_id=f"request-{label}",
            job_id=f"load-{label}" if kind.startswith("load") else None,
        )
        file.write(json.dumps(as_dict(event)) + "\n")

    return tell


if __name__ == "__main__":
    main()
