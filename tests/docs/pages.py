"""The Python of the pages of the documentation. A block that begins with ```py instead is shown only."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
BLOCK = re.compile(r"^```python\n(.*?)^```", re.DOTALL | re.MULTILINE)


def source(page: Path) -> str:
    """All blocks of a page, each on the lines where it stands there."""
    text, lines, last = page.read_text(), [], 0
    for match in BLOCK.finditer(text):
        lines.append("\n" * text.count("\n", last, match.start(1)))
        lines.append(match[1])
        last = match.end(1)
    return "".join(lines)


def run(page: Path) -> dict[str, Any]:
    """What the names of a page stand for after its last block."""
    names: dict[str, Any] = {"__name__": page.stem}
    exec(compile(source(page), str(page), "exec"), names)
    return names


PAGES = [
    page for page in (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))) if source(page)
]
