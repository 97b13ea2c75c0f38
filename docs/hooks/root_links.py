"""MkDocs hook: links between the pages beside docs/ resolve.

MkDocs sees only docs/, so README.md and its neighbours are checked here. The build is strict, so
a warning fails it.
"""

from __future__ import annotations

import logging
import re
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
LINK = re.compile(r"\]\(([^)#\s]+)[^)]*\)")

# A child of MkDocs' own logger, so that --strict counts the warnings.
logger = logging.getLogger("mkdocs.hooks.root_links")


def on_pre_build(**_: Any) -> None:
    """Check the pages MkDocs does not read."""
    for path in [*ROOT.glob("*.md"), *ROOT.glob("integrations/*/README.md")]:
        for link in LINK.findall(path.read_text(encoding="utf-8")):
            if "://" not in link and not (path.parent / link).exists():
                logger.warning("%s links to %s, which does not exist", path.name, link)
