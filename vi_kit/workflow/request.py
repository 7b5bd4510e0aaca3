"""What a user asks of `fit`, looked over before any work."""

from __future__ import annotations

import difflib
import inspect
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from vi_kit.base.errors import ObjectiveError, ViKitError, message, whole_number
from vi_kit.language.programs import classes_told
from vi_kit.workflow.checkpoints import Checkpoint
from vi_kit.workflow.moment import Callback
from vi_kit.workflow.stopping import StoppingRule

SETTINGS = (
    "objective",
    "estimators",
    "optimizer",
    "num_steps",
    "seed",
    "batch_size",
    "batches",
    "data_size",
    "clip_norm",
    "num_restarts",
    "stop",
    "callbacks",
    "callback_every",
    "checkpoint",
    "progress",
    "fixed_draws",
)
"""Of `fit`, in both libraries, besides those of `Loss`."""


@dataclass(frozen=True)
class Request:
    """The settings of a fit that both libraries understand the same way. See `vi_kit.pyro.fit`."""

    num_steps: int | None
    seed: int
    clip_norm: float | None
    num_restarts: int
    stop: StoppingRule | None
    callbacks: tuple[Callback, ...]
    callback_every: int
    checkpoint: Checkpoint | None
    progress: bool | None

    @property
    def shrinks(self) -> bool:
        """Whether the step size may become smaller."""
        return self.stop is not None and self.stop.shrinks

    @property
    def averages(self) -> bool:
        """Whether there may be a mean of iterates."""
        return self.stop is not None and self.stop.averages

    @classmethod
    def of(
        cls,
        programs: Sequence[Callable],
        kwargs: Mapping[str, Any],
        *,
        num_steps: int | None,
        seed: int,
        clip_norm: float | None,
        num_restarts: int,
        stop: StoppingRule | None,
        callbacks: Callback | Iterable[Callback],
        callback_every: int,
        checkpoint: Checkpoint | str | os.PathLike[str] | None,
        progress: bool | None,
        fixed_draws: int | None = None,
    ) -> Request:
        """All that is wrong in one error.

        Raises:
            ObjectiveError: a setting that cannot be, or a name that is neither a setting nor an argument.
        """
        if callable(callbacks) or not isinstance(callbacks, Iterable):
            callbacks = (callbacks,)
        callbacks = tuple(callbacks)
        checks: list[Callable[[], Any]] = [
            lambda: whole_number("fit", "num_steps", num_steps, least=0),
            lambda: whole_number("fit", "seed", seed, least=0),
            lambda: whole_number("fit", "num_restarts", num_restarts),
            lambda: whole_number("fit", "callback_every", callback_every),
        ]
        if num_steps is None:
            checks[0] = lambda: None if fixed_draws is not None else _an_end(stop)
        model, guide = programs
        texts = [*_raised(checks), *_strangers(programs, kwargs)]
        texts += classes_told(model=model, guide=guide)
        if clip_norm is not None and not (_is_number(clip_norm) and clip_norm > 0):
            texts.append(_wrong("clip_norm", clip_norm, "a positive number", "clip_norm=10.0"))
        is_rule = isinstance(getattr(stop, "every", None), int) and not isinstance(stop, type)
        if stop is not None and not is_rule:
            texts.append(_wrong("stop", stop, "a stopping rule", "stop=vi.Stationary()"))
        if not all(map(callable, callbacks)):
            texts.append(_wrong("callbacks", callbacks, "functions of a moment", "callbacks=[f]"))
        if checkpoint is not None and not isinstance(checkpoint, Checkpoint):
            if isinstance(checkpoint, str | os.PathLike):
                checkpoint = Checkpoint(checkpoint)
            else:
                fix = "checkpoint=vi.Checkpoint(folder, every=1000)"
                texts.append(_wrong("checkpoint", checkpoint, "a folder or a Checkpoint", fix))
        if texts:
            raise ObjectiveError("\n".join(texts))
        return cls(
            num_steps,
            int(seed),
            clip_norm,
            num_restarts,
            stop,
            callbacks,
            callback_every,
            checkpoint,  # type: ignore[arg-type]
            progress,
        )


def _an_end(stop: Any) -> None:
    if stop is None:
        raise ObjectiveError(
            message(
                "fit: how many steps",
                got="neither num_steps nor stop",
                expected="a number of steps, a rule that says when to stop, or both",
                fix="num_steps=2000, or stop=vi.Stationary()",
            )
        )


def _raised(checks: Iterable[Callable[[], Any]]) -> Iterator[str]:
    for check in checks:
        try:
            check()
        except ViKitError as error:
            yield str(error)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _wrong(name: str, value: Any, expected: str, fix: str) -> str:
    return message(
        f"fit: {name} is not usable", got=f"{name}={value!r}", expected=expected, fix=fix
    )


def _strangers(programs: Sequence[Callable], kwargs: Mapping[str, Any]) -> Iterator[str]:
    """Keywords that neither program takes: settings with a slip of the pen."""
    known: set[str] = set()
    for program in programs:
        try:
            parameters = inspect.signature(program).parameters.values()
        except (TypeError, ValueError):
            return
        if any(p.kind is p.VAR_KEYWORD for p in parameters) and not _wraps_all(program):
            return
        known |= {p.name for p in parameters if p.kind in (p.KEYWORD_ONLY, p.POSITIONAL_OR_KEYWORD)}
    for name in kwargs:
        if name not in known:
            near = difflib.get_close_matches(name, SETTINGS, 1)
            yield message(
                f"fit has no setting {name!r}, and model and guide no such argument",
                got=f"{name}={kwargs[name]!r}",
                expected=f"a setting ({', '.join(SETTINGS)}) or an argument of model and guide",
                fix=f"{near[0]}=..." if near else "leave it out",
            )


def _wraps_all(program: Callable) -> bool:
    """Whether a program takes what its model takes, as autoguides do."""
    return callable(getattr(program, "model", None))
