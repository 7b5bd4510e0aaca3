"""The picture of README and the first page is that of a notebook: `python -m tests.docs.gradients` takes it anew."""

from __future__ import annotations

import base64
from pathlib import Path

import nbformat

ROOT = Path(__file__).parents[2]
PICTURE = ROOT / "docs" / "gradients.png"
NOTEBOOK = ROOT / "tutorials" / "16_from_other_elbos.ipynb"


def drawn() -> bytes:
    """The one picture that the notebook has stored."""
    cells = nbformat.read(NOTEBOOK, as_version=4).cells
    outputs = [output for cell in cells for output in cell.get("outputs", ())]
    (picture,) = (o.data["image/png"] for o in outputs if "image/png" in o.get("data", {}))
    return base64.b64decode(picture)


if __name__ == "__main__":
    PICTURE.write_bytes(drawn())
