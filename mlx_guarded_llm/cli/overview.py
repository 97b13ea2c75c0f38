"""All commands on one page. It is shown without importing any of them, so it comes at once."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from rich.padding import Padding
from rich.panel import Panel
from rich.table import Table
from rich.text import Text
from typer.core import TyperOption

from .console import out

# By panel: the first sentence of each command's help.
PANELS: Mapping[str, Mapping[str, str]] = {
    "Models": {
        "run": "Answer one prompt.",
        "chat": "Talk with a model.",
        "embed": "Make a vector of each text: a line of JSON for each.",
        "models": "List the models that can be asked for.",
        "pull": "Fetch a model, so that it can be used without a network.",
        "rm": "Delete a fetched model from the disk.",
    },
    "A server: the one at --url or in MLX_GUARDED_URL, or your shared one": {
        "status": "Tell whether a server runs, and what it does.",
        "stop": "End a server.",
        "load": "Load a model, and wait for it.",
        "unload": "Give a model's memory back, when its requests have ended.",
        "unpin": "Let a model be evicted that was loaded with --pin. It stays for now.",
        "forgive": "Let a model be loaded again that is in quarantine.",
        "cancel": "Stop requests.",
        "explain": "Tell the story of a request.",
        "timeline": "Draw who generated, waited and loaded in the last minutes.",
        "events": "List what happened last, or follow it.",
    },
    "This machine": {
        "serve": "Serve models over HTTP, for every client that knows OpenAI's API.",
        "config": "Show the settings of the server that are in force, where each comes from, "
        "and check them.",
        "demo": "Replay the incident: a model is loaded while another one answers.",
        "fit": "Tell whether models fit into memory together, before any is downloaded.",
        "doctor": "Check that everything works here, and tell why a server is slow or waits.",
        "trace": "Show a trace that --trace or backend.write_trace wrote.",
    },
}
COMMANDS = tuple(name for commands in PANELS.values() for name in commands)


def show_overview(usage: str, purpose: str, options: Sequence[TyperOption], epilog: str) -> None:
    """Print how to call the program, its options and its commands.

    Args:
        usage: the first line.
        purpose: one sentence.
        options: that come before a command.
        epilog: the last line, in rich's markup.
    """
    for text in (Text(usage, style="yellow"), Text(purpose)):
        out().print(Padding(text, (1, 1, 0, 1)))
    out().print()
    rows = [(", ".join(sorted(option.opts, key=len)), option.help or "") for option in options]
    _panel("Options", rows, max(len(flags) for flags, _ in rows))
    width = max(map(len, COMMANDS))
    for title, commands in PANELS.items():
        _panel(title, commands.items(), width)
    out().print(Padding(Text.from_markup(epilog), (0, 1, 1, 1)))


def _panel(title: str, rows: Iterable[tuple[str, str]], width: int) -> None:
    table = Table.grid(padding=(0, 3, 0, 0))
    table.add_column(style="bold cyan", min_width=width, no_wrap=True)
    table.add_column()
    for name, text in rows:
        table.add_row(name, text)
    out().print(Panel(table, title=title, title_align="left", border_style="dim"))
