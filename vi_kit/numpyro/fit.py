"""`fit` for NumPyro."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jax.sharding import Mesh

from vi_kit.engine.select import Given
from vi_kit.language.words import Objective
from vi_kit.numpyro.held import NumPyroHeld
from vi_kit.numpyro.inquest import before_steps
from vi_kit.numpyro.loss import Loss
from vi_kit.numpyro.minibatch import as_arrays, cut, lengths, look, numbers, scaled
from vi_kit.numpyro.optimizers import Optimizer, optimizer_of
from vi_kit.numpyro.sharding import Devices
from vi_kit.numpyro.trainer import NumPyroTrainer
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
    init_params: Mapping[str, Any] | None = None,
    stop: StoppingRule | None = None,
    callbacks: Callback | Iterable[Callback] = (),
    callback_every: int = 100,
    checkpoint: Checkpoint | str | os.PathLike[str] | None = None,
    fixed_draws: int | None = None,
    mesh: Mesh | None = None,
    progress: bool | None = None,
    num_samples: int = 1,
    max_plate_nesting: int | None = None,
    vectorize: bool | None = None,
    marginalize: Sequence[str] = (),
    **kwargs: Any,
) -> Fit:
    """Fit a guide to a model.

    Steps run in compiled loops, with random numbers of their own for each step and each start.

    Args:
        model: a NumPyro model.
        guide: its guide, an autoguide among others.
        *args: of both; with `batch_size`, arrays among them are data, cut along their first axis.
        objective: see `vi_kit.numpyro.Loss`; likewise `estimators`, `num_samples`, `max_plate_nesting`, `vectorize`,
            `marginalize`.
        optimizer: of optax (with its schedules) or of `numpyro.optim`, or a step size for Adam; .01 if left out.
        num_steps: how many steps are taken, if nothing ends the fit before.
        seed: of all random numbers: where parameters start, draws, and the order of the data.
        batch_size: rows of a step. Each epoch has an order of its own; rows that do not fill a batch wait.
        batches: an iterable of minibatches instead, such as a torch `DataLoader`: tuples are further positional
            arguments, dicts keywords. It is gone through again and again; an iterator ends the fit. Plates that hold
            the rows of a minibatch, and count for those alone, are scaled to all rows. A `scale` of their own
            by rows of all over rows of a minibatch is taken for that.
        data_size: how many rows there are, where an iterable does not say.
        clip_norm: the largest norm of a gradient; longer ones are shortened.
        num_restarts: starts from different random numbers, all at once; that with the best objective is kept.
        init_params: where parameters start, by name.
        stop: a rule that may end the fit before, such as `vi.Stationary()`.
        callbacks: called after each `callback_every` steps with a `Moment`; the fit ends where one returns `True`.
        callback_every: see there.
        checkpoint: a folder, or a `vi.Checkpoint`, to save the fit in. If there is one of this fit, it goes on from
            there, and its losses are the same, bit for bit, as if it had not been interrupted.
        fixed_draws: holds the noise: the objective is its mean over so many draws, the same in every evaluation, and
            minimised by L-BFGS until no step lowers it (`num_steps` is then the most that it takes, and may be left
            out). Sites have `Reparam`, `Enumerate`, `Quadrature` or `Analytic`. What it finds has
            `Fit.linear_response`. Guides with free covariances need more draws than these have dims.
        mesh: devices that share the work, with axes named `"data"`, along which the rows of positional arrays and
            minibatches are divided, and `"particles"`, along which replicates are (those of `num_samples`, or of
            the objective); parameters are whole on each. The numbers are those of one device, up to rounding.
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

    Example:
        >>> import jax.numpy as jnp, numpyro, numpyro.distributions as dist
        >>> from numpyro.infer.autoguide import AutoNormal
        >>> from vi_kit.numpyro import fit
        >>> def model(x):
        ...     z = numpyro.sample("z", dist.Normal(0.0, 1.0))
        ...     with numpyro.plate("data", len(x)):
        ...         numpyro.sample("x", dist.Normal(z, 1.0), obs=x)
        >>> found = fit(model, AutoNormal(model), jnp.ones(3), optimizer=0.02, num_steps=1000, num_samples=8)
        >>> abs(float(found.params["z_auto_loc"]) - 0.75) < 0.1
        True
    """
    return fit_with(
        OfNumPyro(init_params, Devices.of(mesh)),
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
        not_fixed={"mesh": (mesh, None)},
    )


@dataclass(frozen=True)
class OfNumPyro:
    """See `vi_kit.workflow.fitting.Library`."""

    init_params: Mapping[str, Any] | None
    devices: Devices
    packages: tuple[str, ...] = ("vi-kit", "numpyro", "jax", "optax")

    def lengths(self, one: Any) -> list[int]:
        return lengths(one)

    def cut(self, one: Any, index: Any) -> Any:
        return cut(one, index)

    def arrays(self, one: Any) -> Any:
        return self.devices.adopted(as_arrays(one))

    def check(self, source: Source) -> None:
        self.devices.check(source)

    @property
    def processes(self) -> Processes:
        return self.devices.processes

    def numbers(self, one: Any) -> list[np.ndarray]:
        return numbers(self.devices.here(one))

    def look(self, model: Callable, guide: Callable, args: Any, kwargs: Any) -> Seen:
        return look(model, guide, *self.devices.here((args, kwargs)))

    def statements(self, model: Callable, guide: Callable, call: Call) -> list[inquest.Seen]:
        return before_steps(model, guide, self.devices.here(call), self.init_params or {})

    def scaled(self, program: Callable, plates: Mapping[str, AllRows], role: str) -> Callable:
        return scaled(program, plates, role)

    def optimizer(self, given: Any, *, shrinks: bool) -> Optimizer:
        return optimizer_of(given, shrinks=shrinks)

    def held(self, trainer: Any) -> Held:
        return NumPyroHeld(trainer)

    def starts(self, job: Job) -> list[Callable[[], Trainer]]:
        return [lambda: NumPyroTrainer(job, self.init_params, self.devices)]

    def keep(self, trainer: Trainer) -> None:
        pass
