"""`fit`: whole data, minibatches, restarts, optimisers, callbacks, and what is refused before any work."""

import contextlib
import itertools
import os
import signal

import numpy as np
import pytest

import vi_kit as vi
from tests import oracles
from tests.libraries import LIBRARIES
from tests.workflow.programs import NOISE, X, evidence_of_normals, normals, posterior_of_normals

ROWS = np.random.default_rng(0).normal(1.0, 1.0, 40)


def mean_field(lib, start=0.0):
    """A Normal guide with both parameters free, for `normals`."""

    def guide(x=None):
        theta = lib.theta(np.array([start, -0.5]))
        lib.sample("z", lib.dist.Normal(theta[0], lib.xp.exp(theta[1])))

    return guide


def moved(fit):
    return np.asarray(fit.params["theta"])


def test_fit_finds_a_conjugate_posterior(lib):
    model, _, args = normals(lib)
    found = lib.fit(
        model, mean_field(lib), *args, optimizer=0.02, num_steps=1500, num_samples=8, seed=3
    )
    mean, scale = posterior_of_normals()
    assert abs(moved(found)[0] - mean) < 0.03 and abs(np.exp(moved(found)[1]) / scale - 1) < 0.1
    assert abs(found.objective - evidence_of_normals()) < 0.05
    assert found.losses.shape == found.gradient_norms.shape == (1500,)
    assert found.stopped == "1500 steps" and "Reparam" in found.explained
    assert found.versions.keys() >= {"vi-kit"} and found.seconds["steps"] > 0


def test_a_slow_first_step_is_no_reason_to_compile(monkeypatch):
    import pyro

    from tests.libraries import PyroWords
    from vi_kit.pyro.trainer import WORTH_COMPILING, PyroTrainer

    lib, seconds = PyroWords(), [10.0, 0.002, 0.001]
    assert 30 * np.mean(seconds) > WORTH_COMPILING  # the mutant
    monkeypatch.setattr(PyroTrainer, "_seconds", lambda self, call: seconds.pop())
    model, _, args = normals(lib)
    pyro.clear_param_store()
    assert not lib.fit(model, mean_field(lib), *args, num_steps=30).loss.compile
    assert not seconds


def test_a_seed_decides_and_nothing_else_is_drawn_from(lib):
    model, _, args = normals(lib)

    def losses(seed):
        if lib.name == "pyro":
            import pyro

            pyro.clear_param_store()
        return lib.fit(model, mean_field(lib), *args, num_steps=20, seed=seed).losses

    first = losses(0)
    before = np.random.get_state()[1].copy()
    state = lib.xp.get_rng_state() if lib.name == "pyro" else None
    again = losses(0)
    assert np.array_equal(first, again) and not np.array_equal(first, losses(1))
    assert np.array_equal(before, np.random.get_state()[1])
    if state is not None:
        assert lib.xp.equal(state, lib.xp.get_rng_state())


# Minibatches: the mean of losses at parameters that do not move


def still(lib):
    """An optimiser whose steps have no length."""
    if lib.name == "pyro":
        return lambda params: lib.xp.optim.SGD(params, lr=0.0)
    import optax

    return optax.sgd(0.0)


def elbo_of_all(mean, scale, x=ROWS):
    """The ELBO of a Normal guide for `normals`, in closed form."""
    log_lik = -0.5 * np.log(2 * np.pi * NOISE**2) * len(x)
    log_lik -= (((x - mean) ** 2).sum() + len(x) * scale**2) / (2 * NOISE**2)
    return log_lik - 0.5 * (scale**2 + mean**2 - 1) + np.log(scale)


def subsampled(lib):
    def model(x):
        z = lib.sample("z", lib.dist.Normal(0.0, 1.0))
        with lib.plate("data", len(ROWS), subsample_size=len(x)):
            lib.sample("x", lib.dist.Normal(z, NOISE), obs=x)

    return model


def scaled_by_hand(lib):
    def model(x):
        z = lib.sample("z", lib.dist.Normal(0.0, 1.0))
        scale = lib.handlers.scale(scale=len(ROWS) / len(x))
        with lib.plate("data", len(x)), scale:
            lib.sample("x", lib.dist.Normal(z, NOISE), obs=x)

    return model


def scaled_by_a_constant(lib):
    """As for minibatches of eight rows."""

    def model(x):
        z = lib.sample("z", lib.dist.Normal(0.0, 1.0))
        with lib.handlers.scale(scale=len(ROWS) / 8), lib.plate("data", len(x)):
            lib.sample("x", lib.dist.Normal(z, NOISE), obs=x)

    return model


def subsampled_again(lib):
    """Of the rows of a minibatch, the program takes some itself."""

    def model(x):
        z = lib.sample("z", lib.dist.Normal(0.0, 1.0))
        with lib.plate("data", len(x), subsample_size=4) as index:
            lib.sample("x", lib.dist.Normal(z, NOISE), obs=x[index])

    return model


def subsampled_again_by_hand(lib):
    def model(x):
        z = lib.sample("z", lib.dist.Normal(0.0, 1.0))
        scale = lib.handlers.scale(scale=len(ROWS) / len(x))
        with scale, lib.plate("data", len(x), subsample_size=4) as index:
            lib.sample("x", lib.dist.Normal(z, NOISE), obs=x[index])

    return model


@pytest.mark.parametrize("make", [subsampled_again, subsampled_again_by_hand])
def test_rows_of_a_minibatch_that_the_program_takes_itself(lib, make):
    """They count for all rows. Mutant: for those of the minibatch, as the plate's own scale has it."""
    found = lib.fit(
        make(lib),
        mean_field(lib, 1.0),
        lib.array(ROWS),
        optimizer=still(lib),
        num_steps=200,
        batch_size=8,
    )
    exact = -elbo_of_all(1.0, np.exp(-0.5))
    prior = -elbo_of_all(1.0, np.exp(-0.5), ROWS[:0])
    error = found.losses.std(ddof=1) / np.sqrt(len(found.losses))
    assert abs(found.losses.mean() - exact) <= 5 * error
    mutant = prior + (exact - prior) * 8 / len(ROWS)
    assert abs(found.losses.mean() - mutant) >= 8 * error


def batches_of(lib, size):
    return [lib.array(ROWS[i : i + size]) for i in range(0, len(ROWS), size)]


MODELS = {
    "plain": lambda lib: normals(lib)[0],
    "subsampled": subsampled,
    "scaled": scaled_by_hand,
    "scaled by a constant": scaled_by_a_constant,
}


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("how", ["rows", "stream", "last is shorter"])
def test_a_minibatch_counts_for_all_rows(lib, name, how):
    model, guide = MODELS[name](lib), mean_field(lib, 1.0)
    size = {"rows": 8, "stream": 8, "last is shorter": 12}[how]
    if name == "scaled by a constant" and size != 8:
        pytest.skip("it is for minibatches of eight rows")
    data = {"batches": batches_of(lib, size), "data_size": len(ROWS)}
    args = ()
    if how == "rows":
        args, data = (lib.array(ROWS),), {"batch_size": size}
    is_told = pytest.warns(UserWarning, match="minibatches of 4 to 12 rows, the same in each epoch")
    with is_told if how == "last is shorter" else contextlib.nullcontext():
        found = lib.fit(model, guide, *args, optimizer=still(lib), num_steps=400, **data)
    losses = found.losses
    if how == "last is shorter":  # its rows count for more than those of the others
        sums = [elbo_of_all(1.0, np.exp(-0.5), np.asarray(b)) for b in batches_of(lib, size)]
        prior = elbo_of_all(1.0, np.exp(-0.5), ROWS[:0])
        sizes = [len(b) for b in batches_of(lib, size)]
        scaled = [(s - prior) * len(ROWS) / n + prior for s, n in zip(sums, sizes, strict=True)]
        exact = -np.mean(scaled)
    else:
        exact = -elbo_of_all(1.0, np.exp(-0.5))
    error = losses.std(ddof=1) / np.sqrt(len(losses))
    assert abs(losses.mean() - exact) <= 5 * error
    unscaled = exact * size / len(ROWS)  # a mutant: rows count for themselves
    assert abs(losses.mean() - unscaled) >= 8 * error


@pytest.mark.parametrize("by_hand", [False, True])
@pytest.mark.parametrize("name", ["iwae", "renyi", "cubo"])
def test_a_row_of_a_minibatch_is_one_row_to_a_nonlinear_objective(lib, name, by_hand):
    """Also where the program has the scale. Mutant: it is one row with a power of its weight, as a scale of its
    densities would have it."""
    power = {"iwae": 1.0, "renyi": 0.5, "cubo": 2.0}[name]
    objective = {
        "iwae": vi.iwae(num_particles=2),
        "renyi": vi.renyi(alpha=0.5, num_particles=2),
        "cubo": vi.cubo(order=2.0, num_particles=2),
    }[name]

    def all_rows(x):
        return lib.handlers.scale(scale=len(ROWS) / len(x) if by_hand else 1.0)

    def model(x):
        with lib.plate("data", len(x)), all_rows(x):
            b = lib.sample("b", lib.dist.Bernoulli(0.3))
            lib.sample("x", lib.dist.Normal(2.0 * b, 1.0), obs=x)

    def guide(x):
        with lib.plate("data", len(x)), all_rows(x):
            lib.sample("b", lib.dist.Bernoulli(logits=lib.theta(np.array(0.5)) * x - 1.0))

    found = lib.fit(
        model,
        guide,
        lib.array(ROWS),
        optimizer=still(lib),
        num_steps=5,
        batch_size=8,
        objective=objective,
        estimators=vi.Enumerate(),
    )
    b = np.array([[0.0], [1.0]])
    log_q = oracles.log_bernoulli(0.5 * ROWS - 1.0, b)
    log_w = np.log(np.where(b == 1, 0.3, 0.7)) + oracles.log_normal(ROWS, 2.0 * b, 1.0) - log_q

    def bound(scale):
        pairs = [scale * power * np.stack(x) for x in itertools.product(log_w, repeat=2)]
        values = np.stack([np.logaddexp.reduce(x) - np.log(2.0) for x in pairs]) / power
        q = np.stack([np.exp(x + y) for x, y in itertools.product(log_q, repeat=2)])
        return (q * values).sum() / scale

    loss = bound(1.0) if name == "cubo" else -bound(1.0)
    mutant = bound(5.0) if name == "cubo" else -bound(5.0)
    assert len(ROWS) == 40
    np.testing.assert_allclose(found.losses.mean(), loss, rtol=1e-6)
    assert abs(mutant - loss) > 1.0


def test_each_row_comes_once_in_an_epoch(lib):
    seen = []

    def model(x, y):
        with lib.plate("data", len(x)):
            if not hasattr(x, "aval"):
                seen.append(np.asarray(x).tolist())
            lib.sample("y", lib.dist.Normal(x, 1.0), obs=y)

    if lib.name == "numpyro":
        from vi_kit.workflow.batches import Rows

        rows = Rows((ROWS,), {}, 8, 40, 0, lambda one, index: one[index])
        epochs = [np.concatenate([rows.take()[0][0] for _ in range(5)]) for _ in range(3)]
    else:
        x = lib.array(ROWS)
        fit = lib.fit(model, lambda x, y: None, x, x, batch_size=8, num_steps=15)
        assert len(fit.losses) == 15
        tail = [row for row in seen if len(row) == 8][-15:]
        epochs = [np.concatenate(tail[i : i + 5]) for i in (0, 5, 10)]
    for epoch in epochs:
        assert np.array_equal(np.sort(epoch), np.sort(ROWS))
    assert not np.array_equal(epochs[0], epochs[1])


def test_kinds_of_batches(lib):
    model, guide = normals(lib)[0], mean_field(lib)
    whole = lib.array(ROWS[:8])
    for batch in (whole, (whole,), [whole], {"x": whole}):
        found = lib.fit(model, guide, batches=[batch], data_size=40, num_steps=3)
        assert found.num_steps == 3
    once = iter(batches_of(lib, 8))
    found = lib.fit(model, guide, batches=once, data_size=40, num_steps=100)
    assert found.num_steps == 5 and found.stopped == "the batches ended after 5 steps"


def test_a_loader_of_torch_serves_both(lib):
    import torch
    from torch.utils.data import DataLoader, TensorDataset

    data = TensorDataset(torch.as_tensor(ROWS))
    loader = DataLoader(data, batch_size=16, shuffle=True)
    model, guide = normals(lib)[0], mean_field(lib, 1.0)
    found = lib.fit(model, guide, batches=loader, optimizer=still(lib), num_steps=400)
    error = found.losses.std(ddof=1) / 20
    # of 16, 16 and 8 rows: each has weight 40 / its rows
    assert abs(found.losses.mean() + elbo_of_all(1.0, np.exp(-0.5))) <= 5 * error
    in_order = DataLoader(data, batch_size=16)
    with pytest.warns(UserWarning, match="minibatches of 8 to 16 rows, the same in each epoch"):
        lib.fit(model, guide, batches=in_order, num_steps=1)


# Several starts


def bimodal(lib):
    """Modes at -3 and 3, of which the second has 20 times the mass."""

    def model():
        z = lib.sample("z", lib.dist.Normal(0.0, 10.0))
        high, low = lib.dist.Normal(z, 0.5), lib.dist.Normal(z, 0.5)
        at = lib.array(3.0)
        log_p = lib.xp.logaddexp(high.log_prob(at) + np.log(20.0), low.log_prob(-at))
        lib.factor("modes", log_p)

    return model


def autoguide(lib, model):
    if lib.name == "pyro":
        from pyro.infer.autoguide import AutoNormal, init_to_sample

        return AutoNormal(model, init_loc_fn=init_to_sample), "AutoNormal.locs.z"
    from numpyro.infer.autoguide import AutoNormal, init_to_uniform

    return AutoNormal(model, init_loc_fn=init_to_uniform(radius=4.0)), "z_auto_loc"


def test_the_best_of_several_starts_is_kept(lib):
    model = bimodal(lib)
    guide, loc = autoguide(lib, model)
    found = lib.fit(model, guide, optimizer=0.1, num_steps=150, num_restarts=6, seed=1)
    assert len(found.restarts) == 6
    ends = [losses[-15:].mean() for losses in found.restarts]
    assert np.ptp(ends) > 2  # both modes were found: log(20) is 3
    assert abs(found.losses[-15:].mean() - min(ends)) < 1e-9
    assert abs(float(found.params[loc]) - 3.0) < 0.7
    if lib.name == "pyro":  # the user's own guide has these parameters
        assert abs(float(guide.locs.z.detach()) - float(found.params[loc])) < 1e-9
        assert abs(float(guide.median()["z"].detach()) - 3.0) < 0.7


# Optimisers


def optimizers(lib):
    if lib.name == "pyro":
        import pyro
        import torch

        adam, schedule = torch.optim.Adam, torch.optim.lr_scheduler.ExponentialLR

        def scheduled(params):
            made = adam(params, lr=0.05)
            return made, schedule(made, gamma=0.999)

        args = {"optimizer": adam, "optim_args": {"lr": 0.05}, "gamma": 0.999}
        return {
            "a step size": 0.05,
            "of torch": lambda params: adam(params, lr=0.05),
            "scheduled": scheduled,
            "of pyro": pyro.optim.ClippedAdam({"lr": 0.05}),
            "scheduled by pyro": pyro.optim.ExponentialLR(args),
        }
    import numpyro
    import optax

    return {
        "a step size": 0.05,
        "of optax": optax.chain(optax.clip(10.0), optax.adam(0.05)),
        "scheduled": optax.adam(optax.exponential_decay(0.05, 100, 0.9)),
        "of numpyro": numpyro.optim.Adam(0.05),
    }


@pytest.mark.parametrize("number", range(5))
def test_optimisers_of_each_library(lib, number):
    model, _, args = normals(lib)
    given = list(optimizers(lib).values())
    if number < len(given):
        found = lib.fit(model, mean_field(lib), *args, optimizer=given[number], num_steps=400)
        assert abs(moved(found)[0] - posterior_of_normals()[0]) < 0.3


def test_optimisers_that_do_not_only_take_steps(lib):
    model, _, args = normals(lib)

    def fit(optimizer):
        return lib.fit(model, mean_field(lib), *args, num_steps=3, optimizer=optimizer)

    if lib.name == "numpyro":
        import numpyro
        import optax

        refused = [optax.lbfgs(), numpyro.optim.Minimize()]
        taken = [lib.array(0.1), optax.chain(optax.sgd(0.01), optax.contrib.reduce_on_plateau())]
    else:
        import pyro
        import torch

        refused = [torch.optim.LBFGS, torch.optim.SGD([torch.zeros(1, requires_grad=True)], 0.1)]
        args_of_plateau = {"optimizer": torch.optim.SGD, "optim_args": {"lr": 0.01}}

        def plateau(params):
            made = torch.optim.SGD(params, lr=0.01)
            return made, torch.optim.lr_scheduler.ReduceLROnPlateau(made)

        taken = [lib.array(0.1), plateau, pyro.optim.ReduceLROnPlateau(args_of_plateau)]
    for one in taken:
        assert fit(one).num_steps == 3
    for one in refused:
        with pytest.raises(vi.ObjectiveError, match=r"(?s)cannot be its optimiser.*fix: "):
            fit(one)


def test_an_optimiser_of_some_parameters_moves_no_others():
    import pyro
    import torch

    from vi_kit.pyro import fit

    def model():
        pyro.sample("z", pyro.distributions.Normal(3.0, 1.0))

    def guide():
        loc, scale = pyro.param("loc", torch.zeros(())), pyro.param("scale", torch.ones(()))
        pyro.sample("z", pyro.distributions.Normal(loc, scale))

    guide()
    some = torch.optim.Adam([pyro.param("loc").unconstrained()], lr=0.1)
    found = fit(model, guide, num_steps=5, optimizer=some)
    assert float(found.params["loc"]) > 0.3 and float(found.params["scale"]) == 1.0


def test_where_parameters_of_numpyro_start():
    import numpyro
    import numpyro.distributions as dist
    from numpyro.distributions import constraints

    from vi_kit.numpyro import fit

    def model():
        numpyro.sample("z", dist.Normal(3.0, 1.0))

    def guide():
        scale = numpyro.param("scale", 1.0, constraint=constraints.positive)
        numpyro.sample("z", dist.Normal(numpyro.param("loc", 0.0), scale))

    def start(params):
        return fit(model, guide, num_steps=1, optimizer=1e-9, init_params=params).params

    found = start({"loc": 5, "scale": 2.0})
    assert abs(found["loc"] - 5.0) < 1e-6 and abs(found["scale"] - 2.0) < 1e-6
    bad = {"lock": 1.0, "loc": np.zeros(3), "scale": -1.0}
    with pytest.raises(vi.ObjectiveError, match=r"(?s)'lock'.*fix: .*'loc'.*'loc'.*shape.*'scale'"):
        start(bad)
    with pytest.raises(vi.ObjectiveError, match="init_params has no use for 'loc'"):
        start({"loc": np.nan})


def test_clip_norm_shortens_and_keeps_the_direction(lib):
    def sgd():
        if lib.name == "pyro":
            return lambda params: lib.xp.optim.SGD(params, lr=1.0)
        import optax

        return optax.sgd(1.0)

    def model():
        lib.sample("z", lib.dist.Normal(lib.array(5.0), 1.0))

    def guide():
        theta = lib.theta(np.array([0.0, 0.0]))
        lib.sample("z", lib.dist.Normal(theta[0] + theta[1], 1.0))

    steps = []
    for clip_norm in (None, 0.5, 1e6):
        if lib.name == "pyro":
            import pyro

            pyro.clear_param_store()
        found = lib.fit(model, guide, optimizer=sgd(), num_steps=1, clip_norm=clip_norm)
        steps.append(moved(found))
    assert np.allclose(steps[0], steps[2]) and np.linalg.norm(steps[0]) > 1
    assert np.allclose(steps[1], steps[0] * 0.5 / np.linalg.norm(steps[0]), rtol=1e-5)
    assert np.allclose(found.gradient_norms, np.linalg.norm(steps[0]), rtol=1e-5)


def test_parameters_that_start_as_one_array(lib):
    def model():
        lib.sample("z", lib.dist.Normal(3.0, 1.0))

    zeros = lib.array(np.zeros(2))

    def guide():
        if lib.name == "pyro":
            import pyro as words
        else:
            import numpyro as words
        a, b = words.param("a", zeros), words.param("b", zeros)
        lib.sample("z", lib.dist.Normal(a[0] + b[1], 1.0))

    assert np.isfinite(lib.fit(model, guide, num_steps=5).losses).all()


# What looks at a fit


def test_callbacks_see_and_stop(lib):
    model, _, args = normals(lib)
    seen = []

    def look(moment):
        seen.append((moment.step, len(moment.losses), sorted(moment.params())))
        return moment.step == 30

    found = lib.fit(model, mean_field(lib), *args, num_steps=100, callbacks=look, callback_every=10)
    assert seen == [(n, n, ["theta"]) for n in (10, 20, 30)]
    assert found.num_steps == 30 and found.stopped == "a callback stopped it after 30 steps"


def test_answers_of_callbacks(lib):
    """What arrays say ends a fit, and what is no answer does not."""
    model, _, args = normals(lib)

    def steps(answer):
        given = {"num_steps": 20, "callbacks": lambda moment: answer, "callback_every": 10}
        return lib.fit(model, mean_field(lib), *args, **given).num_steps

    assert [steps(a) for a in (True, np.bool_(True), lib.array(True))] == [10, 10, 10]
    assert [steps(a) for a in (None, False, 1, "text", np.ones(3))] == [20] * 5


def test_an_interrupt_keeps_what_was_found(lib):
    model, _, args = normals(lib)

    def interrupt(moment):
        os.kill(os.getpid(), signal.SIGINT)

    before = signal.getsignal(signal.SIGINT)
    found = lib.fit(
        model, mean_field(lib), *args, num_steps=5000, callbacks=interrupt, callback_every=10
    )
    assert 10 <= found.num_steps < 5000 and found.stopped.startswith("interrupted after")
    assert "theta" in found.params and signal.getsignal(signal.SIGINT) is before


def test_what_fails_has_what_was_found(lib):
    model, _, args = normals(lib)

    def fail(moment):
        raise RuntimeError("of the user")

    with pytest.raises(RuntimeError, match="of the user") as caught:
        lib.fit(model, mean_field(lib), *args, num_steps=50, callbacks=fail, callback_every=10)
    assert caught.value.fit.num_steps == 10 and "theta" in caught.value.fit.params


def test_progress(lib, capsys):
    model, _, args = normals(lib)
    lib.fit(model, mean_field(lib), *args, num_steps=20, progress=True)
    shown = capsys.readouterr().err
    assert "20/20" in shown and "objective" in shown and "gradient" in shown
    lib.fit(model, mean_field(lib), *args, num_steps=20, progress=False)
    assert capsys.readouterr().err == ""


def test_what_a_fit_says(lib):
    model, _, args = normals(lib)
    found = lib.fit(model, mean_field(lib), *args, num_steps=20, num_restarts=2)
    said = repr(found)
    for text in (
        "Fit of model by guide: Loss(elbo()",
        "stopped: 20 steps",
        f"objective {found.objective:.5g} (maximised)",
        "objectives of 2 starts: ",
        "seconds: before",
        "parameters: theta (2,)",
        "Reparam()",
        "seed 0; vi-kit",
    ):
        assert text in said
    assert "array(" not in said and found._repr_html_().startswith("<pre>Fit of model")


def test_an_inner_plate_that_counts_for_as_many_as_the_rows(lib):
    """Its subsample is not a scale by the rows: nothing is refused, and rows count for all."""
    dist, times = lib.dist, len(ROWS) // 8

    def model(x):
        with lib.plate("rows", len(x), dim=-2):
            lib.sample("z", dist.Normal(lib.array(np.zeros((len(x), 1))), 1.0))
            with lib.plate("columns", times, subsample_size=1, dim=-1):
                lib.sample("x", dist.Normal(lib.array(np.zeros((len(x), 1))), 1.0), obs=x[:, None])

    def guide(x):
        loc = lib.theta(np.zeros(1))[0]
        with lib.plate("rows", len(x), dim=-2):
            lib.sample("z", dist.Normal(loc + lib.array(np.zeros((len(x), 1))), 1.0))

    found = lib.fit(
        model, guide, lib.array(ROWS), optimizer=still(lib), num_steps=200, batch_size=8
    )
    exact = times * (0.5 * np.log(2 * np.pi) * len(ROWS) + 0.5 * (ROWS**2).sum())
    error = found.losses.std(ddof=1) / np.sqrt(len(found.losses))
    assert abs(found.losses.mean() - exact) <= 5 * error + 1e-6 and error < exact / 20


# What is refused


@pytest.mark.parametrize(
    "weight", [lambda n: len(ROWS) / n, lambda n: len(ROWS) / 8], ids=["by rows", "by a number"]
)
@pytest.mark.parametrize("scaled", ["model", "guide", "data"])
def test_rows_that_count_for_all_in_a_part_of_the_programs(scaled, weight, lib):
    """Where the model's density alone was scaled, the guide fitted a power of the posterior."""
    dist, ones = lib.dist, lib.array(np.ones(1))

    def rows(x, is_scaled):
        return lib.handlers.scale(scale=weight(len(x)) if is_scaled else 1.0)

    def model(x):
        with lib.plate("rows", len(x)):
            with rows(x, scaled == "model"):
                z = lib.sample("z", dist.Normal(0.0 * x, 1.0))
            with rows(x, scaled in ("model", "data")):
                lib.sample("x", dist.Normal(z, 0.5), obs=x)

    def guide(x):
        slope = lib.theta(np.array([0.5]))[0]
        with lib.plate("rows", len(x)), rows(x, scaled == "guide"):
            lib.sample("z", dist.Normal(slope * x, 0.4 * ones[0]))

    with pytest.raises(vi.ObjectiveError, match="in plate 'rows' some statements count for all"):
        lib.fit(model, guide, lib.array(ROWS), num_steps=2, batch_size=8)


def refusals(lib):
    import optax
    import torch

    rows = lib.array(ROWS)
    other = torch.optim.SGD if lib.name == "numpyro" else optax.adam(0.1)
    return {
        "fit has no setting 'num_step'.*fix:      num_steps": dict(args=(rows,), num_step=3),
        "num_steps must be a whole number": dict(args=(rows,), num_steps=-1),
        "how many steps": dict(args=(rows,), num_steps=None),
        "cannot be its optimiser": dict(args=(rows,), optimizer=other),
        "seed must be.*num_restarts must be": dict(args=(rows,), seed=-1, num_restarts=0),
        "a batch has more rows": dict(args=(rows,), batch_size=41),
        "have not one length": dict(args=(rows, rows[:7]), batch_size=5),
        "both batch_size and batches": dict(batches=[rows], batch_size=5),
        "there are no batches": dict(batches=[]),
        "how many rows there are is not known": dict(batches=iter([rows[:5]])),
        "data_size is of the data that minibatches": dict(args=(rows,), data_size=80),
        "data_size contradicts": dict(args=(rows,), batch_size=5, data_size=80),
        "have not one length|and there are none": dict(batch_size=5),
        "callbacks is not usable": dict(args=(rows,), callbacks=3),
        "the model does not take the arguments.*the guide does not": dict(args=(rows, rows)),
        "clip_norm is not usable": dict(args=(rows,), clip_norm=-1.0),
        "checkpoint is not usable": dict(args=(rows,), checkpoint=3),
        "stop is not usable": dict(args=(rows,), stop=True),
    }


@pytest.mark.parametrize("number", range(18))
def test_refusals_come_before_any_work(lib, number):
    pattern, given = list(refusals(lib).items())[number]
    given = {"num_steps": 10, **given}
    with pytest.raises(vi.ObjectiveError, match=f"(?s){pattern}"):
        lib.fit(normals(lib)[0], mean_field(lib), *given.pop("args", ()), **given)
    if lib.name == "pyro":
        import pyro

        assert not list(pyro.get_param_store())


def test_classes_in_the_place_of_their_values(lib):
    model, guide, args = normals(lib)[0], mean_field(lib), normals(lib)[2]

    class Guide:
        pass

    refused = {
        r"the guide is a class(?s:.*)Guide\(model\)": (Guide, {}),
        r"not an estimator(?s:.*)vi.Score\(\)": (guide, {"estimators": vi.Score}),
        "a stopping rule": (guide, {"stop": vi.Stationary}),
    }
    for pattern, (own, given) in refused.items():
        with pytest.raises(vi.ViKitError, match=pattern):
            lib.fit(model, own, *args, num_steps=3, **given)
    with pytest.raises(vi.ObjectiveError, match="the guide is a class"):
        vi.check_unbiased(lib.Loss(), model, Guide, *args)


def test_data_by_keyword_are_not_cut(lib):
    def model(x, y=None):
        z = lib.sample("z", lib.dist.Normal(0.0, 1.0))
        with lib.plate("data", len(x)):
            lib.sample("y", lib.dist.Normal(z * x, 1.0), obs=y)

    def guide(x, y=None):
        lib.sample("z", lib.dist.Normal(lib.theta(np.zeros(1))[0], 1.0))

    rows = lib.array(ROWS)
    with pytest.raises(
        vi.ObjectiveError, match=r"(?s)keywords are the same in each step.*y of 40 rows"
    ):
        lib.fit(model, guide, rows, y=rows, batch_size=8, num_steps=3)


def test_parameters_of_all_rows_in_a_minibatch(lib):
    """What the error advises: the rows are taken inside, where parameters of all of them can be."""
    model, guide = rows_taken_inside(lib)
    found = lib.fit(model, guide, lib.array(ROWS), num_steps=400, optimizer=0.03, num_samples=20)
    # each is half of its datum; at the start they are off by up to 1.5
    assert np.abs(moved(found) - ROWS / 2).max() < 0.3 < np.abs(ROWS / 2).max() / 3


def rows_taken_inside(lib):
    def model(x):
        with lib.plate("rows", len(ROWS), subsample_size=8) as i:
            z = lib.sample("z", lib.dist.Normal(0.0, 1.0))
            lib.sample("x", lib.dist.Normal(z, 1.0), obs=x[i])

    def guide(x):
        loc = lib.theta(np.zeros(len(ROWS)))
        with lib.plate("rows", len(ROWS), subsample_size=8) as i:
            lib.sample("z", lib.dist.Normal(loc[i], 0.5**0.5))

    return model, guide


def test_data_that_do_not_fit_a_plate_are_refused(lib):
    def refused(model, pattern, guide=None, **given):
        given = {"batch_size": 8, **given}
        args = (lib.array(ROWS),) if "batches" not in given else ()
        with pytest.raises(vi.ObjectiveError, match=f"(?s){pattern}"):
            lib.fit(model, guide or mean_field(lib), *args, num_steps=5, **given)

    def no_plate(x):
        z = lib.sample("z", lib.dist.Normal(0.0, 1.0))
        lib.sample("x", lib.dist.Normal(z, 1.0).expand([len(x)]).to_event(1), obs=x)

    def other_size(x):
        z = lib.sample("z", lib.dist.Normal(0.0, 1.0))
        with lib.plate("data", 100, subsample_size=len(x)):
            lib.sample("x", lib.dist.Normal(z, 1.0), obs=x)

    def local(x):
        with lib.plate("data", len(x)):
            z = lib.sample("z", lib.dist.Normal(0.0, 1.0))
            lib.sample("x", lib.dist.Normal(z, 1.0), obs=x)

    def of_all_rows(x):
        loc = lib.theta(np.zeros(len(ROWS)))
        with lib.plate("data", len(x)):
            lib.sample("z", lib.dist.Normal(loc, 1.0))

    def of_rows(x):
        loc = lib.theta(np.zeros(len(x)))
        with lib.plate("data", len(x)):
            lib.sample("z", lib.dist.Normal(loc, 1.0))

    refused(no_plate, "no plate holds the rows of a minibatch.*observed sites 'x'")
    refused(other_size, "plate 'data' has another size.*100.*40")
    refused(local, "minibatch: .*40.*got: +8 of 40 rows.*an encoder.*subsample_size=8", of_all_rows)
    refused(local, "parameter 'theta.*has as many elements as a minibatch", of_rows)
    refused(local, "has as many elements as a minibatch", autoguide(lib, local)[0])
    several = [lib.array(ROWS[:8])]
    refused(other_size, "another size", batches=several, data_size=40, batch_size=None)


@pytest.mark.parametrize("x", [X[:1], X])
def test_batches_of_one_row(lib, x):
    found = lib.fit(normals(lib)[0], mean_field(lib), lib.array(x), batch_size=1, num_steps=4)
    assert np.isfinite(found.losses).all()


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
@pytest.mark.parametrize("slope", [1.0, 1e-4])
def test_adam_of_half_precision(lib, dtype, slope, tmp_path):
    """By a gradient that is the same in all steps Adam goes its step size, however small it is, and by none it stays.
    Mutant: squares in half precision, which are nought."""
    start = lib.xp.zeros(2, dtype=getattr(lib.xp, dtype))
    weights = lib.array(np.array([slope, 0.0]))

    def model():
        if lib.name == "pyro":
            import pyro as library
        else:
            import numpyro as library
        lib.factor("f", (library.param("w", start) * weights).sum())

    def guide():
        pass

    size = 2.0**-6  # of which each precision has the multiples
    for steps in (4, 9):
        forget(lib)
        fit = lib.fit(model, guide, optimizer=size, num_steps=steps, checkpoint=tmp_path)
        w = fit.params["w"]
        assert str(w.dtype).endswith(dtype)
        found = np.asarray(w.double() if lib.name == "pyro" else w, float)
        assert found[1] == 0.0 and found[0] == pytest.approx(steps * size, rel=1e-2)


def forget(lib):
    if lib.name == "pyro":
        import pyro

        pyro.clear_param_store()


@pytest.mark.parametrize("kind", ["empty", "raises"])
def test_a_minibatch_that_cannot_be_has_all_steps_before_it(lib, kind):
    """Mutants: the steps that were to be taken together with it are lost; the error of an empty plate."""
    rows = [lib.array(x) for x in np.split(ROWS, 10)]

    def batches(last):
        def each():
            yield from rows[:7]
            if last and kind == "raises":
                raise KeyError("of the loader")
            if last:
                yield rows[0][:0]

        return each()

    model = normals(lib)[0]
    given = {"data_size": 40, "num_steps": 20, "optimizer": 0.05}
    error = vi.ObjectiveError if kind == "empty" else KeyError
    pattern = "minibatch 8 of epoch 1 has no rows" if kind == "empty" else "of the loader"
    with pytest.raises(error, match=pattern) as caught:
        lib.fit(model, mean_field(lib), batches=batches(True), **given)
    forget(lib)
    whole = lib.fit(model, mean_field(lib), batches=batches(False), **given)
    found = caught.value.fit
    assert found.num_steps == whole.num_steps == 7
    assert np.array_equal(found.losses, whole.losses)
    assert np.array_equal(np.asarray(found.params["theta"]), np.asarray(whole.params["theta"]))


def test_data_without_rows(lib):
    model, _, args = normals(lib)
    with pytest.raises(vi.ObjectiveError, match="the data have no rows"):
        lib.fit(model, mean_field(lib), args[0][:0], num_steps=3)


@pytest.mark.parametrize("at", [10, 20])
def test_a_callback_that_clears_the_store_of_pyro(at):
    """In the midst of a fit, and after its last step. Mutant: KeyError."""
    import pyro

    lib = LIBRARIES["pyro"]()
    model, _, args = normals(lib)

    def clear(moment):
        if moment.step == at:
            pyro.clear_param_store()

    given = {"num_steps": 20, "callbacks": clear, "callback_every": 10}
    with pytest.raises(vi.ObjectiveError, match=f"(?s)after step {at} .*no 'theta'") as caught:
        lib.fit(model, mean_field(lib), *args, **given)
    assert caught.value.fit.num_steps == at


def test_a_callback_that_sets_a_parameter_in_the_store_of_pyro():
    """Steps go on from there. Mutant: they move a tensor that is in the store no longer."""
    import pyro

    lib = LIBRARIES["pyro"]()
    model, _, args = normals(lib)
    seen = []

    def put(moment):
        store = pyro.get_param_store()
        seen.append(store["theta"].detach().clone().numpy())
        if moment.step == 10:
            store["theta"] = lib.array(np.array([7.0, -1.0]))

    given = {"num_steps": 30, "callbacks": put, "callback_every": 10, "optimizer": 0.01}
    found = lib.fit(model, mean_field(lib), *args, **given)
    last = np.asarray(found.params["theta"])
    assert 6.0 < seen[1][0] < 7.0 and last[0] < seen[1][0]  # the posterior is near 1
    np.testing.assert_array_equal(np.asarray(pyro.get_param_store()["theta"].detach()), last)


def test_a_callback_that_sets_a_parameter_of_another_shape():
    import pyro

    lib = LIBRARIES["pyro"]()
    model, _, args = normals(lib)

    def put(moment):
        pyro.get_param_store()["theta"] = lib.array(np.zeros(3))

    given = {"num_steps": 20, "callbacks": put, "callback_every": 10}
    with pytest.raises(vi.ObjectiveError, match="'theta', or of another shape"):
        lib.fit(model, mean_field(lib), *args, **given)


def test_averages_of_elements_need_the_same_elements(lib):
    """A minibatch has other rows in each step. Mutant: their averages are mixed."""

    def model(x):
        with lib.plate("data", len(x)):
            b = lib.sample("b", lib.dist.Bernoulli(0.3))
            lib.sample("x", lib.dist.Normal(2.0 * b, 1.0), obs=x)

    def guide(x):
        with lib.plate("data", len(x)):
            lib.sample("b", lib.dist.Bernoulli(logits=lib.theta(np.array(0.5)) * x))

    baseline = vi.Score(vi.MovingAverage(per_element=True))
    with pytest.raises(vi.EstimatorError, match=r"per_element=True\) needs whole plates"):
        lib.fit(model, guide, lib.array(ROWS), batch_size=8, num_steps=2, estimators=baseline)
