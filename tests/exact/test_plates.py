"""Plates and minibatches as people write them: which numbers belong together, by algebra."""

import warnings

import numpy as np
import pytest

import vi_kit as vi
from tests import oracles

GRID = np.array([[0.3, -0.2, 0.5], [0.1, 0.4, -0.6], [0.7, 0.2, -0.1]])


def point_guide(lib, values, dims):
    """A Delta per element of two plates."""

    def guide():
        theta = lib.theta(values.reshape(-1))
        with lib.plate("rows", values.shape[0], dim=dims[0]):
            with lib.plate("columns", values.shape[1], dim=dims[1]):
                lib.sample("z", lib.dist.Delta(theta.reshape(values.shape)))

    return guide


@vi.objective
def value_of(model, guide, *, fn):
    return vi.evaluate(fn, vi.simulate(guide))


@pytest.mark.parametrize(
    ("fn", "exact"),
    [
        (lambda v: v["z"].sum(-2), GRID.sum()),
        (lambda v: v["z"].sum(-2)[None], GRID.sum()),
        (lambda v: v["z"].sum(), GRID.sum()),
        (lambda v: v["z"][0] ** 2, (GRID[0] ** 2).sum()),
        (lambda v: v["z"], GRID.sum()),
    ],
)
def test_functions_of_a_draw_that_sum_over_plates(fn, exact, lib):
    guide = point_guide(lib, GRID, (-2, -1))
    loss = lib.Loss(value_of(fn=fn))
    values = {"theta": lib.array(GRID.reshape(-1))}
    if lib.name == "numpyro":
        import jax

        got = float(loss.loss(jax.random.key(0), values, guide, guide))
    else:
        got = lib.value(loss, guide, guide, 0)
    assert got == pytest.approx(-exact)


@pytest.mark.parametrize("dim", [-1, -2])
def test_a_plate_that_leaves_no_dim(dim, lib):
    """Rows and columns are as many, so that each coin is worth the sum over all of them: of each draw the gradient
    is that sum times the score."""

    def program():
        logits = lib.theta(GRID.reshape(-1)).reshape(3, 3)
        with lib.plate("rows", 3, dim=-2), lib.plate("columns", 3, dim=-1):
            lib.sample("z", lib.dist.Bernoulli(logits=logits))

    objective = value_of(fn=lambda v: v["z"].sum(dim) ** 2)
    loss = lib.Loss(objective, vi.Score(vi.Constant(0.0)))
    probs = 1 / (1 + np.exp(-GRID.reshape(-1)))
    for row in lib.gradients(loss, program, program, GRID.reshape(-1), 20, 0):
        drawn = row < 0  # the score of a one is positive
        worth = -row / (drawn - probs)
        np.testing.assert_allclose(worth, worth[0])
        assert worth[0] == pytest.approx((drawn.reshape(3, 3).sum(dim) ** 2).sum())


X = np.array([0.4, -0.3, 1.1])


@vi.objective
def of_the_model(model, guide, *, fn):
    return fn(vi.log_density(model, vi.simulate(guide)))


@pytest.mark.parametrize("outside", [False, True])
@pytest.mark.parametrize(
    ("fn", "number"),
    [
        (lambda c: c**2, lambda x: x**2),
        (abs, abs),
        (lambda c: c * c, lambda x: x**2),
        (lambda c: vi.apply(lambda x: x**2, c, plates=[]), lambda x: x**2),
    ],
)
def test_operators_act_on_the_whole_number(fn, number, outside, lib):
    """A factor of zero outside the plate changes nothing."""

    def model():
        if outside:
            lib.factor("nothing", lib.array(0.0))
        with lib.plate("data", 3):
            lib.sample("x", lib.dist.Normal(lib.array(0.0), 1.0), obs=lib.array(X))

    got = lib.value(lib.Loss(of_the_model(fn=fn)), model, lambda: None, 0)
    assert got == pytest.approx(-number(oracles.log_normal(X, 0.0, 1.0).sum()))


def test_two_sites_of_one_name(lib):
    def program():
        for _ in range(2):
            lib.sample("z", lib.dist.Normal(lib.array(0.0), 1.0))

    loss = lib.Loss(max_plate_nesting=0)
    with pytest.raises(vi.ObjectiveError, match="guide site 'z': two sample statements have"):
        lib.value(loss, program, program, 0)


@pytest.mark.parametrize(
    ("infer", "text"),
    [
        ({"baseline": {"use_decaying_avg_baseline": True}}, "'baseline': ...} has no effect"),
        ({"enumerate": "parallel", "num_samples": 10}, "'num_samples': ...} has no effect"),
    ],
)
def test_annotations_that_mean_nothing_here(infer, text, lib):
    def program():
        lib.sample("z", lib.dist.Bernoulli(lib.array(0.5)), infer=infer)

    loss = lib.Loss()
    with pytest.warns(UserWarning) as caught:
        lib.value(loss, program, program, 0)
    assert len([w for w in caught if text in str(w.message)]) == 1
    if lib.name == "pyro":
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            lib.value(loss, program, program, 0)


def mixture_guide(lib, exact):
    """A Normal given a coin, or a Delta at a Normal that is shifted."""

    def guide():
        infer = {"is_auxiliary": True}
        if exact:
            noise = lib.sample("b", lib.dist.Normal(lib.array(0.0), 1.0), infer=infer)
            lib.sample("z", lib.dist.Delta(noise + 0.5))
        else:
            b = lib.sample("b", lib.dist.Bernoulli(lib.array(0.5)), infer=infer)
            lib.sample("z", lib.dist.Normal(4.0 * b - 2.0, 1.0))

    return guide


def test_a_draw_that_is_random_given_an_auxiliary_one(lib):
    """Counted with its joint density, the bound would lie above the evidence."""

    def model():
        lib.sample("z", lib.dist.Normal(lib.array(0.0), 1.0))

    text = "guide site 'b': the model's sites are random given this auxiliary one"
    for objective in (vi.elbo(), vi.iwae(num_particles=2)):
        with pytest.raises(vi.ObjectiveError, match=text):
            lib.value(lib.Loss(objective), model, mixture_guide(lib, exact=False), 0)
    assert np.isfinite(lib.value(lib.Loss(), model, mixture_guide(lib, exact=True), 0))


def test_an_auxiliary_draw_that_the_model_guesses(lib):
    def model():
        z = lib.sample("z", lib.dist.Normal(lib.array(0.0), 1.0))
        lib.sample("b", lib.dist.Bernoulli(logits=4.0 * z))

    assert np.isfinite(lib.value(lib.Loss(), model, mixture_guide(lib, exact=False), 0))


def test_elements_that_see_each_other_are_an_event(lib):
    """What to write where one datum's density has another's value: a plate would say that they are independent."""
    x, logits = np.array([1.5, 0.2, -0.4]), np.array([0.4, -0.3, 0.1])

    def model():
        z = lib.sample("z", lib.dist.Bernoulli(lib.array(np.full(3, 0.3))).to_event(1))
        with lib.plate("data", 3):
            loc = 2.0 * (z + 0.8 * lib.xp.roll(z, 1))
            lib.sample("x", lib.dist.Normal(loc, 1.0), obs=lib.array(x))

    def guide():
        lib.sample("z", lib.dist.Bernoulli(logits=lib.theta(logits)).to_event(1))

    def loss(theta):
        total = 0.0
        for z in np.ndindex(2, 2, 2):
            z = np.array(z)
            log_q = oracles.log_bernoulli(theta, z).sum()
            log_p = oracles.log_bernoulli(np.log(0.3 / 0.7), z).sum()
            log_p = log_p + oracles.log_normal(x, 2.0 * (z + 0.8 * np.roll(z, 1)), 1.0).sum()
            total = total + np.exp(log_q) * (log_q - log_p)
        return total

    found = lib.estimates(lib.Loss(), model, guide, logits, 1, 0)[0]
    np.testing.assert_allclose(found, [loss(logits), *oracles.gradient(loss, logits)], rtol=1e-8)


@pytest.mark.parametrize("kind", [float, int, np.float64, np.asarray])
def test_a_function_of_a_draw_that_returns_a_number(lib, kind):
    """Mutant: the library has no dims of it."""

    def guide():
        lib.sample("z", lib.dist.Normal(lib.theta(np.zeros(1))[0], 1.0))

    loss = lib.Loss(value_of(fn=lambda values: kind(3.0)))
    found = lib.gradients(loss, guide, guide, np.zeros(1), 2, 0)
    assert (found == 0.0).all()
    assert lib.estimates(loss, guide, guide, np.zeros(1), 2, 0)[:, 0] == pytest.approx(-3.0)


@pytest.mark.parametrize("value", [None, [1.0], {}, "3"])
def test_a_function_of_a_draw_that_returns_no_array(lib, value):
    def guide():
        lib.sample("z", lib.dist.Normal(lib.theta(np.zeros(1))[0], 1.0))

    def worth(values):
        return value

    loss = lib.Loss(value_of(fn=worth))
    with pytest.raises(
        vi.ObjectiveError, match=r"(?s)function 'worth' has returned no array.*fix:"
    ):
        lib.gradients(loss, guide, guide, np.zeros(1), 1, 0)
