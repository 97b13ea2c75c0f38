"""MkDocs hook: Python examples compile, and links between the root's pages resolve.

MkDocs sees only docs/, so README.md and its neighbours are checked here. The build is strict, so
a warning fails it.
"""

from __future__ import annotations

import ast
import logging
import re
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
EXAMPLE = re.compile(r"^([ ]*)```python[^\n]*\n(.*?)^\1```", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\]\(([^)#\s]+)[^)]*\)")

# A child of MkDocs' own logger, so that --strict counts the warnings.
logger = logging.getLogger("mkdocs.hooks.check_examples")


def on_pre_build(**_: Any) -> None:
    """Check the pages MkDocs does not read."""
    for path in [*ROOT.glob("*.md"), *ROOT.glob("integrations/*/README.md")]:
        text = path.read_text(encoding="utf-8")
        check_examples(text, path.relative_to(ROOT))
        for link in LINK.findall(text):
            if "://" not in link and not (path.parent / link).exists():
                logger.warning("%s links to %s, which does not exist", path.name, link)


def on_page_markdown(markdown: str, *, page: Any, **_: Any) -> None:
    """Check a page of docs/."""
    check_examples(markdown, page.file.src_uri)


def check_examples(text: str, source: object) -> None:
    """Compile each block marked ```python; top-level `await` is allowed."""
    for match in EXAMPLE.finditer(text):
        code = re.sub(f"^{match[1]}", "", match[2], flags=re.MULTILINE)
        try:
            compile(code, str(source), "exec", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
        except SyntaxError as error:
            line = text.count("\n", 0, match.start(2)) + (error.lineno or 1)
            logger.warning("%s:%d: the example does not compile: %s", source, line, error.msg)
