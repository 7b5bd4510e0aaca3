"""A cost that jumps where a parameter says has a gradient that no estimator has: it is refused, and nothing else is."""

from __future__ import annotations

import pytest

import vi_kit as vi
from tests.libraries import NumPyroWords

VALUES = [0.2]


def where(lib, *args):
    return lib.xp.where(*args)


def programs(lib, location, start=0.3):
    def model():
        b = lib.theta([start], "b")[0]
        z = lib.sample("z", lib.dist.Normal(0.0, 1.0))
        lib.sample("x", lib.dist.Normal(location(lib, z, b), 1.0), obs=lib.array(0.7))

    def guide():
        lib.sample("z", lib.dist.Normal(lib.theta(VALUES, "a")[0], 0.8))

    return model, guide


def by_branch(lib, z, b):
    if lib.name == "pyro":
        return lib.array(2.0) if z > b else lib.array(-1.0)
    import jax

    return jax.lax.cond(z > b, lambda: 2.0, lambda: -1.0)


def as_int(lib, z):
    return z.long() if lib.name == "pyro" else z.astype(int)


def table(lib, z, b):
    return lib.array([0.5, 1.5, -0.5])[as_int(lib, lib.xp.clip(z * (1.0 + b), 0.0, 2.5))]


def ordinal(lib, z, b):
    """Of cutpoints of which the first is fixed, the probability of the class between the first two."""
    cutpoints = lib.xp.stack([0.0 * b, b + 0.5, b + 1.4])
    logits = lib.xp.eye(4)[lib.xp.searchsorted(cutpoints, z)]
    return logits[1]


MOVING = {
    "where": lambda lib, z, b: where(lib, z > b, 2.0, -1.0),
    "sign": lambda lib, z, b: lib.xp.sign(z - b),
    "branch": by_branch,
    "round": lambda lib, z, b: lib.xp.round(z * (1.0 + b)),
    "table": table,
    "window": lambda lib, z, b: where(lib, abs(z - 0.6 - b) < 0.1, 3.0, 0.0),
    "pole": lambda lib, z, b: lib.xp.arctan(1.0 / (z - b)),
    "elements": lambda lib, z, b: where(lib, z > lib.xp.stack([b, b - 9.0]), 2.0, -1.0).sum(),
    "square": lambda lib, z, b: where(lib, z**2 > b, 2.0, -1.0),
    "exponential": lambda lib, z, b: where(lib, lib.xp.exp(z) > 3.0 * b, 2.0, -1.0),
    "probability": lambda lib, z, b: where(lib, 1.0 / (1.0 + lib.xp.exp(-z)) > b, 2.0, -1.0),
    "fixed and moving": lambda lib, z, b: 1.0 * (z > lib.xp.stack([0.0 * b, b])).sum(),
    "argmax": lambda lib, z, b: 1.0 * lib.xp.argmax(lib.xp.stack([z, b, 0.0 * b])),
    "larger of two": lambda lib, z, b: where(lib, z > lib.xp.where(b > 0, b, 0.0 * b), 2.0, -1.0),
    "ordinal": ordinal,
    "behind": lambda lib, z, b: lib.xp.exp(-lib.xp.floor(lib.xp.tanh(z) / lib.xp.exp(b) * 3.0)),
}
TEXT = r"site 'z': a cost jumps in the value of 'z' at a place that a parameter moves; no estimator"
GOT = (
    r"\n  got:      model site 'x', because of [\w ]+ \(test_moving_jumps.py:\d+\), at a place that"
)


@pytest.mark.parametrize("case", MOVING)
def test_the_default_is_refused(case, lib):
    with pytest.raises(vi.EstimatorError, match=rf"{TEXT}.*{GOT} parameter 'b' moves") as caught:
        lib.Loss().explain(*programs(lib, MOVING[case]))
    assert str(caught.value).count("\n") == 3


@pytest.mark.parametrize("chosen", [vi.Score(), vi.MeasureValued(), vi.Reparam()], ids=repr)
def test_no_estimator_serves(chosen, lib):
    with pytest.raises(vi.EstimatorError, match=TEXT):
        lib.Loss(estimators=chosen).explain(*programs(lib, MOVING["where"]))


@pytest.mark.parametrize("case", ["square", "exponential", "probability", "ordinal"])
def test_inside_a_jitted_step(case):
    """Whatever is not known there."""
    import jax

    lib = NumPyroWords()
    model, guide = programs(lib, MOVING[case])
    loss, params = lib.Loss(), {"a": jax.numpy.array(VALUES), "b": jax.numpy.array([0.3])}
    with pytest.raises(vi.EstimatorError, match=TEXT):
        jax.jit(lambda p: loss.loss(jax.random.key(0), p, model, guide))(params)


@pytest.mark.parametrize("estimator", [vi.Reparam(), vi.Enumerate(), vi.Score()], ids=repr)
def test_a_threshold_that_another_site_chooses(estimator, lib):
    """Only at one of the values of that a parameter moves the jump."""

    def model():
        b = lib.theta([0.3], "b")[0]
        k = lib.sample("k", lib.dist.Bernoulli(0.4))
        z = lib.sample("z", lib.dist.Normal(0.0, 1.0))
        x = where(lib, z > where(lib, k == 1, b, 0.0 * b), 1.5, -0.5)
        lib.sample("x", lib.dist.Normal(x, 1.0), obs=lib.array(0.7))

    def guide():
        lib.sample("k", lib.dist.Bernoulli(logits=lib.theta([0.2], "q")[0]))
        lib.sample("z", lib.dist.Normal(lib.theta(VALUES, "a")[0], 0.8))

    chosen = {} if estimator == vi.Reparam() else {"k": estimator}
    with pytest.raises(vi.EstimatorError, match=TEXT):
        lib.Loss(estimators=chosen).explain(model, guide)


def test_arguments_that_are_not_known_yet():
    """Of a jitted step, at a threshold among its arguments: what is refused in an eager one is refused."""
    import jax
    import optax
    from numpyro.infer import SVI

    lib = NumPyroWords()
    steps = {
        "square": lambda z, t: z**2 > t,
        "exponential": lambda z, t: lib.xp.exp(z) > t,
        "probability": lambda z, t: 1.0 / (1.0 + lib.xp.exp(-z)) > t,
    }
    for step in steps.values():

        def model(t, step=step):
            z = lib.sample("z", lib.dist.Normal(0.0, 1.0))
            location = where(lib, step(z, t), 2.0, -1.0)
            lib.sample("x", lib.dist.Normal(location, 1.0), obs=lib.array(0.7))

        def guide(t):
            lib.sample("z", lib.dist.Normal(lib.theta(VALUES, "a")[0], 0.8))

        svi = SVI(model, guide, optax.sgd(0.1), lib.Loss(vi.elbo(), vi.Reparam()))
        state = svi.init(jax.random.key(0), 0.5)
        with pytest.raises(vi.EstimatorError, match=r"Reparam\(\) is biased if a cost jumps"):
            jax.jit(svi.update)(state, 0.5)


def test_a_check_does_not_pass(lib):
    with pytest.raises(vi.EstimatorError, match=TEXT):
        vi.check_unbiased(lib.Loss(), *programs(lib, MOVING["where"]), num_draws=2)


def held(lib, z, b):
    return where(lib, z > lib.detach(b), 2.0 * b, -1.0)


def safe_log(lib, z, b):
    inside = z > b
    return where(lib, inside, lib.xp.log(where(lib, inside, 1.0 + z - b, 1.0 + 0.0 * z)), 0.0 * z)


def huber(lib, z, b):
    r, d = abs(z), lib.xp.exp(b)
    return where(lib, r < d, r**2 / 2.0, d * (r - d / 2.0))


FINE = {
    "relu": lambda lib, z, b: where(lib, z > b, z - b, 0.0 * z),
    "abs": lambda lib, z, b: abs(z - b) + lib.xp.sign(z - b) * (z - b),
    "clip": lambda lib, z, b: lib.xp.clip(z, b, b + 1.0),
    "huber": huber,
    "safe_log": safe_log,
    "held": held,
    "levels": lambda lib, z, b: where(lib, z > 0.4, b, -b),
    "both": lambda lib, z, b: where(lib, z > 0.4, where(lib, b > 0.2, b, 0.0 * b), -b),
    "scaled": lambda lib, z, b: where(lib, z * lib.xp.exp(b) > 0.0, 2.0, -1.0),
    "side_by_side": lambda lib, z, b: (lib.xp.sign(lib.xp.stack([z, b]))).sum(),
    "after": lambda lib, z, b: lib.xp.floor(where(lib, z > 0.4, 2.5, 0.5) + 0.1 * lib.xp.tanh(b)),
    "sigmoid": lambda lib, z, b: 1.0 / (1.0 + lib.xp.exp(-(z - b) / 0.1)),
}


@pytest.mark.parametrize("case", FINE)
def test_others_are_served(case, lib):
    for chosen in (None, vi.Score()):
        told = lib.Loss(estimators=chosen).explain(*programs(lib, FINE[case]))
        assert "Normal" in told and "assumed" not in told


def test_a_threshold_of_the_guide(lib):
    """In the distribution of a site that is drawn given another."""

    def model():
        z = lib.sample("z", lib.dist.Normal(0.0, 1.0))
        y = lib.sample("y", lib.dist.Bernoulli(lib.array(0.5)))
        lib.sample("x", lib.dist.Normal(z + 2.0 * y, 1.0), obs=lib.array(0.7))

    def guide():
        z = lib.sample("z", lib.dist.Normal(lib.theta(VALUES, "a")[0], 0.8))
        high = where(lib, z > lib.theta([0.1], "t")[0], 1.5, -1.0)
        lib.sample("y", lib.dist.Bernoulli(logits=high))

    with pytest.raises(vi.EstimatorError, match="parameter 't' moves"):
        lib.Loss().explain(model, guide)


def test_a_factor(lib):
    def model():
        b = lib.theta([0.3], "b")[0]
        z = lib.sample("z", lib.dist.Normal(0.0, 1.0))
        lib.factor("f", where(lib, z > b, 1.0, 0.0))

    with pytest.raises(vi.EstimatorError, match=r"because of gt .* parameter 'b' moves"):
        lib.Loss().explain(model, programs(lib, None)[1])


@pytest.mark.parametrize("objective", [vi.iwae(2), vi.log_variance(2)], ids=repr)
def test_objectives(objective, lib):
    """Also where draws are held."""
    model, guide = programs(lib, MOVING["where"])
    with pytest.raises(vi.EstimatorError, match="parameter 'b' moves"):
        lib.Loss(objective).explain(model, guide)


def moved_normal(lib):
    base, module = lib.dist.Normal(0.0, 1.0), lib.dist.transforms
    theta = lib.theta(VALUES, "a")
    return lib.dist.TransformedDistribution(base, [module.AffineTransform(theta[0], 1.2)])


@pytest.mark.parametrize("chosen", [None, vi.Score()], ids=repr)
def test_parameters_by_way_of_a_draw(chosen, lib):
    """The place does not move with them, the value does."""

    def model():
        z = lib.sample("z", lib.dist.Normal(0.0, 1.0))
        y = lib.sample("y", lib.dist.Normal(z, 1.0))
        jump = where(lib, z > 0.2, 1.0, 0.0) + where(lib, z > y, 1.0, 0.0)
        lib.sample("x", lib.dist.Normal(jump, 1.0), obs=lib.array(1.0))

    def guide():
        z = lib.sample("z", moved_normal(lib))
        lib.sample("y", lib.dist.Normal(lib.theta(VALUES, "c")[0] * z, 1.0))

    assert "a cost jumps" in lib.Loss().explain(model, guide)
    lib.Loss(estimators=chosen).explain(model, guide)


def test_a_bias_that_is_meant(lib):
    model, guide = programs(lib, MOVING["where"])
    assert "biased=True" in lib.Loss(estimators=vi.Reparam(biased=True)).explain(model, guide)


def without_support(lib):
    """A Normal of one's own, which does not say its support."""
    if lib.name == "numpyro":

        class Own(lib.dist.Distribution):
            def __init__(self, loc):
                self.loc = loc
                super().__init__((), validate_args=False)

            def sample(self, *args):
                return lib.dist.Normal(self.loc, 1.0).sample(*args)

            def log_prob(self, value):
                return -((value - self.loc) ** 2) / 2.0

        return Own

    class OwnOfPyro(lib.dist.TorchDistribution):
        arg_constraints = {}  # noqa: RUF012

        def __init__(self, loc):
            self.loc = loc
            super().__init__(loc.shape, validate_args=False)

        def sample(self, *args):
            return lib.dist.Normal(self.loc, 1.0).sample(*args)

        def log_prob(self, value):
            return -((value - self.loc) ** 2) / 2.0

        def expand(self, batch_shape, _instance=None):
            return OwnOfPyro(self.loc.expand(batch_shape))

    return OwnOfPyro


def test_a_distribution_that_does_not_say_its_support(lib):
    """What cannot be moved is assumed to be right."""
    own = without_support(lib)

    def guide():
        lib.sample("z", own(lib.theta(VALUES, "a")[0]))

    model, _ = programs(lib, lambda lib, z, b: where(lib, z > 0.0, b, -b))
    assert "Score(" in lib.Loss(estimators=vi.Score()).explain(model, guide)


def test_while_the_step_is_traced():
    import jax

    lib = NumPyroWords()
    model, guide = programs(lib, MOVING["where"])

    def value(params):
        return lib.Loss().loss(jax.random.key(0), params, model, guide)

    params = {"a": lib.array(VALUES), "b": lib.array([0.3])}
    with pytest.raises(vi.EstimatorError, match="parameter 'b' moves"):
        jax.jit(jax.grad(value))(params)
    with pytest.raises(vi.EstimatorError, match="parameter 'b' moves"):
        jax.grad(value)(params)
