"""`fit` for Pyro."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from vi_kit.engine.select import Given
from vi_kit.language.words import Objective
from vi_kit.pyro.distributed import processes_of
from vi_kit.pyro.held import PyroHeld
from vi_kit.pyro.inquest import before_steps
from vi_kit.pyro.loss import Loss
from vi_kit.pyro.minibatch import cut, lengths, look, numbers, scaled
from vi_kit.pyro.optimizers import Optimizer, optimizer_of
from vi_kit.pyro.starts import Starts
from vi_kit.workflow import inquest
from vi_kit.workflow.batches import Call, Source
from vi_kit.workflow.checkpoints import Checkpoint
from vi_kit.workflow.entry import fit_with
from vi_kit.workflow.fitted import Fit
from vi_kit.workflow.fitting import Job
from vi_kit.workflow.held import Held
from vi_kit.workflow.minibatch import AllRows, Seen
from vi_kit.workflow.moment import Callback
from vi_kit.workflow.processes import Processes
from vi_kit.workflow.stopping import StoppingRule
from vi_kit.workflow.training import Trainer


def fit(
    model: Callable,
    guide: Callable,
    *args: Any,
    objective: Objective | None = None,
    estimators: Mapping[str, Given] | Given | None = None,
    optimizer: Any = None,
    num_steps: int | None = None,
    seed: int = 0,
    batch_size: int | None = None,
    batches: Iterable[Any] | None = None,
    data_size: int | None = None,
    clip_norm: float | None = None,
    num_restarts: int = 1,
    compile: bool | None = None,
    stop: StoppingRule | None = None,
    callbacks: Callback | Iterable[Callback] = (),
    callback_every: int = 100,
    checkpoint: Checkpoint | str | os.PathLike[str] | None = None,
    fixed_draws: int | None = None,
    process_group: Any = None,
    progress: bool | None = None,
    num_samples: int = 1,
    max_plate_nesting: int | None = None,
    vectorize: bool | None = None,
    marginalize: Sequence[str] = (),
    **kwargs: Any,
) -> Fit:
    """Fit a guide to a model.

    Parameters are those of the param store, where the fit starts from what is there, and leaves what it has found.
    Generators of random numbers are left as they were.

    Args:
        model: a Pyro model.
        guide: its guide, an autoguide among others.
        *args: of both; with `batch_size`, arrays among them are data, cut along their first axis.
        objective: see `vi_kit.pyro.Loss`; likewise `estimators`, `num_samples`, `max_plate_nesting`, `vectorize`,
            `marginalize`.
        optimizer: of `pyro.optim` (schedulers take a step after each), or a function from parameters to an optimiser of
            `torch.optim`, or to that and its scheduler, or a step size for Adam; .01 if left out.
        num_steps: how many steps are taken, if nothing ends the fit before.
        seed: of all random numbers: where parameters start, draws, and the order of the data.
        batch_size: rows of a step. Each epoch has an order of its own; rows that do not fill a batch wait.
        batches: an iterable of minibatches instead, such as a torch `DataLoader`: tuples are further positional
            arguments, dicts keywords. It is gone through again and again; an iterator ends the fit. Plates that hold
            the rows of a minibatch, and count for those alone, are scaled to all rows. A `scale` of their own
            by rows of all over rows of a minibatch is taken for that.
        data_size: how many rows there are, where an iterable does not say.
        clip_norm: the largest norm of a gradient; longer ones are shortened.
        num_restarts: starts from different random numbers, one after the other; that with the best objective is kept.
        compile: whether steps are compiled, see `Loss`; if left out, where the fit would take more than a minute
            without, and the programs can be.
        stop: a rule that may end the fit before, such as `vi.Stationary()`.
        callbacks: called after each `callback_every` steps with a `Moment`; the fit ends where one returns `True`.
        callback_every: see there.
        checkpoint: a folder, or a `vi.Checkpoint`, to save the fit in. If there is one of this fit, it goes on from
            there, and its losses are the same, bit for bit, as if it had not been interrupted.
        fixed_draws: holds the noise: the objective is its mean over so many draws, the same in every evaluation, and
            minimised by L-BFGS until no step lowers it (`num_steps` is then the most that it takes, and may be left
            out). Sites have `Reparam`, `Enumerate`, `Quadrature` or `Analytic`. What it finds has
            `Fit.linear_response`. Guides with free covariances need more draws than these have dims.
        process_group: the processes that take the steps together, such as `torch.distributed.group.WORLD` under
            `torchrun`. Each of them makes the same call. With `batch_size`, and with `batches` that are the same in
            each, a process has its share of the rows of a minibatch; of a loader with a `DistributedSampler` its own;
            of all data at once all of them, and draws of its own. Gradients are averaged by the number of rows, and so
            is what baselines and buffers keep. Parameters start from those of the first process, which writes the
            checkpoints.
            `False`: a fit of this process alone, though there are others.
        progress: whether there is a progress bar; if left out, in terminals and notebooks.
        **kwargs: further arguments of both, the same in each step.

    Returns:
        The parameters and how they were found. Ctrl-C ends the fit after the step under way, with what it has found.
        Fits of several threads take turns: for fits at the same time take processes.

    Raises:
        ObjectiveError: a setting that cannot be; data that contradict a plate; before any work.
        EstimatorError: as `Loss`, likewise.
        NotFiniteError: a loss or a gradient is not finite. Whatever ends a fit early has its `Fit` as attribute `fit`,
            with the last parameters whose loss and gradient were finite.
        CheckpointError: a folder that cannot be used, or the checkpoint of another fit.
        ProcessError: another process has failed, or is gone.

    Example:
        >>> import pyro, pyro.distributions as dist, torch
        >>> from pyro.infer.autoguide import AutoNormal
        >>> from vi_kit.pyro import fit
        >>> def model(x):
        ...     z = pyro.sample("z", dist.Normal(0.0, 1.0))
        ...     with pyro.plate("data", len(x)):
        ...         pyro.sample("x", dist.Normal(z, 1.0), obs=x)
        >>> found = fit(model, AutoNormal(model), torch.ones(3), optimizer=0.02, num_steps=500, num_samples=8)
        >>> abs(float(found.params["AutoNormal.locs.z"]) - 0.75) < 0.1
        True
    """
    processes = processes_of(process_group)
    return fit_with(
        OfPyro(compile, num_restarts, processes),
        Loss,
        model,
        guide,
        args,
        kwargs,
        objective=objective,
        estimators=estimators,
        optimizer=optimizer,
        num_steps=num_steps,
        seed=seed,
        batch_size=batch_size,
        batches=batches,
        data_size=data_size,
        clip_norm=clip_norm,
        num_restarts=num_restarts,
        stop=stop,
        callbacks=callbacks,
        callback_every=callback_every,
        checkpoint=checkpoint,
        progress=progress,
        fixed_draws=fixed_draws,
        num_samples=num_samples,
        max_plate_nesting=max_plate_nesting,
        vectorize=vectorize,
        marginalize=marginalize,
        not_fixed={
            "compile": (compile or None, None),
            "process_group": (process_group or None, None),
        },
    )


@dataclass
class OfPyro:
    """See `vi_kit.workflow.fitting.Library`."""

    compile: bool | None
    num_restarts: int
    processes: Processes
    begun: Starts | None = None
    packages: tuple[str, ...] = ("vi-kit", "pyro-ppl", "torch")

    def lengths(self, one: Any) -> list[int]:
        return lengths(one)

    def cut(self, one: Any, index: Any) -> Any:
        return cut(one, index)

    def arrays(self, one: Any) -> Any:
        return one

    def numbers(self, one: Any) -> list[np.ndarray]:
        return numbers(one)

    def check(self, source: Source) -> None:
        pass

    def look(self, model: Callable, guide: Callable, args: Any, kwargs: Any) -> Seen:
        return look(model, guide, args, kwargs)

    def statements(self, model: Callable, guide: Callable, call: Call) -> list[inquest.Seen]:
        return before_steps(model, guide, call)

    def scaled(self, program: Callable, plates: Mapping[str, AllRows], role: str) -> Callable:
        return scaled(program, plates, role)

    def optimizer(self, given: Any, *, shrinks: bool) -> Optimizer:
        return optimizer_of(given, num_restarts=self.num_restarts)

    def held(self, trainer: Any) -> Held:
        return PyroHeld(trainer)

    def starts(self, job: Job) -> list[Callable[[], Trainer]]:
        self.begun = Starts(job, self.compile, self.processes)
        return [partial(self.begun.begin, i) for i in range(self.num_restarts)]

    def keep(self, trainer: Any) -> None:
        assert self.begun is not None
        self.begun.keep(trainer)
