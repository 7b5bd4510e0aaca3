"""Fits that leave the range of a distribution, or of numbers, say where, and end with the last good parameters."""

import numpy as np
import pytest

import vi_kit as vi


def descent(lib, size):
    """Plain gradient descent."""
    if lib.name == "pyro":
        import torch

        return lambda params: torch.optim.SGD(params, size, momentum=0.5)
    import optax

    return optax.sgd(size, momentum=0.5)


def prior(lib):
    def model():
        lib.sample("z", lib.dist.Normal(0.0, 1.0))

    return model


def of_rows(lib):
    """A mean, and rows of data in a plate."""

    def model(x):
        z = lib.sample("z", lib.dist.Normal(0.0, 1.0))
        with lib.plate("rows", len(x)):
            lib.sample("x", lib.dist.Normal(z, 1.0, validate_args=False), obs=x)

    def guide(x):
        theta = lib.theta(np.array([0.0, -0.5]))
        lib.sample("z", lib.dist.Normal(theta[0], lib.xp.exp(theta[1])))

    return model, guide


def nan_data(lib):
    rows = [np.linspace(0.0, 1.0, 4) + i for i in range(9)]
    rows[6][2] = np.nan
    batches = [(lib.array(x),) for x in rows]
    return *of_rows(lib), {"num_steps": 20, "batches": batches, "data_size": 36}


def behind_a_mask(lib):
    """Where data are missing the scale is nought, and nothing is wrong with that: one below is."""
    scales, mask = np.array([1.0, 0.0, 2.0, 1.0]), np.array([True, False, True, True])
    model, guide, kwargs = nan_data(lib)

    def with_missing(x):
        twice = lib.array(np.stack([scales, scales], -1))
        normal = lib.dist.Normal(0.0, twice, validate_args=False)
        events = lib.dist.Independent(normal, 1)
        with lib.plate("sensors", 4), lib.handlers.mask(mask=lib.array(mask)):
            lib.sample("seen", events, obs=lib.array(np.ones((4, 2))))
        model(x)

    return with_missing, guide, kwargs


def outside_a_support(lib):
    """The upper bound of what is observed comes down to it."""

    def model():
        z = lib.sample("z", lib.dist.Normal(0.0, 1.0))
        lib.sample("x", lib.dist.Uniform(-9.0, z, validate_args=True), obs=lib.array(1.0))

    def guide():
        theta = lib.theta(np.array([9.0]))
        lib.sample("z", lib.dist.Normal(theta[0], 0.1))

    return model, guide, {"num_steps": 500, "optimizer": descent(lib, 0.1)}


def edge_behind_a_where(lib):
    """The parameter is brought to nought: its logarithm is masked, and the gradient of that is not."""

    def model():
        lib.sample("z", lib.dist.Normal(1.0, 1.0))
        theta = lib.theta(np.array([1.0]))[0]
        rest = theta.clip(0.0) if lib.name == "numpyro" else theta * (theta > 0.0)
        masked = lib.xp.where(theta > 0.1, lib.xp.log(rest), lib.xp.zeros_like(theta))
        lib.sample("x", lib.dist.Normal(theta + 0.01 * masked, 1.0), obs=lib.array(-9.0))

    def guide():
        start = lib.theta(np.array([0.0]), "start")
        lib.sample("z", lib.dist.Normal(start[0], 1.0))

    return model, guide, {"num_steps": 50, "optimizer": descent(lib, 0.02)}


def runaway(lib):
    def guide():
        theta = lib.theta(np.array([0.1]))
        lib.sample("z", lib.dist.Normal(theta[0], 1.0, validate_args=False))

    return prior(lib), guide, {"num_steps": 900, "optimizer": descent(lib, 40.0)}


def without_a_constraint(lib):
    def guide():
        scale = lib.theta(np.array([3.0]))[0]
        lib.sample("z", lib.dist.Normal(4.0, scale))  # without a constraint

    return prior(lib), guide, {"num_steps": 300, "optimizer": descent(lib, 0.1)}


def overflow(lib):
    """The entropy drives the logarithm of a scale up, and the model hardly holds it back."""

    def model():
        lib.sample("z", lib.dist.Normal(0.0, lib.array(np.array(1e150))))

    def guide():
        theta = lib.theta(np.array([0.0]))
        lib.sample("z", lib.dist.Normal(0.0, lib.xp.exp(theta[0]), validate_args=False))

    return model, guide, {"num_steps": 50, "optimizer": descent(lib, 40.0)}


KINDS = {
    nan_data: ("model site 'x' at (2,)", "value: shape (4,), 6 to 7, 1 nan", "data without nan"),
    behind_a_mask: (
        "model site 'x' at (2,)",
        "value: shape (4,), 6 to 7, 1 nan",
        "data without nan",
    ),
    outside_a_support: ("model site 'x'", "Uniform(low: -9; high: ", "inside the support"),
    edge_behind_a_where: ("model site 'x'", "gradient of parameter 'theta'", "before any where"),
    runaway: ("site 'z'", "Normal(", "clip_norm"),
    without_a_constraint: ("guide site 'z'", "out of its range", "constraint="),
    overflow: ("site 'z'", "value: ", "softplus"),
}


def fails(lib, kind):
    model, guide, kwargs = kind(lib)
    with pytest.raises(vi.NotFiniteError) as caught:
        lib.fit(model, guide, **kwargs)
    return caught.value, model, guide, kwargs


def forget(lib):
    if lib.name == "pyro":
        import pyro

        pyro.clear_param_store()


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_a_fit_that_fails_says_where_and_has_the_last_good_parameters(lib, kind):
    """The parameters are those of a fit of one step less than were taken. Mutant: of those that were taken."""
    error, model, guide, kwargs = fails(lib, kind)
    text, fit = str(error), error.fit
    for part in KINDS[kind]:
        assert part in text, text
    assert text.startswith(f"step {fit.num_steps + 2}:") and fit.num_steps > 0, text
    assert fit.losses.shape == fit.gradient_norms.shape == (fit.num_steps,)
    assert np.isfinite(fit.losses).all()
    last = {}
    for more in (0, 1):
        forget(lib)
        again = lib.fit(model, guide, **{**kwargs, "num_steps": fit.num_steps + more})
        last[more] = again.params
        assert np.array_equal(again.losses[: fit.num_steps], fit.losses)
    for name, value in fit.params.items():
        assert np.array_equal(np.asarray(value), np.asarray(last[0][name]))
    assert any(
        not np.array_equal(np.asarray(value), np.asarray(last[1][name]))
        for name, value in fit.params.items()
    )


def test_the_line_of_an_argument_out_of_its_range(lib):
    error, *_ = fails(lib, without_a_constraint)
    text = str(error)
    assert "test_guard.py" in text and "# without a constraint" in text.splitlines()[0]
    assert isinstance(error.__cause__, ValueError)


def test_a_constant_out_of_its_range_is_told_before_the_first_step(lib):
    """No parameter has moved yet."""

    def model():
        z = lib.sample("z", lib.dist.Normal(0.0, 1.0))
        lib.sample("x", lib.dist.Normal(z, -1.0, validate_args=True), obs=lib.array(1.0))

    _, guide, _ = runaway(lib)
    with pytest.raises(vi.NotFiniteError, match=r"(?s)before the first step: .*constants, what is"):
        lib.fit(model, guide, num_steps=3)


def test_rows_of_a_minibatch(lib):
    x = np.linspace(-1.0, 1.0, 40)
    x[11] = np.inf

    model, guide = of_rows(lib)
    for seed in range(9):  # the row is not in the first two minibatches of some seed
        forget(lib)
        with pytest.raises(vi.NotFiniteError) as caught:
            lib.fit(model, guide, lib.array(x), batch_size=4, num_steps=10, seed=seed)
        fit, text = caught.value.fit, str(caught.value)
        if fit.num_steps:
            break
    assert fit.num_steps and text.startswith(f"step {fit.num_steps + 2}:")
    assert "model site 'x'" in text and "1 inf" in text and "data without nan" in text
    forget(lib)
    again = lib.fit(model, guide, lib.array(x), batch_size=4, num_steps=fit.num_steps, seed=seed)
    assert np.array_equal(np.asarray(again.params["theta"]), np.asarray(fit.params["theta"]))


@pytest.mark.parametrize("name", ["x", "y"])
@pytest.mark.parametrize("how", [{}, {"batch_size": 8}, {"fixed_draws": 2, "num_steps": None}])
def test_data_that_are_no_numbers_are_told_by_their_rows(lib, name, how):
    """Before the first step as in one. Mutant: what the library says."""
    data = {"x": np.linspace(0.0, 1.0, 12), "y": np.linspace(1.0, 2.0, 12)}
    data[name][7] = np.nan

    def model(x, y):
        z = lib.sample("z", lib.dist.Normal(0.0, 1.0))
        with lib.plate("rows", len(x)):
            lib.sample("y", lib.dist.Normal(z * x, 1.0), obs=y)

    def guide(x, y):
        lib.sample("z", lib.dist.Normal(lib.theta(np.array([0.0]))[0], 1.0))

    with pytest.raises(vi.NotFiniteError) as caught:
        lib.fit(model, guide, *map(lib.array, data.values()), **{"num_steps": 9, **how})
    text = str(caught.value)
    assert text.startswith(("before the first step: ", "step 1: "))
    assert f"argument '{name}' has 1 nan, in row 7" in text and "data without nan" in text
    assert "model site 'y' at (7,)" in text and "step before" not in text


def test_rows_of_all_data_in_place_of_those_of_a_minibatch(lib):
    """Mutant: the place in the minibatch, of which the last row is 3."""
    x = np.linspace(-1.0, 1.0, 40)
    x[[11, 23]] = np.inf
    model, guide = of_rows(lib)
    with pytest.raises(vi.NotFiniteError) as caught:
        lib.fit(model, guide, lib.array(x), batch_size=4, num_steps=10)
    headline, got, *_ = str(caught.value).splitlines()
    assert any(f"at ({i},), by rows of all data" in headline for i in (11, 23)), headline
    assert any(f"argument 'x' has 1 inf, in row {i}" in got for i in (11, 23)), got
    assert "of plate" not in headline


def rare(lib, least):
    """A model whose log density is no number where a draw is below some value."""

    def model():
        z = lib.sample("z", lib.dist.Normal(0.0, 1.0))
        lib.factor("f", lib.xp.where(z < least, -lib.xp.inf, 0.0))

    def guide():
        theta = lib.theta(np.array([0.0]))
        lib.sample("z", lib.dist.Normal(theta[0], 1.0))

    return model, guide


def test_of_several_starts_those_go_on_that_can(lib):
    """A start fails in about a half of such fits. Mutant: one that failed is chosen by the loss it had."""
    model, guide = rare(lib, -2.2)
    fit = lib.fit(model, guide, num_steps=50, num_restarts=6, optimizer=0.01)
    lengths = [len(losses) for losses in fit.restarts]
    assert fit.num_steps == max(lengths) == 50 and min(lengths) < 50
    assert all(np.isfinite(losses).all() for losses in fit.restarts)


def test_if_all_starts_fail_it_is_an_error(lib):
    model, guide = rare(lib, -0.7)
    with pytest.raises(vi.NotFiniteError) as caught:
        lib.fit(model, guide, num_steps=200, num_restarts=3, optimizer=0.01)
    fit = caught.value.fit
    assert len(fit.restarts) == 3 and all(np.isfinite(x).all() for x in fit.restarts)
    assert "site 'f'" in str(caught.value) and np.isfinite(np.asarray(fit.params["theta"])).all()


def test_what_baselines_keep_is_of_the_last_good_step(lib, monkeypatch):
    """Mutant: of the step that failed. In Pyro there is a mark before each step, too."""
    if lib.name == "pyro":
        from vi_kit.pyro import marks

        monkeypatch.setattr(marks, "EVERY", 0.0)
        monkeypatch.setattr(marks, "SHARE", 1e9)
    rows = [np.linspace(0.0, 1.0, 4) + i for i in range(6)]
    rows[4][0] = np.nan

    def model(x):
        z = lib.sample("z", lib.dist.Bernoulli(lib.array(0.5)))
        with lib.plate("rows", len(x)):
            lib.sample("x", lib.dist.Normal(1.0 * z, 1.0, validate_args=False), obs=x)

    def guide(x):
        lib.sample("z", lib.dist.Bernoulli(logits=lib.theta(np.array([0.3]))[0]))

    kwargs = {"batches": [(lib.array(x),) for x in rows], "data_size": 24}
    kwargs["estimators"] = {"z": vi.Score(vi.MovingAverage())}
    with pytest.raises(vi.NotFiniteError) as caught:
        lib.fit(model, guide, num_steps=9, optimizer=descent(lib, 0.01), **kwargs)
    fit = caught.value.fit
    states = []
    for more in (0, 1):
        forget(lib)
        kwargs["optimizer"] = descent(lib, 0.01)
        again = lib.fit(model, guide, num_steps=fit.num_steps + more, **kwargs)
        states.append({k: np.asarray(v) for k, v in again.state.items()})
    own = {k: np.asarray(v) for k, v in fit.state.items()}
    assert fit.num_steps == 3 and own and own.keys() == states[0].keys()
    assert all(np.array_equal(own[k], states[0][k]) for k in own)
    assert not all(np.array_equal(own[k], states[1][k]) for k in own)
