"""The progress bar of a fit, in a terminal or a notebook."""

from __future__ import annotations

import sys
from dataclasses import dataclass, field
from typing import Any

import numpy as np


def smoothed(losses: np.ndarray, num_steps: int = 100) -> float:
    """The mean of the last losses; the best of several restarts."""
    last = losses[-num_steps:]
    return float(np.min(last.mean(axis=0))) if len(last) else float("nan")


@dataclass
class Progress:
    """A bar with the steps per second, the smoothed objective and the norm of the gradient.

    Attributes:
        total: steps.
        sign: what makes a loss of the objective.
        shown: whether there is a bar; `None`: if somebody can see it.
    """

    total: int | None
    sign: float
    shown: bool | None = None
    bar: Any = field(default=None, init=False)

    def start(self, done: int) -> None:
        if self.shown or (self.shown is None and (_in_notebook() or sys.stderr.isatty())):
            self.bar = _tqdm()(total=self.total, initial=done, unit="step", dynamic_ncols=True)

    def update(self, num: int, losses: np.ndarray, norms: np.ndarray) -> None:
        if self.bar is not None:
            bound, norm = self.sign * smoothed(losses), smoothed(norms)
            self.bar.set_postfix_str(f"objective {bound:.4g}, gradient {norm:.3g}", refresh=False)
            self.bar.update(num)

    def close(self, text: str) -> None:
        if self.bar is not None:
            self.bar.set_description_str(text)
            self.bar.close()


def _in_notebook() -> bool:
    shell = getattr(sys.modules.get("IPython"), "get_ipython", lambda: None)()
    return type(shell).__name__ == "ZMQInteractiveShell"


def _tqdm() -> Any:
    """The class that fits where one is: that for notebooks needs widgets."""
    if _in_notebook():
        try:
            import ipywidgets as _  # type: ignore[import-not-found]  # noqa: F401
            from tqdm.notebook import tqdm

            return tqdm
        except ImportError:
            pass
    from tqdm import tqdm

    return tqdm
