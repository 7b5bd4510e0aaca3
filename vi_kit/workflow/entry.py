"""What `fit` of both libraries does with its settings."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from vi_kit.engine.select import Given
from vi_kit.language.words import Objective
from vi_kit.workflow import fitting, fixed
from vi_kit.workflow.batches import Data
from vi_kit.workflow.checkpoints import Checkpoint
from vi_kit.workflow.fitted import Fit
from vi_kit.workflow.moment import Callback
from vi_kit.workflow.request import Request
from vi_kit.workflow.stopping import StoppingRule

TURN = threading.RLock()
"""Fits of several threads take turns: the handlers of a library are on one stack for all threads."""


def fit_with(
    library: fitting.Library,
    make_loss: Callable[..., Any],
    model: Callable,
    guide: Callable,
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
    *,
    objective: Objective | None,
    estimators: Mapping[str, Given] | Given | None,
    optimizer: Any,
    num_steps: int | None,
    seed: int,
    batch_size: int | None,
    batches: Iterable[Any] | None,
    data_size: int | None,
    clip_norm: float | None,
    num_restarts: int,
    stop: StoppingRule | None,
    callbacks: Callback | Iterable[Callback],
    callback_every: int,
    checkpoint: Checkpoint | str | os.PathLike[str] | None,
    progress: bool | None,
    fixed_draws: int | None,
    num_samples: int,
    max_plate_nesting: int | None,
    vectorize: bool | None,
    marginalize: Sequence[str],
    not_fixed: Mapping[str, tuple[Any, Any]] | None = None,
) -> Fit:
    """See `vi_kit.pyro.fit`.

    Args:
        make_loss: the `Loss` of the library.
        not_fixed: settings of one library that have no meaning with `fixed_draws`, each with the value that stands for
            none.
    """
    if fixed_draws is not None:
        fixed.refuse(
            fixed_draws,
            optimizer=(optimizer, None),
            batch_size=(batch_size, None),
            batches=(batches, None),
            data_size=(data_size, None),
            clip_norm=(clip_norm, None),
            num_restarts=(num_restarts, 1),
            **(not_fixed or {}),
            stop=(stop, None),
            callbacks=(callbacks, ()),
            checkpoint=(checkpoint, None),
            num_samples=(num_samples, 1),
        )
    request = Request.of(
        (model, guide),
        kwargs,
        num_steps=num_steps,
        seed=seed,
        clip_norm=clip_norm,
        num_restarts=num_restarts,
        stop=stop,
        callbacks=callbacks,
        callback_every=callback_every,
        checkpoint=checkpoint,
        progress=progress,
        fixed_draws=fixed_draws,
    )
    loss = make_loss(
        objective,
        estimators,
        num_samples=num_samples if fixed_draws is None else fixed_draws,
        max_plate_nesting=max_plate_nesting,
        vectorize=vectorize,
        marginalize=marginalize,
    )
    data = Data(batch_size, batches, data_size)
    with TURN:
        if fixed_draws is not None:
            return fixed.run(library, loss, model, guide, args, kwargs, request)
        return fitting.run(
            library,
            loss,
            model,
            guide,
            args,
            kwargs,
            data=data,
            optimizer=optimizer,
            request=request,
        )
