"""Fits that several processes take together: one of the processes, run by `test_sharding.py`.

Args: the address of the first process, the number of this one, and a folder.
"""

import json
import os
import signal
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P


def fits(mesh, number, folder):
    """Losses and parameters of some fits, by name."""
    import optax

    import vi_kit as vi
    from tests.numpyro.programs_on_devices import ROWS, X, amortised, model, row_by_row
    from vi_kit.numpyro import fit

    def placed(x):
        """Rows of which each process has a half."""
        if mesh is None:
            return x
        half = len(x) // 2
        own = x[number * half : (number + 1) * half]
        return jax.make_array_from_process_local_data(NamedSharding(mesh, P("data")), own, x.shape)

    settings = {"optimizer": optax.adam(0.05), "num_samples": 2, "mesh": mesh, "progress": False}
    rows = {**settings, "batch_size": 16}
    saved = {"checkpoint": vi.Checkpoint(folder, keep=1), **rows}
    ends = {"callbacks": lambda moment: number == 1, "callback_every": 1}
    ended = fit(model, amortised, X, num_steps=2, **ends, **saved)
    assert ended.num_steps == (2 if mesh is None else 1), ended.stopped
    batches = [placed(X[i : i + 16]) for i in range(0, ROWS, 16)]
    found = {
        "resumed": fit(model, amortised, X, num_steps=4, **saved),
        "placed": fit(model, row_by_row, placed(X), num_steps=3, **settings),
        "batches": fit(model, amortised, batches=batches, data_size=ROWS, num_steps=4, **settings),
    }
    spoilt = X.copy()
    spoilt[37, 2] = np.nan
    try:
        fit(model, amortised, spoilt, num_steps=4, **rows)
    except vi.NotFiniteError as error:
        assert "row 37" in str(error), error
        found["spoilt"] = error.fit
    losses = {f"{name}: losses": one.losses for name, one in found.items()}
    return losses | {
        f"{name}: {k}": np.asarray(v) for name, one in found.items() for k, v in one.params.items()
    }


def refusals(mesh, number):
    """What each of some fits says whose processes differ, by name."""
    import optax

    import vi_kit as vi
    from tests.numpyro.programs_on_devices import DIM, X, amortised, model
    from vi_kit.numpyro import fit

    def shifted(x):
        return amortised(x + number)

    settings = {"optimizer": optax.adam(0.05), "num_samples": 2, "mesh": mesh, "progress": False}
    settings["num_steps"] = 40
    late = optax.sgd(lambda step: jnp.where(step < 5, 1e-3, 1e-3 * (1 + number)))
    cases = {
        "seed": {"seed": number},
        "num_steps": {"num_steps": 4 + number},
        "num_samples": {"num_samples": 2 + 2 * number},
        "optimizer": {"optimizer": optax.adam(0.05 + 0.01 * number)},
        "program": {"guide": shifted},
        "rows": {"batch_size": 16, "x": X + number},
        "number of rows": {"batch_size": 16, "x": X[: 48 - 16 * number]},
        "all data": {"x": X + number},
        "batches": {"x": None, "batches": [X[:16] + number, X[16:32]], "data_size": 32},
        "optimizer later": {"optimizer": late},
    }
    found = {}
    for name, given in cases.items():
        kinds = {"guide": amortised, "x": X, **settings, **given}
        guide, x = kinds.pop("guide"), kinds.pop("x")
        try:
            fit(model, guide, *([] if x is None else [x]), **kinds)
            found[name] = "", ""
        except vi.ViKitError as error:
            found[name] = type(error).__name__, str(error)
    start = {"encoder": np.full((DIM, 2), 0.2 + number)}
    one = fit(model, amortised, X, init_params=start, **{**settings, "num_steps": 1})
    found["start"] = "", np.asarray(one.params["encoder"]).tolist()
    return found


def killed(mesh, number):
    """What the first process says of a fit in whose middle the second one is killed."""
    from tests.numpyro.programs_on_devices import X, amortised, model
    from vi_kit.numpyro import fit

    def look(moment):
        if number and moment.step == 6:
            os.kill(os.getpid(), signal.SIGKILL)

    settings = {"num_samples": 2, "batch_size": 16, "mesh": mesh, "num_steps": 500}
    settings |= {"callbacks": look, "callback_every": 3, "progress": False}
    try:
        fit(model, amortised, X, **settings)
    except Exception as error:
        steps = error.fit.num_steps if hasattr(error, "fit") else None
        return {"kind": type(error).__name__, "text": str(error), "steps": steps}
    return {}


if __name__ == "__main__":
    address, number, folder = sys.argv[1], int(sys.argv[2]), Path(sys.argv[3])
    jax.config.update("jax_enable_x64", True)
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    jax.distributed.initialize(address, num_processes=2, process_id=number)
    assert jax.process_count() == 2 and len(jax.local_devices()) == 2
    mesh = Mesh(np.array(jax.devices()).reshape(2, 2), ("data", "particles"))
    np.savez(folder / f"{number}.npz", **fits(mesh, number, folder / "saved"))
    (folder / f"{number}.json").write_text(json.dumps(refusals(mesh, number)))
    (folder / "killed.json").write_text(json.dumps(killed(mesh, number)))
    os._exit(0)  # or JAX would wait for the other, and end this one
