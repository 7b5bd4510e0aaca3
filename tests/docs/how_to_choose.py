"""What two pages say of estimators and objectives, from docstrings: `python -m tests.docs.how_to_choose` writes it."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable
from pathlib import Path

import vi_kit as vi
from vi_kit.estimators import REGISTRY

DOCS = Path(__file__).parents[2] / "docs"
OF_ESTIMATORS, OF_OBJECTIVES = DOCS / "choose_estimator.md", DOCS / "choose_objective.md"
NAMES = ("Use for", "Needs", "Unbiased when", "Cost", "Variance")
TABLE = "<!-- from the docstrings of the estimators -->\n"
DETAILS = "<!-- details, from the docstrings -->\n"
OBJECTIVES = "<!-- from the docstrings of the objectives -->\n"
END = "<!-- end -->"


def lines_of(estimator: type) -> dict[str, str]:
    """The named lines of a docstring, each with what continues it, and the first reference."""
    doc = inspect.cleandoc(estimator.__doc__ or "") + "\n"
    found = {}
    for name in (*NAMES, "References"):
        match = re.search(rf"^{name}:(.*\n(?: +.*\n)*)", doc, re.MULTILINE)
        assert match, f"{estimator.__name__} has no line {name!r} in its docstring"
        found[name] = match[1]
    found["References"] = re.split(r"\.\n", found["References"])[0]
    return {name: " ".join(text.split()).rstrip(".") for name, text in found.items()}


def table() -> str:
    """Estimators, and what they are for."""
    rows = ["| estimator | use for |", "| --- | --- |"]
    for estimator in REGISTRY:
        use = lines_of(estimator)["Use for"].replace("|", r"\|")
        name = estimator.__name__
        rows.append(f"| [`{name}`](#{name.lower()}) | {use} |")
    return "\n".join(rows) + "\n"


def details() -> str:
    """Estimator by estimator."""
    parts = []
    for estimator in REGISTRY:
        lines = lines_of(estimator)
        of_it = [f"- **{name}:** {lines[name]}." for name in NAMES]
        source = f"- **From:** {lines['References']}."
        parts.append("\n".join([f"### {estimator.__name__}\n", *of_it, source, ""]))
    return "\n".join(parts)


def objectives() -> str:
    """Objective by objective: what its docstring says before its sections, and the first reference."""
    parts = []
    for name in vi.objectives.__all__:
        program = getattr(vi, name)
        if inspect.isclass(program):  # the generator of a divergence
            continue
        doc = inspect.cleandoc(program.__doc__)
        text = re.split(r"\n(?:Args|Raises|Example|References):\n", doc)[0].strip()
        source = re.search(r"References:\n +(.*?)\.?\n", doc + "\n")
        assert source, f"{name} has no reference"
        head = f"### `{name}`\n\n`vi.{name}({', '.join(inspect.signature(program).parameters)})`"
        parts.append(f"{head}\n\n{text}\n\nFrom {source[1]}.\n")
    return "\n".join(parts)


def parts_of(page: Path, start: str) -> tuple[str, str, str]:
    """What stands before what is generated, that itself, and what stands after it."""
    before, rest = page.read_text().split(start)
    inside, after = rest.split(END, 1)
    return before, inside, after


GENERATED: list[tuple[Path, str, Callable[[], str]]] = [
    (OF_ESTIMATORS, TABLE, table),
    (OF_ESTIMATORS, DETAILS, details),
    (OF_OBJECTIVES, OBJECTIVES, objectives),
]
"""Page, where it starts there, and what makes it."""


def write(page: Path, start: str, text: str) -> None:
    before, _, after = parts_of(page, start)
    page.write_text(before + start + text + END + after)


if __name__ == "__main__":
    for page, start, make in GENERATED:
        write(page, start, make())
