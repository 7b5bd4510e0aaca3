"""The table of estimators in the README, from their docstrings: `python -m tests.docs.how_to_choose` writes it."""

from __future__ import annotations

import inspect
import re
from pathlib import Path

from vi_kit.estimators import REGISTRY

README = Path(__file__).parents[2] / "README.md"
COLUMNS = ("Use for", "Needs", "Unbiased when", "Cost", "Variance")
START, END = "<!-- from the docstrings of the estimators -->\n", "<!-- end -->"


def lines_of(estimator: type) -> dict[str, str]:
    """The named lines of a docstring, each with what continues it, and the first reference."""
    doc = inspect.cleandoc(estimator.__doc__ or "") + "\n"
    found = {}
    for name in (*COLUMNS, "References"):
        match = re.search(rf"^{name}:(.*\n(?: +.*\n)*)", doc, re.MULTILINE)
        assert match, f"{estimator.__name__} has no line {name!r} in its docstring"
        found[name] = match[1]
    found["References"] = re.split(r"\.\n", found["References"])[0]
    return {name: " ".join(text.split()).rstrip(".") for name, text in found.items()}


def table() -> str:
    rows = [("estimator", *COLUMNS, "reference"), ("---",) * (len(COLUMNS) + 2)]
    for estimator in REGISTRY:
        lines = lines_of(estimator)
        cells = (f"`{estimator.__name__}`", *(lines[c] for c in COLUMNS), lines["References"])
        rows.append(tuple(cell.replace("|", r"\|") for cell in cells))
    return "".join(f"| {' | '.join(row)} |\n" for row in rows)


def parts_of(page: Path, start: str) -> tuple[str, str, str]:
    """What stands before what is generated, that itself, and what stands after it."""
    before, rest = page.read_text().split(start)
    inside, after = rest.split(END)
    return before, inside, after


if __name__ == "__main__":
    before, _, after = parts_of(README, START)
    README.write_text(before + START + table() + END + after)
