"""What stops a fit: errors of the library about arguments of distributions, in the words of a fit."""

from __future__ import annotations

import traceback

from vi_kit.base.errors import NotFiniteError, message

INVALID = ("Expected parameter", "got invalid")
"""How torch and NumPyro begin, and how they go on, where an argument of a distribution is out of its range."""
OTHERS = ("site-packages", "/vi_kit/", "<frozen")
"""Parts of the paths of files that are not the user's."""


def not_valid(error: ValueError, done: int) -> Exception:
    """The error about an argument that a step has brought out of its range; another error is left as it is."""
    text = str(error)
    if not done or not any(start in text for start in INVALID):
        return error
    frames = traceback.extract_tb(error.__traceback__)
    own = [f for f in frames if not any(part in f.filename for part in OTHERS)]
    where = f" at {own[-1].filename}:{own[-1].lineno}: {own[-1].line}" if own else ""
    found = NotFiniteError(
        message(
            f"step {done + 1}: an argument of a distribution is out of its range{where}",
            got=" ".join(text.split()),
            expected="arguments in their range at every value that parameters may take",
            fix="constraint=... at the parameter (constraints.positive, unit_interval), or a function such as softplus"
            " of it; a smaller step size",
        )
    )
    found.__cause__ = error
    return found
