"""The ways in which a step is run: as it is written, and compiled."""

from __future__ import annotations

from typing import Any

import numpy as np

HOW = ("eager", "compiled")


def estimates(
    lib: Any,
    how: str,
    patch: Any,
    model: Any,
    guide: Any,
    values: np.ndarray,
    *,
    objective: Any = None,
    estimators: Any = None,
    num_draws: int = 3,
    seed: int = 0,
    args: tuple[Any, ...] = (),
    **settings: Any,
) -> np.ndarray:
    """Estimates of a loss and of its gradient by `theta`, shape `(num_draws, 1 + len(values))`.

    Compiled, a step of Pyro is captured from the second on, and its graph run by torch: inductor takes long. Eager,
    one of NumPyro is no more than differentiated.
    """
    if lib.name == "pyro" and how == "compiled":
        from vi_kit.pyro import capture

        patch.setattr(capture, "compiled", lambda graph, inputs: graph)
        settings["compile"] = True
    loss = lib.Loss(objective, estimators, **settings)
    if lib.name == "numpyro" and how == "eager":
        return _differentiated(lib, loss, model, guide, values, num_draws, seed, args)
    return lib.estimates(loss, model, guide, values, num_draws, seed, args=args)


def _differentiated(
    lib: Any, loss: Any, model: Any, guide: Any, values: Any, num_draws: int, seed: int, args: Any
) -> np.ndarray:
    import jax

    def value(params: Any, key: Any) -> Any:
        return loss.loss(key, params, model, guide, *args)

    params, draws = {"theta": lib.xp.asarray(values)}, []
    for key in jax.random.split(jax.random.key(seed), num_draws):
        loss_now, grads = jax.value_and_grad(value)(params, key)
        draws.append(np.concatenate([[loss_now], np.asarray(grads["theta"])]))
    return np.array(draws)
