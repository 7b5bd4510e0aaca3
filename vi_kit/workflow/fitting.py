"""`fit`, as far as both libraries do it the same way."""

from __future__ import annotations

import hashlib
import importlib.metadata
import inspect
import re
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from types import CodeType, FunctionType, MethodType
from typing import Any, Protocol

import numpy as np

from vi_kit.base.errors import NotFiniteError, ObjectiveError, ViKitError, message
from vi_kit.engine.arguments import MAX_DEPTH, inside
from vi_kit.workflow import inquest
from vi_kit.workflow.batches import Call, Data, Rows, Source, Stream, source_of
from vi_kit.workflow.checkpoints import Folder
from vi_kit.workflow.fitted import Fit
from vi_kit.workflow.given import Given
from vi_kit.workflow.guard import is_stop, no_start, told
from vi_kit.workflow.held import Held
from vi_kit.workflow.history import last_tenth
from vi_kit.workflow.minibatch import AllRows, Seen, frames_of_rows, lengthened, plates_of_rows
from vi_kit.workflow.processes import Processes, refuse_differences, together
from vi_kit.workflow.progress import Progress
from vi_kit.workflow.request import Request
from vi_kit.workflow.sharing import share_out
from vi_kit.workflow.training import Trainer, Training

CHUNK = 2**24
"""Bytes of data that are copied at once."""
ADDRESS = re.compile(r" at 0x[0-9a-f]+")
"""In the text of a function, which is another one in each process."""
MAX_SAMPLED = 1000
"""Rows, or twice as many, by which data in a file are known."""


class Library(Protocol):
    """What `fit` needs of a library."""

    @property
    def packages(self) -> tuple[str, ...]:
        """Whose versions are noted."""
        ...

    @property
    def processes(self) -> Processes:
        """Those that take the steps together."""
        ...

    def lengths(self, one: Any) -> list[int]:
        """Of the arrays in an argument, along their first axis."""
        ...

    def cut(self, one: Any, index: Any) -> Any:
        """Some rows of the arrays in an argument."""
        ...

    def arrays(self, one: Any) -> Any:
        """An argument with arrays of the library."""
        ...

    def check(self, source: Source) -> None:
        """Refuse data that the devices of a fit cannot share."""
        ...

    def numbers(self, one: Any) -> list[np.ndarray]:
        """The arrays in an argument."""
        ...

    def look(self, model: Callable, guide: Callable, args: Any, kwargs: Any) -> Seen:
        """Run model and guide once, as if for the first time, and leave nothing behind."""
        ...

    def statements(self, model: Callable, guide: Callable, call: Call) -> list[inquest.Seen]:
        """Those of such a run, up to the first that cannot be."""
        ...

    def scaled(self, program: Callable, plates: Mapping[str, AllRows], role: str) -> Callable:
        """A program some plates of which are parts of what is said, and count for it."""
        ...

    def optimizer(self, given: Any, *, shrinks: bool) -> Any:
        """What a user gave, checked."""
        ...

    def held(self, trainer: Any) -> Held:
        """The loss of a trainer that has taken no steps, its noise held."""
        ...

    def starts(self, job: Job) -> list[Callable[[], Trainer]]:
        """What makes the trainers, of which each runs from its own start."""
        ...

    def keep(self, trainer: Trainer) -> None:
        """The parameters of this one are those of the fit."""
        ...


@dataclass(frozen=True)
class Job:
    """What a trainer is made of.

    Attributes:
        loss: of the library.
        model: with the scale of its minibatches seen to.
        guide: likewise.
        source: of arguments.
        optimizer: checked.
        request: the other settings.
        plates: the plates of a minibatch's rows that are parts of all rows.
        rows: all plates of these rows.
        notes: what there is to know of how they are shared.
    """

    loss: Any
    model: Callable
    guide: Callable
    source: Source
    optimizer: Any
    request: Request
    plates: Mapping[str, AllRows]
    rows: frozenset[str] = frozenset()
    notes: tuple[str, ...] = ()


def run(
    library: Library,
    loss: Any,
    model: Callable,
    guide: Callable,
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
    *,
    data: Data,
    optimizer: Any,
    request: Request,
) -> Fit:
    """Everything before the first step, the steps, and what is found."""
    began, processes = time.perf_counter(), library.processes

    def prepared() -> tuple[Any, Source]:
        made = library.optimizer(optimizer, shrinks=request.shrinks)
        source = source_of(
            library.arrays(args),
            library.arrays(dict(kwargs)),
            data,
            seed=request.seed,
            lengths=library.lengths,
            cut=library.cut,
            arrays=library.arrays,
        )
        library.check(source)
        _refuse_calls((model, guide), source.example)
        return made, source

    made, source = together(processes, prepared)
    notes = share_out(source, processes, lengths=library.lengths, digest=_digest)
    plates, rows = together(processes, lambda: _plates(library, model, guide, source))
    model = library.scaled(model, plates, "model")
    guide = library.scaled(guide, plates, "guide")
    job = Job(loss, model, guide, source, made, request, plates, rows, tuple(notes))
    ended: list[Ended] = []
    failed: BaseException | None = None
    starts = library.starts(job)
    for i, start in enumerate(starts):
        began = began if i == 0 else time.perf_counter()
        with _rows_explained(library, source), numbers_told(library, model, guide, source):
            training = _begun(library, job, start, i if len(starts) > 1 else None)
        training.seconds = {"before": time.perf_counter() - began, **training.seconds}
        try:
            ended.append(Ended(training, training.run()))
        except BaseException as error:
            failed = error
            one_of_many = isinstance(error, NotFiniteError) and len(starts) > 1
            if not one_of_many:
                fit_of(library, job, [Ended(training, "it failed")], error)
                raise
            ended.append(Ended(training, "it failed"))
        if ended[-1].stopped.startswith("interrupted"):
            break
    if failed is not None and all(one.stopped == "it failed" for one in ended):
        fit_of(library, job, ended, failed)
        raise failed
    return fit_of(library, job, ended)


@dataclass(frozen=True)
class Ended:
    """A training, and why it ended."""

    training: Training
    stopped: str


def _begun(library: Library, job: Job, begin: Callable[[], Trainer], start: int | None) -> Training:
    """A training from its beginning, or from its last checkpoint."""
    request, processes = job.request, library.processes
    shown = request.progress if processes.rank == 0 else False
    progress = Progress(request.num_steps, job.loss.settings.sign, shown)
    training = together(
        processes, lambda: Training(begin(), request, None, progress, processes=processes)
    )
    trainer = training.trainer
    if processes.count > 1:
        fix = "the same call of fit in each process"
        refuse_differences(processes, "settings", _settings(library, job, trainer), fix)
        training.calls_back = any(processes.gathered(training.calls_back))

    def folder() -> Folder | None:
        if request.checkpoint is None or processes.rank:
            return None
        settings = request.checkpoint
        if start is not None:
            settings = replace(settings, folder=Path(settings.folder) / f"start-{start}")
        return Folder(settings, _made_of(library, job, trainer))

    trainer.join()
    training.folder = together(processes, folder)
    try:
        training.resume()
    except BaseException:
        training.close()
        raise
    return training


def _plates(
    library: Library, model: Callable, guide: Callable, source: Source
) -> tuple[dict[str, AllRows], frozenset[str]]:
    """The plates of a minibatch's rows that shall be parts of all rows; and all plates of rows."""
    if source.takes_all:
        return {}, frozenset()
    args, kwargs = source.example
    with _rows_explained(library, source), numbers_told(library, model, guide, source):
        first = library.look(model, guide, args, kwargs)
    other = lengthened(args, kwargs, library.lengths, library.cut)
    second = None
    if other is not None:
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of a length that the user never asked for
                second = library.look(model, guide, *other)
        except Exception:  # programs for minibatches of one length
            second = None
    needed = plates_of_rows(first, second, source.num_rows, source.shared)
    return needed, frozenset(frames_of_rows(first, second))


@contextmanager
def numbers_told(
    library: Library, model: Callable, guide: Callable, source: Source
) -> Iterator[None]:
    """What fails before the first step, of numbers that are none or out of range, is told as in a step."""
    try:
        yield
    except (ObjectiveError, ValueError, RuntimeError) as error:
        call = source.example
        given = Given.of(model, call, library.numbers, source)
        if not is_stop(error) and not (given.spoilt and no_start(error)):
            raise

        def look(gradients: bool) -> Callable[[int], list[inquest.Seen]]:
            return lambda draw: library.statements(model, guide, call) if draw == 0 else []

        raise told(error, None, look, {}, given) from error


@contextmanager
def _rows_explained(library: Library, source: Source) -> Iterator[None]:
    """What fails on rows of arrays, where others are whole, may do so for that reason."""
    try:
        yield
    except (ValueError, TypeError, RuntimeError, IndexError) as error:
        if not isinstance(source, Rows):
            raise
        num_rows, what = source.num_rows, "fit: the programs cannot be run on a minibatch"
        said = str(error).partition("\n")[0]
        names = [k for k, v in source.kwargs.items() if num_rows in library.lengths(v)]
        if names:
            text = message(
                f"{what}, and keywords are the same in each step: {said}",
                got=f"{', '.join(names)} of {num_rows} rows, by keyword",
                expected="what has a row for each datum as a positional argument",
                fix="fit(model, guide, x, y, batch_size=...)",
            )
        elif re.search(rf"\b{num_rows}\b", str(error)) and not isinstance(error, ViKitError):
            text = message(
                f"{what}: {said}",
                got=f"{source.batch_size} of {num_rows} rows",
                expected="nothing that has an element for each datum but what is cut with the rows",
                fix="parameters of a datum computed from it (an encoder); or no batch_size, and the rows taken inside:"
                f' with plate("rows", {num_rows}, subsample_size={source.batch_size}) as i, then x[i] and loc[i]',
            )
        else:
            raise
        raise ObjectiveError(text) from error


def _made_of(library: Library, job: Job, trainer: Trainer) -> dict[str, Any]:
    """What a fit is made of, by which its checkpoints are known."""
    parts = job.source.content
    return {
        "library": type(library).__name__,
        "model": _program(job.model),
        "guide": _program(job.guide),
        **_steps(job, trainer),
        "data": f"rows {[library.lengths(one) for one in parts]}, content {_digest(parts)}",
        "batches": type(job.source).__name__,
        **job.source.manner,
    }


def _settings(library: Library, job: Job, trainer: Trainer) -> dict[str, str]:
    """Of a fit, that all of its processes have to have alike."""
    request = job.request
    # with rows of their own, programs may hold others
    said = _name if library.processes.shares_rows else _program
    found = {
        "model": said(job.model),
        "guide": said(job.guide),
        **_steps(job, trainer),
        "num_steps": request.num_steps,
        "callback_every": request.callback_every,
        "checkpoint": request.checkpoint and f"every {request.checkpoint.every}",
    }
    return {name: str(value) for name, value in found.items()}


def _steps(job: Job, trainer: Trainer) -> dict[str, Any]:
    """What decides where steps lead, beside programs and data."""
    request = job.request
    found = {
        "loss": job.loss.settings.describe(),
        **{f"param {k}": str(tuple(np.shape(v))) for k, v in trainer.params().items()},
        **trainer.optimizer_said(),
        "stop": repr(request.stop),
        "data_size": str(job.source.num_rows),
    }
    numbers = {name: getattr(request, name) for name in ("seed", "clip_norm", "num_restarts")}
    return numbers | {name: ADDRESS.sub("", text) for name, text in found.items()}


def _on_host(one: Any) -> Any:
    """A tensor as NumPy can read it: from its device, and not in bfloat16, which it does not have."""
    if not hasattr(one, "cpu"):
        return one
    one = one.cpu()
    return one.float() if str(one.dtype) == "torch.bfloat16" else one


def _digest(parts: list[Any]) -> str:
    """Of data and programs, which are not kept in a checkpoint: arrays, numbers, texts and functions by their content,
    and others by their kind. Arrays in files count by a sample of their rows, and those of which other processes have a
    part by their shape."""
    found, met = hashlib.sha256(), set[int]()

    def add(one: Any, depth: int) -> None:
        if isinstance(one, Mapping):
            add(list(one.items()), depth)
        elif isinstance(one, list | tuple):
            for part in one:
                add(part, depth)
        elif hasattr(one, "shape") and hasattr(one, "__array__"):
            found.update(str(tuple(one.shape)).encode())
            if isinstance(one, np.memmap) and one.ndim:  # which may be larger than memory
                one = one[:: max(1, len(one) // MAX_SAMPLED)]
            is_here = getattr(one, "is_fully_addressable", True)
            # what is trained is no part of it
            if is_here and not getattr(one, "requires_grad", False):
                whole = np.asarray(_on_host(one))
                size = max(1, CHUNK // max(1, whole[:1].nbytes)) if whole.ndim else 1
                for i in range(0, len(whole) if whole.ndim else 1, size):
                    part = whole[i : i + size] if whole.ndim else whole
                    found.update(np.ascontiguousarray(part).tobytes())
        elif isinstance(one, FunctionType | MethodType | partial):
            if depth and id(one) not in met:
                met.add(id(one))
                add([getattr(one, "__code__", None), inside(one)], depth - 1)
        elif isinstance(one, CodeType):
            add([one.co_code.hex(), one.co_names, list(one.co_consts)], depth)
        elif isinstance(one, bool | int | float | str | None):
            found.update(repr(one).encode())
        else:
            found.update(type(one).__name__.encode())

    add(parts, MAX_DEPTH)
    return found.hexdigest()[:16]


def _name(program: Callable) -> str:
    return getattr(inspect.unwrap(program), "__qualname__", type(program).__name__)


def _program(program: Callable) -> str:
    return f"{_name(program)} {_digest([inspect.unwrap(program)])}"


def _refuse_calls(programs: tuple[Callable, Callable], call: Call) -> None:
    """Refuse arguments that a program does not take."""
    args, kwargs = call
    texts = []
    for role, program in zip(("model", "guide"), programs, strict=True):
        if not isinstance(inspect.unwrap(program), FunctionType | MethodType):
            continue
        try:
            inspect.signature(program).bind(*args, **kwargs)
        except TypeError as error:
            texts.append(
                message(
                    f"fit: the {role} does not take the arguments of a step: {error}",
                    got=f"{len(args)} positional arguments"
                    + f" and {', '.join(kwargs)}" * bool(kwargs),
                    expected=f"{getattr(program, '__name__', role)}{inspect.signature(program)}",
                    fix="model and guide take the same arguments: those of fit, then those of a minibatch",
                )
            )
    if texts:
        raise ObjectiveError("\n".join(texts))


def fit_of(library: Library, job: Job, ended: list[Ended], error: Any = None) -> Fit:
    """What was found: of several starts, that with the best objective; an error that ended it has it as `fit`."""
    columns = [
        (one, column)
        for one in ended
        for column in range(
            1 if one.training.history.losses.ndim == 1 else one.training.history.losses.shape[1]
        )
    ]
    losses, norms = (
        [_column(one.training, name, column) for one, column in columns]
        for name in ("losses", "norms")
    )
    scores = [float(np.mean(x[-last_tenth(len(x)) :])) if len(x) else np.inf for x in losses]
    failed = [_failed(one, column) for one, column in columns]
    out = [
        not np.isfinite(s) or (f and not all(failed)) for s, f in zip(scores, failed, strict=True)
    ]
    best = int(np.argmin(np.where(out, np.inf, scores)))
    one, column = columns[best]
    trainer = one.training.trainer
    library.keep(trainer)
    ends = [_params(*own) for own in columns] if len(columns) > 1 else []
    trainer.choose(column)
    fit = Fit(
        job.model,
        job.guide,
        *job.source.everything,
        job.loss,
        params=trainer.params(),
        state=trainer.state(),
        losses=losses[best],
        gradient_norms=norms[best],
        stopped=one.stopped,
        explained=one.training.explained,
        seconds=dict(one.training.seconds),
        versions={name: importlib.metadata.version(name) for name in library.packages},
        seed=job.request.seed,
        notes=(*job.notes, *trainer.notes()),
        restarts=tuple(losses) if len(losses) > 1 else (),
        restart_params=tuple(ends),
        by_rule=None if job.request.stop is None else bool(one.training.history.stopped),
        is_whole=not isinstance(job.source, Stream),
    )
    if error is not None:
        error.fit = fit
        error.add_note(
            f"after {fit.num_steps} steps; attribute `fit` of this error has what they found"
        )
    return fit


def _params(one: Ended, start: int) -> dict[str, Any]:
    """Where the parameters of a start ended."""
    one.training.trainer.choose(start)
    return one.training.trainer.params()


def _column(training: Training, name: str, start: int) -> np.ndarray:
    """The losses, or the norms, of the steps whose parameters a start has."""
    values = getattr(training.history, name)
    return (values if values.ndim == 1 else values[:, start])[: training.trainer.kept(start)]


def _failed(one: Ended, start: int) -> bool:
    return one.stopped == "it failed" or (
        one.training.trainer.kept(start) < one.training.history.num_steps
    )
