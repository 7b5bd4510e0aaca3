"""The loop of `fit`: steps by a library, and between them all that looks at how they go."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np

from vi_kit.base.errors import CheckpointError, message
from vi_kit.workflow.checkpoints import Folder
from vi_kit.workflow.history import History
from vi_kit.workflow.moment import Moment
from vi_kit.workflow.processes import Alone, Processes, together
from vi_kit.workflow.progress import Progress, smoothed
from vi_kit.workflow.request import Request
from vi_kit.workflow.stopping import StoppingRule

LOOK_SECONDS = 0.25
"""Between looks at the clock, the keyboard and the progress bar."""
MOST_AT_ONCE = 1000


@dataclass
class Steps:
    """What some steps found.

    Attributes:
        losses: shape `(num_steps,)`, or `(num_steps, num_restarts)`.
        norms: of the gradients, likewise.
        ended: whether there were no more batches.
        trouble: why the step after them failed.
    """

    losses: np.ndarray
    norms: np.ndarray
    ended: bool = False
    trouble: BaseException | None = None


class Trainer(Protocol):
    """A library's steps. One that fails, of a loss or a gradient that is not finite, takes back the step before it: the
    parameters are the last ones that had both, and all that a step changes is as it was there."""

    done: int
    """Steps so far."""

    def advance(self, most: int) -> Steps:
        """Take steps, at most so many."""
        ...

    def params(self) -> dict[str, Any]:
        """The parameters, as programs see them; the first of several restarts."""
        ...

    def state(self) -> dict[str, Any]:
        """What modules and baselines keep from step to step."""
        ...

    def optimizer_said(self) -> dict[str, str]:
        """What tells the optimiser from others: its kind and its settings, by name."""
        ...

    def explain(self) -> str:
        """Which estimator each site has, and why."""
        ...

    def join(self) -> None:
        """Of several processes: start from the parameters of the first, and draw other random numbers."""
        ...

    def check_same(self) -> None:
        """Of several processes: refuse parameters that have become others in some of them."""
        ...

    def notes(self) -> list[str]:
        """What else there is to know of the steps."""
        ...

    def choose(self, start: int) -> None:
        """Of several starts, the one whose parameters are asked for."""
        ...

    def kept(self, start: int) -> int:
        """Of how many steps a start has the parameters: of all that were taken, if none failed."""
        ...

    def coordinates(self) -> np.ndarray:
        """Numbers that tell where the parameters are, shape `(num_restarts, num)`."""
        ...

    def shrink(self, factor: float) -> None:
        """Multiply the step size."""
        ...

    def average(self, on: bool) -> None:
        """Whether the mean of the iterates is kept from here on."""
        ...

    def snapshot(self) -> dict[str, Any]:
        """All that `restore` needs: dicts, lists, numbers and arrays of NumPy."""
        ...

    def restore(self, snapshot: Mapping[str, Any]) -> None:
        """Go on from there."""
        ...


@dataclass
class Training:
    """One fit under way.

    Attributes:
        trainer: takes the steps.
        request: how many, and what looks at them.
        folder: of checkpoints.
        progress: the bar.
        history: of the steps.
        seconds: of the first step, and of those after it.
        explained: which estimator each site has.
        processes: that take the steps together.
        calls_back: whether one of them has callbacks.
    """

    trainer: Trainer
    request: Request
    folder: Folder | None
    progress: Progress
    history: History = field(default_factory=History)
    seconds: dict[str, float] = field(default_factory=lambda: {"first step": 0.0, "steps": 0.0})
    explained: str = ""
    processes: Processes = field(default_factory=Alone)
    calls_back: bool = False

    def __post_init__(self) -> None:
        self.explained = self.trainer.explain()
        self.calls_back = bool(self.request.callbacks)

    def resume(self) -> bool:
        """Go on from the last checkpoint, if there is one."""
        if self.request.checkpoint is None:
            return False
        latest = None if self.folder is None else self.folder.latest
        saved = together(self.processes, lambda: latest and latest())
        saved = self.processes.first(saved)
        if saved is None:
            return False
        history = History.of(saved["history"])
        most = self.request.num_steps
        if most is not None and history.num_steps > most:
            raise CheckpointError(
                message(
                    "the checkpoint is of a later step than the fit shall have",
                    got=f"{history.num_steps} steps in {str(self.request.checkpoint.folder)!r}",
                    expected=f"at most num_steps={most}",
                    fix=f"num_steps={history.num_steps} or more, or another folder",
                )
            )
        self.history = history
        together(self.processes, lambda: self.trainer.restore(saved["trainer"]))
        return True

    def run(self) -> str:
        """Take the steps; returns why they ended.

        Raises:
            Exception: what a step raised, or a checkpoint; the history and the parameters are those before.
        """
        try:
            return self._run()
        finally:
            self.close()

    def close(self) -> None:
        """Let others write in the folder."""
        if self.folder is not None:
            self.folder.close()

    def _run(self) -> str:
        self.progress.start(self.history.num_steps)
        stopped, size = self.history.stopped or self._done(), 1
        try:
            with interruptible() as interrupted:
                while not stopped:
                    began = time.perf_counter()
                    steps = self.trainer.advance(min(size, self._until_next()))
                    taken, seconds = len(steps.losses), time.perf_counter() - began
                    self._count(steps, seconds)
                    stopped = self._look()
                    if steps.trouble is not None:
                        raise steps.trouble
                    if steps.ended:
                        stopped = (
                            stopped or f"the batches ended after {self.history.num_steps} steps"
                        )
                    if interrupted.is_set():
                        stopped = stopped or f"interrupted after {self.history.num_steps} steps"
                    fitting = int(taken * LOOK_SECONDS / max(seconds, 1e-9))
                    size = max(1, min(fitting, 10 * size, MOST_AT_ONCE))
                    size, stopped = self._agreed(size, stopped)
        finally:
            self.progress.close(stopped or "failed")
        self._save(always=True)
        return stopped

    def _agreed(self, size: int, stopped: str) -> tuple[int, str]:
        """How many steps come next, and why the fit ends, for all processes that take them together."""
        self.trainer.check_same()
        every = self.processes.gathered((size, stopped))
        return every[0][0], next((why for _, why in every if why), "")

    def _until_next(self) -> int:
        """Steps until something has to be looked at."""
        done = self.history.num_steps
        marks = [] if self.request.stop is None else [self.request.stop.every]
        marks += [self.request.callback_every] * self.calls_back
        marks += [] if self.request.checkpoint is None else [self.request.checkpoint.every]
        left = [mark - done % mark for mark in marks]
        return min(
            [
                *left,
                MOST_AT_ONCE,
                *([] if self.request.num_steps is None else [self.request.num_steps - done]),
            ]
        )

    def _count(self, steps: Steps, seconds: float) -> None:
        phase = "steps" if self.history.num_steps else "first step"
        self.seconds[phase] += seconds
        if len(steps.losses):
            self.history.add(steps.losses, steps.norms)
            self.progress.update(len(steps.losses), self.history.losses, self.history.norms)

    def _done(self) -> str:
        done = self.history.num_steps
        return (
            f"{done} steps"
            if self.request.num_steps is not None and done >= self.request.num_steps
            else ""
        )

    def _look(self) -> str:
        """What is due after the steps so far; returns why the fit is done, or nothing."""
        done, stopped = self.history.num_steps, ""
        if self.request.stop is not None and done and done % self.request.stop.every == 0:
            stopped = self.history.stopped = self._decide(self.request.stop)
        if self.calls_back and done and done % self.request.callback_every == 0:
            losses, sign = self.history.losses, self.progress.sign
            moment = Moment(done, losses, sign * smoothed(losses), self.trainer.params)
            called = self.request.callbacks
            answers = together(self.processes, lambda: [_is_true(one(moment)) for one in called])
            if any(answers):
                stopped = stopped or f"a callback stopped it after {done} steps"
        self._save(always=False)
        return stopped or self._done()

    def _decide(self, rule: StoppingRule) -> str:
        history = self.history
        if history.looks[-1:] == [history.num_steps]:  # it has looked
            return ""
        history.looks.append(history.num_steps)
        if rule.reads_iterates:
            history.iterates.append(self.trainer.coordinates())
        decision = rule.decide(history)
        if decision.shrink is not None:
            history.shrunk.append(history.num_steps)
            self.trainer.shrink(decision.shrink)
        if decision.average is not None:
            history.averaging = history.num_steps if decision.average else -1
            history.begun += [history.num_steps] * decision.average
            self.trainer.average(decision.average)
        return decision.stop and f"{decision.stop}, after {history.num_steps} steps"

    def _save(self, *, always: bool) -> None:
        done, settings, folder = self.history.num_steps, self.request.checkpoint, self.folder
        if settings is None or not done or not (always or done % settings.every == 0):
            return
        if self.processes.first(folder is not None and done == folder.last):
            return
        state = {"history": self.history.snapshot(), "trainer": self.trainer.snapshot()}
        together(self.processes, lambda: folder and folder.save(done, state))


@contextmanager
def interruptible() -> Iterator[threading.Event]:
    """The first Ctrl-C sets the event, so that no step is left half done; the second one is as ever."""
    event = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield event
        return
    before = signal.getsignal(signal.SIGINT)

    def once(number: int, frame: Any) -> None:
        event.set()
        signal.signal(signal.SIGINT, before)

    if not callable(before):  # ignored, or not Python's
        yield event
        return
    signal.signal(signal.SIGINT, once)
    try:
        yield event
    finally:
        signal.signal(signal.SIGINT, before)


def _is_true(answer: Any) -> bool:
    """Of Python, or of an array library: nothing else ends a fit."""
    kind = str(getattr(answer, "dtype", type(answer).__name__))
    return kind.endswith("bool") and bool(answer)
