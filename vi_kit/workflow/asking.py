"""Who asks for draws: a `Fit`, or a loss with its programs."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from vi_kit.base.errors import BackendError, ObjectiveError, message
from vi_kit.engine.loss import CommonLoss
from vi_kit.language.marginal import Marginal
from vi_kit.language.normalize import SIR, Normalized
from vi_kit.language.programs import is_composite
from vi_kit.workflow.draws import Runs

UNSCALED = "vi_kit_unscaled"
"""The attribute under which a program whose minibatches count for all rows has that where they count for themselves."""


class Trained:
    """A pair of programs with the values of their parameters: what `Fit` is."""

    model: Callable
    guide: Callable
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    loss: Any
    params: Any
    state: Mapping[str, Any]
    losses: np.ndarray
    restarts: tuple[np.ndarray, ...]
    restart_params: tuple[Mapping[str, Any], ...]
    stopped: str
    by_rule: bool | None
    is_whole: bool
    fixed_draws: int | None


@dataclass(frozen=True)
class Asked:
    """The programs that draws are wanted of, and their arguments.

    Attributes:
        where: which function was called.
        is_new: whether a `Fit` was given other arguments than its own.
        record: of how its parameters came about; `None` if these, or the arguments, are others.
    """

    where: str
    loss: Any
    model: Callable
    guide: Callable
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    params: Any
    is_new: bool = False
    record: Trained | None = None

    @property
    def unscaled(self) -> Asked:
        """The same with programs whose minibatches count for themselves, and not for all rows of a fit."""
        model, guide = (getattr(p, UNSCALED, p) for p in (self.model, self.guide))
        return replace(self, model=model, guide=guide)

    @property
    def runs(self) -> Runs:
        """The library's runs of them."""
        return self.loss.draws(self.model, self.guide, self.args, dict(self.kwargs), self.params)

    @property
    def plain(self) -> tuple[Asked, int, tuple[str, ...]]:
        """The same with programs that can be run plainly; of how many draws one is chosen by weight, and which sites
        are kept (patterns; none: all).

        Raises:
            BackendError: there are no such.
        """
        guide, num, keep = self.guide, 1, ()
        if isinstance(guide, Normalized) and isinstance(guide.algorithm, SIR):
            num, guide = guide.algorithm.num_particles, guide.algorithm.proposal
        elif isinstance(guide, Marginal):
            keep, guide = tuple(guide.keep), guide.fn
        bad = {"guide": guide, "model": self.model}
        if isinstance(self.guide, Normalized) and self.guide.fn is not self.model:
            bad["posterior of another model"] = self.guide
        refused = {role: p for role, p in bad.items() if is_composite(p)}
        if refused:
            names = [
                f"{role} {getattr(p, '__name__', type(p).__name__)}" for role, p in refused.items()
            ]
            raise BackendError(
                message(
                    f"{self.where}: no plain draws of a program that is made of others",
                    got=", ".join(names),
                    expected="functions with sample statements; vi.marginal(...) of one as the guide, or"
                    " vi.normalize(model, vi.SIR(...)) of the same model",
                    fix="the program inside: its proposal, with weights",
                )
            )
        return replace(self, guide=guide), num, keep


def asked(
    where: str, first: Any, rest: tuple[Any, ...], kwargs: Mapping[str, Any], params: Any = None
) -> Asked:
    """Read `(fit, *new_args)` or `(loss, model, guide, *args)`.

    Raises:
        ObjectiveError: it is neither.
    """
    if isinstance(first, Trained):
        is_new = bool(rest or kwargs)
        args = (rest, kwargs) if is_new else (first.args, first.kwargs)
        values = first.params if params is None else params
        if first.loss.state_is_given:
            values = {**first.state, **(values or {})}
        model, guide = first.model, first.guide
        record = None if is_new or params is not None else first
        found = Asked(where, first.loss, model, guide, *args, values, is_new, record)
        return found.unscaled if is_new else found  # new rows are no part of the fit's
    if isinstance(first, CommonLoss) and len(rest) >= 2 and callable(rest[0]) and callable(rest[1]):
        return Asked(where, first, rest[0], rest[1], rest[2:], kwargs, params)
    shown = ", ".join(type(x).__name__ for x in (first, *rest)) or "nothing"
    raise ObjectiveError(
        message(
            f"{where}: neither a fit nor a loss with its model and guide",
            got=f"values of type {shown}",
            expected=f"vi.{where}(fit), or vi.{where}(loss, model, guide, *args)",
            fix=f"vi.{where}(fit), with fit = vi_kit.pyro.fit(...) or vi_kit.numpyro.fit(...)",
        )
    )
