"""What fails leaves no trace: the store of parameters, handlers, generators and signals are as they were; fits in
threads and in one folder; memory that stays flat over many steps; and what an import changes."""

from __future__ import annotations

import gc
import os
import signal
import subprocess
import sys
import threading
import time
from typing import Any, cast

import numpy as np
import pytest

import vi_kit as vi
from vi_kit.base import context

ROWS = np.random.default_rng(0).normal(1.0, 1.0, 40)
NUM_STEPS = int(os.environ.get("VI_KIT_NUM_STEPS", "200"))
"""Over which memory is watched."""


class OfTheUser(Exception):
    """Raised by programs and callbacks of these tests."""

    fit: Any


def programs(lib, trouble=lambda where: None, names=("theta",)):
    """A discrete site with a baseline, a continuous one, and data; `trouble` is called inside of both programs."""

    def model(x):
        b = lib.sample("b", lib.dist.Bernoulli(lib.array(np.array(0.5))))
        z = lib.sample("z", lib.dist.Normal(lib.array(np.array(0.0)), 1.0))
        with lib.plate("data", len(x)):
            trouble("model")
            lib.sample("x", lib.dist.Normal(z + b, 1.0), obs=x)

    def guide(x):
        theta = lib.theta(np.array([0.1, 0.0]), names[0])
        lib.sample("b", lib.dist.Bernoulli(logits=theta[1]))
        trouble("guide")
        lib.sample("z", lib.dist.Normal(theta[0], 0.3))

    return model, guide


ESTIMATORS = {"b": vi.Score(vi.MovingAverage())}


def fit(lib, trouble=lambda where: None, *, names=("theta",), **given):
    model, guide = programs(lib, trouble, names)
    given = {"estimators": ESTIMATORS, "num_steps": 60, "batch_size": 20, **given}
    return lib.fit(model, guide, lib.array(ROWS), **given)


def around(lib):
    """All that is shared with other code of the process, as it stands."""
    numpy: Any = np.random.get_state()
    found: dict[str, Any] = {
        "signal": signal.getsignal(signal.SIGINT),
        "numpy": numpy[1].tobytes(),
        "numpy at": numpy[2],
        "run": context._current.get(None),
    }
    if lib.name == "pyro":
        import pyro
        import torch
        from pyro.poutine.runtime import _PYRO_STACK
        from torch.nn.modules import module
        from torch.utils._python_dispatch import _get_current_dispatch_mode_stack

        store = pyro.get_param_store()
        found |= {
            "handlers": list(_PYRO_STACK),
            "parameters": {name: p.detach().numpy().tobytes() for name, p in store._params.items()},
            "gradients": {
                n: None if p.grad is None else p.grad.any() for n, p in store._params.items()
            },
            "torch": torch.get_rng_state().numpy().tobytes(),
            "gradient mode": torch.is_grad_enabled(),
            "modes": list(_get_current_dispatch_mode_stack()),
            "function modes": torch._C._len_torch_function_stack(),
            "hooks": len(module._global_forward_pre_hooks),
            "dtype": torch.get_default_dtype(),
        }
    else:
        from jax._src.core import trace_state_clean
        from numpyro.primitives import _PYRO_STACK

        found |= {"handlers": list(_PYRO_STACK), "traces": trace_state_clean()}
    return found


def raised(times):
    """Trouble from a call on, counted over both programs."""
    calls = []

    def trouble(where):
        calls.append(where)
        if len(calls) >= times:
            raise OfTheUser(where)

    return trouble


def num_calls(lib, how):
    """How often both programs are run in a fit of a few steps, before its end."""
    calls = []
    how(lib, calls.append)
    clear(lib)
    return len(calls)


def clear(lib):
    if lib.name == "pyro":
        import pyro

        pyro.clear_param_store()


# An exception in a program


def by_fit(lib, trouble):
    fit(lib, trouble, num_steps=4)


def by_restarts(lib, trouble):
    fit(lib, trouble, num_steps=3, num_restarts=2)


def by_fixed_draws(lib, trouble):
    model, guide = programs(lib, trouble)
    estimators = {"b": vi.Enumerate()}
    lib.fit(model, guide, lib.array(ROWS), fixed_draws=2, num_steps=3, estimators=estimators)


def by_svi(lib, trouble):
    model, guide = programs(lib, trouble)
    loss = lib.Loss(vi.iwae(num_particles=2), ESTIMATORS)
    if lib.name == "pyro":
        import pyro.infer
        import pyro.optim

        svi = pyro.infer.SVI(model, guide, pyro.optim.ClippedAdam({"lr": 0.01}), loss)
        for _ in range(3):
            svi.step(lib.array(ROWS))
    else:
        import jax
        import numpyro
        import optax

        svi = numpyro.infer.SVI(model, loss.with_state(guide), optax.adam(0.01), loss)
        state = svi.init(jax.random.key(0), lib.array(ROWS))
        for _ in range(2):
            state, _ = svi.update(state, lib.array(ROWS))


WAYS = {"fit": by_fit, "restarts": by_restarts, "fixed draws": by_fixed_draws, "svi": by_svi}


@pytest.mark.parametrize("way", WAYS)
def test_an_exception_in_a_program_leaves_no_trace(way, lib):
    """From some call of the programs on, planning and dry runs included. Mutants: a handler that is left on the
    stack, a generator that is not given back, a gradient that is left at a parameter."""
    total = num_calls(lib, WAYS[way])
    assert total > 4
    points = sorted({1, 2, total, *np.linspace(1, total, 6).astype(int)})
    for at in points:
        clear(lib)
        before = around(lib)
        with pytest.raises(OfTheUser):
            WAYS[way](lib, raised(at))
        after = around(lib)
        own = ("parameters", "gradients", "torch")  # are moved by the steps before
        shown = {k for k in before if k not in own and before[k] != after[k]}
        assert not shown, (at, {k: (before[k], after[k]) for k in shown})
        if way != "svi" and lib.name == "pyro":  # a fit has generators of its own
            assert before["torch"] == after["torch"], at
        if lib.name == "pyro":
            assert not any(g is not None and bool(g) for g in after["gradients"].values()), at


def test_a_program_that_fails_in_a_step_has_the_parameters_of_the_step_before(lib):
    """And what goes on from there is what an uninterrupted fit is. Mutant: a step that was half done."""
    if lib.name == "numpyro":
        pytest.skip("a step is compiled: programs run before it only")
    import pyro

    steps = []

    def trouble(where):
        if len(steps) == 7 and where == "model":
            raise OfTheUser

    def look(moment):
        steps.append(moment.step)

    with pytest.raises(OfTheUser) as caught:
        fit(lib, trouble, callbacks=look, callback_every=1)
    found = caught.value.fit
    stored = pyro.get_param_store()["theta"].detach().numpy().copy()
    clear(lib)
    exact = fit(lib, num_steps=7)
    assert found.num_steps == 7 and np.array_equal(found.losses, exact.losses)
    assert np.array_equal(stored, exact.params["theta"].numpy())
    assert np.array_equal(stored, found.params["theta"].numpy())


def test_a_fit_that_fails_before_its_first_step_leaves_no_parameters():
    """A program that is mended starts anew, whatever shape its parameters had. Mutant: they stay in the store."""
    import pyro

    from tests.libraries import PyroWords

    lib = PyroWords()
    pyro.param("mine", lib.array(np.ones(2)))
    before = around(lib)["parameters"]
    with pytest.raises(OfTheUser):
        fit(lib, raised(1))
    assert around(lib)["parameters"] == before


def test_an_exception_in_a_callback_leaves_no_trace(lib):
    before = around(lib)

    def look(moment):
        if moment.step == 20:
            raise OfTheUser

    with pytest.raises(OfTheUser) as caught:
        fit(lib, callbacks=look, callback_every=10)
    after = around(lib)
    found = caught.value.fit
    clear(lib)
    exact = fit(lib, num_steps=20)
    assert np.array_equal(found.losses, exact.losses)
    theta = np.asarray(exact.params["theta"])
    assert np.array_equal(np.asarray(found.params["theta"]), theta)
    if lib.name == "pyro":
        assert after.pop("parameters") == {"theta": theta.tobytes()}
        after.pop("gradients")
        before.pop("gradients")
        before.pop("parameters")
    assert before == after


# Ctrl-C


def test_ctrl_c_in_the_middle_of_a_step_lets_it_end(lib):
    """It is in the model that the key is hit. Mutant: a step half done."""
    before, hit = around(lib), []

    def trouble(where):
        if where == "model" and steps and not hit:
            hit.append(steps[-1])
            os.kill(os.getpid(), signal.SIGINT)

    steps = []

    def look(moment):
        steps.append(moment.step)
        if lib.name == "numpyro" and moment.step == 10:  # programs are run in no step
            trouble("model")

    given = {"compile": False} if lib.name == "pyro" else {}
    found = fit(lib, trouble, num_steps=5000, callbacks=look, callback_every=5, **given)
    assert hit and found.stopped.startswith("interrupted after") and found.num_steps < 5000
    after = around(lib)
    clear(lib)
    exact = fit(lib, num_steps=found.num_steps)
    assert np.array_equal(found.losses, exact.losses)
    theta = np.asarray(exact.params["theta"])
    assert np.array_equal(np.asarray(found.params["theta"]), theta)
    for own in ("parameters", "gradients"):
        before.pop(own, None)
        after.pop(own, None)
    assert before == after


def test_ctrl_c_twice_ends_a_step(lib):
    """As a KeyboardInterrupt of Python, with what was found."""
    if lib.name == "numpyro":
        pytest.skip("a step is compiled: nothing of Python is run in it")
    before, steps = around(lib), []

    def trouble(where):
        if where == "model" and len(steps) == 3:
            os.kill(os.getpid(), signal.SIGINT)
            os.kill(os.getpid(), signal.SIGINT)

    def look(moment):
        steps.append(moment.step)

    with pytest.raises(KeyboardInterrupt) as caught:
        fit(lib, trouble, callbacks=look, callback_every=1)
    after, found = around(lib), cast(Any, caught.value).fit
    assert found.num_steps == 3
    clear(lib)
    theta = fit(lib, num_steps=3).params["theta"].numpy()
    assert after.pop("parameters") == {"theta": theta.tobytes()}
    assert not any(g is not None and bool(g) for g in after.pop("gradients").values())
    before.pop("parameters")
    before.pop("gradients")
    assert before == after


def test_ctrl_c_in_a_step_of_svi(lib):
    def trouble(where):
        calls.append(where)
        if len(calls) == 5:
            os.kill(os.getpid(), signal.SIGINT)

    before, calls = around(lib), []
    with pytest.raises(KeyboardInterrupt):
        by_svi(lib, trouble)
    after = around(lib)
    for own in ("parameters", "torch"):
        before.pop(own, None)
        after.pop(own, None)
    assert not any(g is not None and bool(g) for g in after.pop("gradients", {}).values())
    before.pop("gradients", None)
    assert before == after


# Threads


def in_threads(*works) -> list[Any]:
    """What each returned; each begins when all are there."""
    start, errors = threading.Barrier(len(works)), []
    found: list[Any] = [None] * len(works)

    def run(i):
        start.wait()
        try:
            found[i] = works[i]()
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=run, args=(i,)) for i in range(len(works))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]
    return found


def test_two_fits_in_two_threads(lib):
    """Each is what it is alone, bit for bit. Mutants: handlers of both on one stack; one generator for both."""
    alone = [fit(lib, names=[name], seed=seed).losses for seed, name in enumerate(("one", "two"))]
    clear(lib)
    before = around(lib)

    def work(seed, name):
        return lambda: fit(lib, names=[name], seed=seed, callbacks=lambda m: None, callback_every=3)

    found = in_threads(*(work(seed, name) for seed, name in enumerate(("one", "two"))))
    assert not np.array_equal(*alone)
    for one, other in zip(found, alone, strict=True):
        assert np.array_equal(one.losses, other)
    after = around(lib)
    for own in ("parameters", "gradients"):
        before.pop(own, None)
        after.pop(own, None)
    assert before == after


def test_two_fits_of_one_parameter_in_two_threads():
    """In Pyro it is one tensor: the fit that comes second begins where the first has ended. Mutant: both move it."""
    from tests.libraries import PyroWords

    lib = PyroWords()
    alone = [fit(lib, num_steps=20).losses, fit(lib, num_steps=20).losses]
    clear(lib)
    found = in_threads(*[lambda: fit(lib, num_steps=20, callbacks=len_of, callback_every=1)] * 2)
    found = sorted((list(one.losses) for one in found), key=lambda x: x != list(alone[0]))
    assert found == [list(x) for x in alone] and found[0] != found[1]


def len_of(moment):
    """A callback that gives other threads time."""
    time.sleep(0.001)


def test_a_fit_in_a_callback_of_a_fit(lib):
    alone = fit(lib, names=["inner"], num_steps=10).losses
    clear(lib)
    outer_alone = fit(lib, names=["outer"]).losses
    clear(lib)
    inner = []

    def look(moment):
        if moment.step == 30:
            inner.append(fit(lib, names=["inner"], num_steps=10).losses)

    outer = fit(lib, names=["outer"], callbacks=look, callback_every=10)
    assert np.array_equal(inner[0], alone) and np.array_equal(outer.losses, outer_alone)


# One folder of checkpoints


def test_two_fits_that_write_in_one_folder(lib, tmp_path, monkeypatch):
    """The second is told before any work; the first goes on, and whoever comes after it goes on from it."""
    from vi_kit.workflow import checkpoints

    monkeypatch.setattr(checkpoints, "PATIENCE", 0.2)
    refused = []

    def look(moment):
        if moment.step == 30:
            with pytest.raises(vi.CheckpointError, match="another fit is writing") as caught:
                fit(lib, names=["other"], checkpoint=tmp_path)
            refused.append(str(caught.value))

    checkpoint = vi.Checkpoint(tmp_path, every=7)
    found = fit(lib, callbacks=look, callback_every=10, checkpoint=checkpoint)
    assert len(refused) == 1 and "fix: " in refused[0]
    clear(lib)
    assert np.array_equal(fit(lib).losses, found.losses)
    clear(lib)
    again = fit(lib, num_steps=80, checkpoint=checkpoint)
    clear(lib)
    assert np.array_equal(again.losses, fit(lib, num_steps=80).losses)


def test_a_folder_is_free_after_a_fit_that_failed(lib, tmp_path, monkeypatch):
    from vi_kit.workflow import checkpoints

    monkeypatch.setattr(checkpoints, "PATIENCE", 0.2)

    def look(moment):
        raise OfTheUser

    checkpoint = vi.Checkpoint(tmp_path, every=7)
    with pytest.raises(OfTheUser) as caught:
        fit(lib, callbacks=look, callback_every=30, checkpoint=checkpoint)
    clear(lib)
    again = fit(lib, checkpoint=checkpoint)
    clear(lib)
    assert np.array_equal(again.losses, fit(lib).losses)
    assert caught.value.fit.num_steps == 30


# Seeds and imports


@pytest.mark.filterwarnings("ignore:subsampled plates")
def test_the_same_seed_has_the_same_losses(lib):
    for given in ({}, {"num_restarts": 2}, {"objective": vi.iwae(num_particles=3)}):
        clear(lib)
        one = fit(lib, seed=5, **given).losses
        clear(lib)
        np.random.seed(1)  # the generators of others do not matter
        if lib.name == "pyro":
            lib.xp.manual_seed(99)
        again = fit(lib, seed=5, **given).losses
        clear(lib)
        other = fit(lib, seed=6, **given).losses
        assert np.array_equal(one, again) and not np.array_equal(one, other)


STATE = """
import importlib, logging, os, random, signal, sys, threading, warnings
import numpy as np
{libraries}

def state():
    found = {{
        "warnings": list(warnings.filters), "showwarning": warnings.showwarning, "hook": sys.excepthook,
        "signals": {{s: signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM)}},
        "python": random.getstate(), "numpy": str(np.random.get_state()), "errors": np.geterr(),
        "threads": threading.active_count(), "environment": dict(os.environ), "recursion": sys.getrecursionlimit(),
        "logging": (logging.getLogger().level, list(logging.getLogger().handlers)),
        "trace": (sys.gettrace(), sys.getprofile()), "path": list(sys.path),
    }}
    {more}
    return found

before = state()
import vi_kit
importlib.import_module("vi_kit.{name}")
after = state()
wrong = {{k: (before[k], after[k]) for k in before if before[k] != after[k]}}
assert not wrong, wrong
"""
OF_PYRO = """
    from torch.nn.modules import module
    found |= {
        "dtype": torch.get_default_dtype(), "generator": torch.get_rng_state().tolist(),
        "threads of torch": torch.get_num_threads(),
        "store": dict(pyro.get_param_store().items()), "stack": list(pyro.poutine.runtime._PYRO_STACK),
        "validation": torch.distributions.Distribution._validate_args,
        "hooks": (len(module._global_forward_pre_hooks), len(module._global_forward_hooks)),
        "methods": {c.__name__: dict(vars(c)) for c in (torch.Tensor, torch.nn.Module, pyro.poutine.messenger.Messenger,
                    pyro.infer.SVI, pyro.infer.ELBO, torch.distributions.Distribution)},
        "functions": (dict(vars(torch)), dict(vars(pyro)), dict(vars(torch.nn.functional))),
        "settings": pyro.settings.get(),
    }
    for space in found["functions"]:
        space.pop("_dynamo", None), space.pop("_inductor", None)
"""
OF_NUMPYRO = """
    found |= {
        "config": {k: v for k, v in jax.config.values.items()}, "stack": list(numpyro.primitives._PYRO_STACK),
        "methods": {c.__name__: dict(vars(c)) for c in (numpyro.primitives.Messenger, numpyro.infer.SVI,
                    numpyro.infer.ELBO, numpyro.distributions.Distribution)},
        "validation": numpyro.distributions.Distribution._validate_args,
        "functions": (dict(vars(numpyro)),),
    }
"""


def test_an_import_changes_nothing(lib):
    """Of Python, NumPy and the library. Mutant: `torch.set_default_dtype` in a module."""
    libraries = {
        "pyro": "import torch, pyro, pyro.distributions, pyro.infer, pyro.infer.autoguide, pyro.optim",
        "numpyro": "import jax, numpyro, numpyro.distributions, numpyro.infer, numpyro.infer.autoguide, optax",
    }
    more = {"pyro": OF_PYRO, "numpyro": OF_NUMPYRO}[lib.name]
    script = STATE.format(libraries=libraries[lib.name], more=more, name=lib.name)
    for extra, fails in (("", False), ("\nimport numpy; numpy.random.seed(3)\n", True)):
        text = script.replace("after = state()", f"{extra}after = state()")
        ran = subprocess.run(
            [sys.executable, "-W", "ignore", "-c", text],
            capture_output=True,
            text=True,
            timeout=300,
        )
        assert (ran.returncode != 0) == fails, ran.stderr[-3000:]


# Memory

FEW = 25
"""Objects that may be there more after any number of steps: one of each step would be far more."""


def pyro_steps(lib, compile):
    import pyro.infer
    import pyro.optim

    loss = lib.Loss(vi.iwae(num_particles=2), ESTIMATORS, **({"compile": True} if compile else {}))
    svi = pyro.infer.SVI(*programs(lib), pyro.optim.ClippedAdam({"lr": 0.01}), loss)
    return lambda: svi.step(lib.array(ROWS))


def numpyro_steps(lib, compile):
    import jax
    import numpyro
    import optax

    model, guide = programs(lib)
    loss = lib.Loss(vi.iwae(num_particles=2), ESTIMATORS)
    svi = numpyro.infer.SVI(model, loss.with_state(guide), optax.adam(0.01), loss)
    rows = lib.array(ROWS)
    state = [svi.init(jax.random.key(0), rows)]
    update = jax.jit(svi.update) if compile else svi.update

    def step():
        state[0] = update(state[0], rows)[0]

    return step


def grown(step, lib, num):
    """What `num` steps leave behind: objects of Python, arrays of the library, bytes of the process, and blocks of
    Python's memory, numbers and texts among them."""
    for _ in range(2):  # what the first steps make, and the first count
        for _ in range(min(num, 25)):
            step()
        before = counts(lib)
    for _ in range(num):
        step()
    found = {k: v - before[k] for k, v in counts(lib).items()}
    print(f"{num} steps left {found}")
    return found


def counts(lib):
    gc.collect()
    objects = gc.get_objects()
    if lib.name == "pyro":
        import torch

        arrays = sum(issubclass(type(o), torch.Tensor) for o in objects)
    else:
        import jax

        arrays = len(jax.live_arrays())
    with open("/proc/self/statm") as file:
        resident = int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    found = {"objects": len(objects), "arrays": arrays, "bytes": resident}
    del objects
    return {**found, "blocks": sys.getallocatedblocks()}


def check_flat(found, num):
    assert found["objects"] < FEW and found["arrays"] < FEW, found
    assert found["blocks"] < 40 * FEW + num / 10 and found["bytes"] < 30e6, found


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
@pytest.mark.parametrize("compile", [False, True], ids=["eager", "compiled"])
def test_memory_is_flat_over_steps(compile, lib, monkeypatch):
    """Mutant: something is kept of each step."""
    if lib.name == "pyro" and compile and NUM_STEPS < 10_000:
        from vi_kit.pyro import capture

        monkeypatch.setattr(capture, "compiled", lambda graph, inputs: graph)
    step = {"pyro": pyro_steps, "numpyro": numpyro_steps}[lib.name](lib, compile)
    num = NUM_STEPS if lib.name == "pyro" or compile else NUM_STEPS // 40  # each traced anew
    check_flat(grown(step, lib, num), num)
    kept = []

    def leaking():
        step()
        kept.append([lib.array(np.zeros(2))])

    if num < 50:
        return
    with pytest.raises(AssertionError):
        check_flat(grown(leaking, lib, 50), 50)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_memory_of_a_fit_is_flat(lib):
    """But for the losses and the norms of gradients."""
    found, before = {}, {}

    def look(moment):
        if moment.step in (200, 300):
            before.update(counts(lib))
        elif moment.step == 300 + NUM_STEPS:
            found.update({k: v - before[k] for k, v in counts(lib).items()})

    fit(lib, num_steps=300 + NUM_STEPS, callbacks=look, callback_every=100)
    print(f"{NUM_STEPS} steps of a fit left {found}")
    check_flat(found, NUM_STEPS)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_memory_is_flat_over_fits(lib):
    """What a fit makes goes with it."""

    def step():
        clear(lib)
        fit(lib, num_steps=3)

    found = grown_by(step, lib, 10)
    assert found["arrays"] < FEW and found["objects"] / 10 < 20, found


def grown_by(step, lib, num):
    for _ in range(3):
        step()
    before = counts(lib)
    for _ in range(num):
        step()
    found = {k: v - before[k] for k, v in counts(lib).items()}
    print(f"{num} fits left {found}")
    return found
