"""Fits that several processes take together: one of the processes, run by `test_sharding.py`.

Args: the address of the first process, the number of this one, and a folder.
"""

import sys
from pathlib import Path

import jax
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


if __name__ == "__main__":
    address, number, folder = sys.argv[1], int(sys.argv[2]), Path(sys.argv[3])
    jax.config.update("jax_enable_x64", True)
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    jax.distributed.initialize(address, num_processes=2, process_id=number)
    assert jax.process_count() == 2 and len(jax.local_devices()) == 2
    mesh = Mesh(np.array(jax.devices()).reshape(2, 2), ("data", "particles"))
    np.savez(folder / f"{number}.npz", **fits(mesh, number, folder / "saved"))
