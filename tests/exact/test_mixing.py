"""Elements of a plate that see each other's values inside it: credited with all terms, never enumerated together."""

import numpy as np
import pytest
import scipy.special

import vi_kit as vi
from tests import oracles
from tests.libraries import LIBRARIES
from tests.unseen import WAYS

X, LOGITS = np.array([1.5, 0.2, -0.4]), np.array([0.4, -0.3, 0.1])

FUNCTIONS = {
    "roll": lambda xp, z: z + 0.8 * xp.roll(z, 1, -1),
    "centred": lambda xp, z: z - 0.9 * z.mean(-1, keepdims=True),
    "total": lambda xp, z: z + z.sum(-1)[..., None],
    "first": lambda xp, z: z + 2.0 * z[..., :1],
    "chain": lambda xp, z: z + xp.concatenate([xp.zeros_like(z[..., :1]), z[..., :-1]], -1),
    "matrix": lambda xp, z: z @ xp.asarray([[1.0, 0.5, 0.0], [0.2, 1.0, 0.0], [0.0, -0.3, 1.0]]),
    "maximum": lambda xp, z: z + xp.amax(z, -1)[..., None],
    "minimum": lambda xp, z: z + xp.amin(z, -1)[..., None],
    "order": lambda xp, z: xp.sort(z, -1)[0] if xp.__name__ == "torch" else xp.sort(z, -1),
    "reverse": lambda xp, z: z - (xp.flip(z, (-1,)) if xp.__name__ == "torch" else xp.flip(z, -1)),
}


def programs(lib, fn):
    def model():
        with lib.plate("data", 3):
            z = lib.sample("z", lib.dist.Bernoulli(lib.array(0.3)))
            loc = 2.0 * fn(lib.xp, lib.xp.asarray(z, dtype=lib.array(X).dtype))
            lib.sample("x", lib.dist.Normal(loc, 1.0), obs=lib.array(X))

    def guide():
        logits = lib.theta(LOGITS)
        with lib.plate("data", 3):
            lib.sample("z", lib.dist.Bernoulli(logits=logits))

    return model, guide


def log_weights(theta, fn):
    """Log densities of guide and model at every joint value."""
    log_q, log_p = [], []
    for z in np.ndindex(2, 2, 2):
        z = np.array(z, float)
        loc = fn(np, z)
        log_q.append(oracles.log_bernoulli(theta, z).sum())
        prior = oracles.log_bernoulli(np.log(0.3 / 0.7), z).sum()
        log_p.append(prior + oracles.log_normal(X, 2.0 * loc, 1.0).sum())
    return np.array(log_q), np.array(log_p)


def negative_elbo(theta, fn):
    log_q, log_p = log_weights(theta, fn)
    return (np.exp(log_q) * (log_q - log_p)).sum()


@pytest.mark.parametrize("name", FUNCTIONS)
def test_by_default(name, lib):
    fn = FUNCTIONS[name]
    loss = lib.Loss(num_samples=500)
    found = lib.estimates(loss, *programs(lib, fn), LOGITS, 12, oracles.seed_of(name))
    exact = [negative_elbo(LOGITS, fn), *oracles.gradient(lambda t: negative_elbo(t, fn), LOGITS)]
    oracles.check_unbiased(found, np.array(exact))


def negative_iwae(theta, fn, particles=2):
    log_q, log_p = log_weights(theta, fn)
    return -oracles.expected_log_mean_exp(log_q, log_p - log_q, particles)


def test_a_bound_over_particles_is_one_over_all_elements(lib):
    fn = FUNCTIONS["roll"]
    loss = lib.Loss(vi.iwae(num_particles=2), num_samples=200)
    found = lib.estimates(loss, *programs(lib, fn), LOGITS, 30, 1)
    exact = [negative_iwae(LOGITS, fn), *oracles.gradient(lambda t: negative_iwae(t, fn), LOGITS)]
    oracles.check_unbiased(found, np.real(exact))


def normal_programs(lib):
    """A model whose bound could be one for each element, were it not for the mean."""

    def model():
        with lib.plate("data", 3):
            z = lib.sample("z", lib.dist.Normal(lib.array(0.0), 1.0))
            loc = z - 0.9 * z.mean(-1, keepdims=True)
            lib.sample("x", lib.dist.Normal(loc, 1.0), obs=lib.array(X))

    def guide():
        with lib.plate("data", 3):
            lib.sample("z", lib.dist.Normal(lib.theta(LOGITS), 1.0))

    return model, guide


def test_reparameterised_elements(lib):
    """The bounds differ: that of everything is below the sum of what would be one for each element."""
    model, guide = normal_programs(lib)
    loss = lib.Loss(vi.iwae(num_particles=3))
    assert "each element of plates none: one over everything" in loss.explain(model, guide)
    assert "see each other's values" not in lib.Loss().explain(model, guide)


ESTIMATORS = {
    "score": vi.Score(vi.Constant()),
    "disarm": vi.DisARM(),
    "enumerate": vi.Enumerate(),
    "measure_valued": vi.MeasureValued(),
}


@pytest.mark.parametrize("name", ESTIMATORS)
def test_named_estimators(name, lib):
    fn = FUNCTIONS["centred"]
    loss = lib.Loss(estimators=ESTIMATORS[name], num_samples=200)
    model, guide = programs(lib, fn)
    if name != "score":
        with pytest.raises(vi.EstimatorError, match="elements of plate 'data' see each other"):
            lib.estimates(loss, model, guide, LOGITS, 1, 0)
        return
    exact = oracles.gradient(lambda t: negative_elbo(t, fn), LOGITS)
    oracles.check_unbiased(lib.gradients(loss, model, guide, LOGITS, 100, 2), exact)


def test_what_is_made_of_sites_that_are_drawn_given_several_elements(lib):
    """`x` has one element of `b`, and `b` is drawn given all of `a`."""
    scale, slope = 0.7, 1.2

    def model():
        with lib.plate("data", 2):
            a = lib.sample("a", lib.dist.Bernoulli(lib.array(0.3)))
            b = lib.sample("b", lib.dist.Normal(a * slope, 1.0))
            lib.sample("x", lib.dist.Normal(b * 2.0, 1.0), obs=lib.array(X[:2]))

    def guide():
        logits = lib.theta(LOGITS[:2])
        with lib.plate("data", 2):
            a = lib.sample("a", lib.dist.Bernoulli(logits=logits))
            a = lib.xp.asarray(a, dtype=lib.array(X).dtype)
            lib.sample("b", lib.dist.Normal(lib.xp.roll(a, 1, -1) * slope, scale))

    def loss(theta):
        total = 0.0
        for a in np.ndindex(2, 2):
            a = np.array(a)
            q = np.exp(oracles.log_bernoulli(theta, a).sum())
            loc = np.roll(a, 1) * slope
            entropy = np.log(scale) + 0.5 * np.log(2 * np.pi * np.e)
            cost = oracles.log_bernoulli(theta, a) - oracles.log_bernoulli(np.log(0.3 / 0.7), a)
            cost = cost - entropy + 0.5 * (np.log(2 * np.pi) + (loc - a * slope) ** 2 + scale**2)
            cost = cost + 0.5 * (np.log(2 * np.pi) + (X[:2] - 2 * loc) ** 2 + 4 * scale**2)
            total = total + q * cost.sum()
        return total

    found = lib.estimates(lib.Loss(num_samples=1000), model, guide, LOGITS[:2], 20, 3)
    exact = [loss(LOGITS[:2]), *oracles.gradient(loss, LOGITS[:2])]
    oracles.check_unbiased(found, np.array(exact))


def test_minibatches_keep_their_scale(lib):
    """Of the one minibatch that there is, twice as many data."""
    fn = FUNCTIONS["roll"]

    def model():
        with lib.plate("data", 6, subsample_size=3):
            z = lib.sample("z", lib.dist.Bernoulli(lib.array(0.3)))
            loc = 2.0 * fn(lib.xp, lib.xp.asarray(z, dtype=lib.array(X).dtype))
            lib.sample("x", lib.dist.Normal(loc, 1.0), obs=lib.array(X))

    def guide():
        logits = lib.theta(LOGITS)
        with lib.plate("data", 6, subsample_size=3):
            lib.sample("z", lib.dist.Bernoulli(logits=logits))

    exact = [negative_elbo(LOGITS, fn), *oracles.gradient(lambda t: negative_elbo(t, fn), LOGITS)]
    found = lib.estimates(lib.Loss(num_samples=500), model, guide, LOGITS, 12, 4)
    oracles.check_unbiased(found, 2.0 * np.array(exact))


def test_weights_that_start_at_zero(lib):
    """Mixing is found although nothing is mixed at first."""

    def model():
        weight = lib.theta(np.zeros(1), "weight")
        with lib.plate("data", 3):
            z = lib.sample("z", lib.dist.Bernoulli(lib.array(0.3)))
            loc = z + weight * z.sum(-1, keepdims=True)
            lib.sample("x", lib.dist.Normal(loc, 1.0), obs=lib.array(X))

    _, guide = programs(lib, None)
    if lib.name == "pyro":  # in NumPyro parameters that are not known are not where they start
        lib.Loss().loss(model, guide)
    assert "model site 'x': elements of plate 'data'" in lib.Loss().explain(model, guide)


def test_a_cost_that_is_the_same_at_both_ends_of_a_support(lib):
    def model():
        with lib.plate("data", 5):
            z = lib.sample("z", lib.dist.Categorical(lib.array(np.full(3, 1 / 3))))
            loc = lib.xp.asarray((z - 1) ** 2, dtype=lib.array(X).dtype).mean(-1, keepdims=True)
            lib.sample("x", lib.dist.Normal(loc, 1.0), obs=lib.array(np.zeros(5)))

    def guide():
        logits = lib.theta(np.zeros(15)).reshape(5, 3)
        with lib.plate("data", 5):
            lib.sample("z", lib.dist.Categorical(logits=logits))

    assert "model site 'x': elements of plate 'data'" in lib.Loss().explain(model, guide)


def apart_programs(lib, name):
    """Programs whose elements do not see each other."""
    xp, dist = lib.xp, lib.dist
    table = lib.array(np.arange(6.0).reshape(3, 2))

    def model():
        with lib.plate("data", 4):
            z = lib.sample("z", dist.Categorical(lib.array(np.full(3, 1 / 3))))
            if name == "embedding":
                loc = table[z]
            elif name == "one hot":
                hot = xp.asarray(z[..., None] == xp.arange(3), dtype=table.dtype)
                loc = xp.tanh(hot @ table) @ table.T[:, :2]
            elif name == "softmax":
                rows = table[z]
                shifted = xp.exp(rows - xp.amax(rows, -1)[..., None])
                loc = shifted / shifted.sum(-1)[..., None]
            elif name == "order":
                rows = xp.sort(table[z], -1)
                loc = rows[0] if lib.name == "pyro" else rows
            elif name == "layout":
                rows = xp.stack([z, 2 * z], -1) * 1.0
                loc = xp.concatenate([rows[..., :1], rows[..., 1:]], -1) + table[0]
            else:  # data are no values of sites
                data = lib.array(np.arange(4.0))
                loc = (z * (data - data.mean()) / data.std())[..., None] + table[0]
            lib.sample("x", dist.Normal(loc, 1.0).to_event(1), obs=lib.array(np.ones((4, 2))))

    def guide():
        logits = lib.theta(np.zeros(12)).reshape(4, 3)
        with lib.plate("data", 4):
            lib.sample("z", dist.Categorical(logits=logits))

    return model, guide


@pytest.mark.parametrize("name", ["embedding", "one hot", "softmax", "order", "layout", "data"])
def test_no_false_alarm(name, lib):
    text = lib.Loss().explain(*apart_programs(lib, name))
    assert "Enumerate" in text and "see each other" not in text


def relu(z):
    return z * (z > 0)


def as_float(xp, z):
    return xp.asarray(z, dtype=xp.float64)


def a_pattern(xp):
    return xp.asarray([1, 0, 1, 1, 0, 0])


SEEN = {  # family, elements, what the datum of an element sees
    "swapped": ("bernoulli", 3, lambda xp, z: z[..., [1, 0, 2]]),
    "one reads one": ("bernoulli", 8, lambda xp, z: z * z[..., [0, 1, 2, 6, 4, 5, 6, 7]]),
    "first": ("bernoulli", 4, lambda xp, z: z[..., [0, 1, 2, 0]]),
    "two of three": ("three", 3, lambda xp, z: (z == 1) & (xp.roll(z, 1, -1) == 2)),
    "one of four": ("four", 4, lambda xp, z: (z == 2).sum(-1)[..., None] + 0 * z),
    "two of four": ("four", 4, lambda xp, z: (z == 2) & (xp.roll(z, 1, -1) == 3)),
    "one only": ("bernoulli", 6, lambda xp, z: (z.sum(-1) == 1)[..., None] & (z < 2)),
    "all last": ("four", 3, lambda xp, z: (z == 3).all(-1)[..., None] & (z < 4)),
    "count": ("bernoulli", 7, lambda xp, z: (z.sum(-1) == 2)[..., None] & (z < 2)),
    "pattern": ("bernoulli", 6, lambda xp, z: (z == a_pattern(xp)).all(-1)[..., None] & (z < 2)),
    "pattern of others": (
        "bernoulli",
        5,
        lambda xp, z: (z == 1) & (xp.roll(z, 1, -1) == 0) & (xp.roll(z, 2, -1) == z),
    ),
    "pair of values": (
        "four",
        3,
        lambda xp, z: z + 3 * ((z[..., :1] == 2) & (z[..., 1:2] == 3)),
    ),
    "greater": ("normal", 4, lambda xp, z: z > xp.roll(z, 1, -1)),
    "above the mean": ("normal", 4, lambda xp, z: z > z.mean(-1)[..., None]),
    "largest": ("normal", 4, lambda xp, z: z == xp.amax(z, -1)[..., None]),
    "floor": ("normal", 4, lambda xp, z: z + xp.floor(z.mean(-1))[..., None]),
    "kink": ("normal", 4, lambda xp, z: z + 3.0 * relu(z.mean(-1) - 0.6)[..., None]),
    "far kink": ("normal", 4, lambda xp, z: relu(z - 1.5) * relu(xp.roll(z, 1, -1) - 1.5)),
}


def seen_programs(lib, name):
    family, size, fn = SEEN[name]
    values = {"bernoulli": 2, "three": 3, "four": 4}.get(family)
    data = lib.array(np.linspace(-1.0, 1.0, size))

    def model(data=data):
        with lib.plate("data", size):
            if values is None:
                z = lib.sample("z", lib.dist.Normal(lib.array(0.0), 1.0))
            else:
                probs = lib.array(np.full(values, 1 / values))
                z = lib.sample("z", lib.dist.Categorical(probs))
            loc = as_float(lib.xp, fn(lib.xp, z))
            lib.sample("x", lib.dist.Normal(loc, 1.0), obs=data)

    def guide(data=data):
        theta = lib.theta(np.zeros(size * (values or 1)))
        with lib.plate("data", size):
            if values is None:
                lib.sample("z", lib.dist.Normal(theta, 1.0))
            else:
                lib.sample("z", lib.dist.Categorical(logits=theta.reshape(size, values)))

    return model, guide


@pytest.mark.parametrize("name", SEEN)
def test_what_is_found(name, lib):
    loss = lib.Loss(estimators={"z": vi.Score()})
    told = loss.explain(*seen_programs(lib, name))
    assert "model site 'x': elements of plate 'data' see each other's values" in told


@pytest.mark.parametrize("name", ["swapped", "above the mean"])
def test_data_that_are_arguments_of_a_compiled_step(name):
    """What is not known is made up, and not anew for other values of the sites."""
    import jax

    lib = LIBRARIES["numpyro"]()
    model, guide = seen_programs(lib, name)
    texts = []

    def step(data):
        texts.append(lib.Loss(estimators={"z": vi.Score()}).explain(model, guide, data))
        return data

    jax.jit(step)(np.linspace(-1.0, 1.0, SEEN[name][1]))
    assert "see each other's values" in texts[0]


def test_a_program_that_refuses_other_values(lib):
    """What cannot be known counts as seen; that a program raises an error is known to change nothing else."""

    def strict(z):
        if z.min() != z.max():
            raise ValueError("values that are not the same")
        return z

    def model():
        with lib.plate("data", 3):
            z = lib.sample("z", lib.dist.Bernoulli(lib.array(0.5)))
            if lib.name == "numpyro":
                import jax

                loc = jax.pure_callback(strict, jax.ShapeDtypeStruct(z.shape, z.dtype), z)
            else:
                loc = strict(z)
            lib.sample("x", lib.dist.Normal(loc, 1.0), obs=lib.array(X))

    def guide():
        with lib.plate("data", 3):
            lib.sample("z", lib.dist.Bernoulli(logits=lib.array(np.full(3, 40.0))))

    told = lib.Loss(estimators=vi.Score()).explain(model, guide)
    seen = "model site 'x': elements of plate 'data' see each other's values" in told
    assert seen == (lib.name == "numpyro")


def test_what_cannot_be_looked_at_counts_as_seen(lib, monkeypatch):
    def fail(*args):
        raise RuntimeError("a program that cannot be followed")

    planner = {"pyro": "PyroPlanner", "numpyro": "NumPyroPlanner"}[lib.name]
    monkeypatch.setattr(f"vi_kit.{lib.name}.planning.{planner}.mixed", fail)
    told = lib.Loss(estimators=vi.Score()).explain(*programs(lib, lambda xp, z: z))
    assert "could not be found out whether elements of plates 'data' see each other's" in told
    assert "model site 'x': elements of plate 'data' see each other's values" in told


def test_elements_one_by_one(lib):
    def model():
        with lib.plate("data", 3):
            z = lib.sample("z", lib.dist.Bernoulli(lib.array(0.3)))
            loc = as_float(lib.xp, lib.xp.stack([z[..., i] for i in range(3)], -1))
            lib.sample("x", lib.dist.Normal(loc, 1.0), obs=lib.array(X))

    told = lib.Loss().explain(model, programs(lib, None)[1])
    assert "Enumerate" in told and "see each other" not in told


@pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)
def test_elements_that_leave_torch(way):
    lib = LIBRARIES["pyro"]()

    def others(xp, z):
        return z + 0.8 * lib.xp.as_tensor(np.roll(way(z.detach()), 1, -1))

    told = lib.Loss().explain(*programs(lib, others))
    assert "model site 'x': elements of plate 'data' see each other's values" in told


READ = {
    "list": lambda z: z + 3.0 * (z.tolist() == [1.0, 0.0, 1.0]),
    "numbers": lambda z: z + 3.0 * all(z[i].item() == (1, 0, 1)[i] for i in range(3)),
    "array": lambda z: z + 3.0 * bool((z.numpy() == np.array([1.0, 0.0, 1.0])).all()),
    "branch": lambda z: z + 3.0 if bool((z == z.new_tensor([1.0, 0.0, 1.0])).all()) else z,
}


@pytest.mark.parametrize("name", READ)
def test_a_pattern_of_elements_that_is_read(name):
    lib = LIBRARIES["pyro"]()

    def pattern(xp, z):
        return z + 3.0 * (list(z) == [1.0, 0.0, 1.0])

    def model():
        with lib.plate("data", 3):
            z = lib.sample("z", lib.dist.Bernoulli(lib.array(0.3)))
            lib.sample("x", lib.dist.Normal(2.0 * READ[name](z), 1.0), obs=lib.array(X))

    loss = lib.Loss(estimators={"z": vi.Score(vi.Constant(6.0))})
    found = lib.estimates(loss, model, programs(lib, None)[1], LOGITS, 2500, oracles.seed_of(name))
    exact = oracles.gradient(lambda t: negative_elbo(t, pattern), LOGITS)
    oracles.check_unbiased(found, np.array([negative_elbo(LOGITS, pattern), *exact]))


def test_data_that_are_read():
    """What a program is told of its arguments says nothing of elements, unless it takes these apart by it."""
    lib = LIBRARIES["pyro"]()

    def model(data, one_by_one):
        assert not lib.xp.isnan(data).any()
        with lib.plate("data", 3):
            z = lib.sample("z", lib.dist.Bernoulli(lib.array(0.3)))
            scale = float(data.max())
            if one_by_one:
                rows = [z[..., i] if float(data[i]) > 0 else z[..., i - 1] for i in range(3)]
                z = lib.xp.stack(rows, -1)
            lib.sample("x", lib.dist.Normal(z * scale, 1.0), obs=data)

    def guide(data, one_by_one):
        programs(lib, None)[1]()

    told = lib.Loss().explain(model, guide, lib.array(X), False)
    assert "Enumerate" in told and "see each other" not in told
    assert "see each other" in lib.Loss().explain(model, guide, lib.array(np.abs(X)), True)


OF_THE_STEP = {
    "rolled": lambda jnp, z, s: jnp.roll(z, s, -1),
    "in order": lambda jnp, z, s: z[..., (jnp.arange(3) + s) % 3],
    "one of two": lambda jnp, z, s: jnp.stack([z, jnp.roll(z, 1, -1)])[s],
}


@pytest.mark.parametrize("name", OF_THE_STEP)
def test_numbers_that_are_arguments_of_a_compiled_step(name):
    import jax
    import jax.numpy as jnp

    lib = LIBRARIES["numpyro"]()
    _, guide = programs(lib, None)

    def model(shift):
        with lib.plate("data", 3):
            z = lib.sample("z", lib.dist.Bernoulli(lib.array(0.3)))
            loc = as_float(jnp, OF_THE_STEP[name](jnp, z, shift))
            lib.sample("x", lib.dist.Normal(loc, 1.0), obs=lib.array(X))

    def step(shift):
        loss = lib.Loss(estimators={"z": vi.Score()})
        told.append(loss.explain(model, lambda shift: guide(), shift))
        return shift

    told = []
    jax.jit(step)(0)
    assert "model site 'x': elements of plate 'data' see each other's values" in told[0]


def test_a_coupling_that_a_parameter_switches_on(lib):
    """At first it is zero, and so is its gradient."""

    def model():
        weight = lib.theta(np.array([0.6]), "weight")
        with lib.plate("data", 3):
            z = as_float(lib.xp, lib.sample("z", lib.dist.Bernoulli(lib.array(0.3))))
            loc = z + relu(weight - 0.7) * lib.xp.roll(z, 1, -1)
            lib.sample("x", lib.dist.Normal(loc, 1.0), obs=lib.array(X))

    told = lib.Loss(estimators=vi.Score()).explain(model, programs(lib, None)[1])
    assert "model site 'x': elements of plate 'data' see each other's values" in told


def chain_programs(lib):
    """A chain in a sequential plate: an iteration sees the one before."""
    data = np.array([2.0, -2.0, 2.0])

    def model():
        before = lib.array(0.0)
        for i in lib.plate("data", 3):
            z = lib.sample(f"z{i}", lib.dist.Bernoulli(logits=6.0 * before - 3.0))
            lib.sample(f"x{i}", lib.dist.Normal(4.0 * z - 2.0, 1.0), obs=lib.array(data[i]))
            before = z

    def guide():
        logits = lib.theta(LOGITS)
        for i in lib.plate("data", 3):
            lib.sample(f"z{i}", lib.dist.Bernoulli(logits=logits[i]))

    def log_weights(theta):
        log_q, log_p = [], []
        for z in np.ndindex(2, 2, 2):
            z = np.array(z, float)
            before = np.array([0.0, *z[:-1]])
            log_q.append(oracles.log_bernoulli(theta, z))
            prior = oracles.log_bernoulli(6.0 * before - 3.0, z)
            log_p.append(prior + oracles.log_normal(data, 4.0 * z - 2.0, 1.0))
        return np.array(log_q), np.array(log_p)

    return model, guide, log_weights


def test_iterations_of_a_sequential_plate():
    """One bound over everything where an iteration sees another."""
    lib = LIBRARIES["pyro"]()
    model, guide, log_weights = chain_programs(lib)

    def bound(theta):
        log_q, log_p = (log_density.sum(-1) for log_density in log_weights(theta))
        return -oracles.expected_log_mean_exp(log_q, log_p - log_q, 2)

    found = lib.estimates(lib.Loss(vi.iwae(num_particles=2)), model, guide, LOGITS, 2, 0)
    exact = [bound(LOGITS), *oracles.gradient(bound, LOGITS)]
    np.testing.assert_allclose(found.mean(0), np.real(exact), rtol=1e-5)


@pytest.mark.parametrize("branch", ["sort", "parts"])
def test_a_branch_that_is_not_taken_at_the_start(branch):
    import jax.numpy as jnp
    from jax import lax

    lib = LIBRARIES["numpyro"]()
    branches = {"sort": jnp.sort, "parts": lambda z: jnp.concatenate([z[1:], z[:1]])}

    def model():
        weight = lib.theta(np.zeros(1), "weight")
        with lib.plate("data", 3):
            z = as_float(jnp, lib.sample("z", lib.dist.Bernoulli(lib.array(0.3))))
            loc = lax.cond(weight[0] > 0.5, branches[branch], lambda z: z, z)
            lib.sample("x", lib.dist.Normal(loc, 1.0), obs=lib.array(X))

    told = lib.Loss(estimators=vi.Score()).explain(model, programs(lib, None)[1])
    assert "model site 'x': elements of plate 'data' see each other's values" in told


def test_other_arguments_than_at_the_first_call(lib):
    """Whether elements see each other may be said by the arguments."""
    order = np.arange(3)

    def model(order):
        with lib.plate("data", 3):
            z = lib.sample("z", lib.dist.Bernoulli(lib.array(0.3)))
            loc = as_float(lib.xp, z)[..., order]
            lib.sample("x", lib.dist.Normal(loc, 1.0), obs=lib.array(X))

    def guide(order):
        programs(lib, None)[1]()

    loss = lib.Loss(estimators={"z": vi.Score()})
    # in Pyro plans are kept by the kinds of arguments, so an index among them may be any
    in_order = loss.explain(model, guide, lib.array(order))
    assert ("see each other" in in_order) == (lib.name == "pyro")
    assert "see each other" in loss.explain(model, guide, lib.array(order[::-1].copy()))


def log_odds(p):
    return np.log(p / (1 - p))


def test_a_site_outside_the_plate_that_is_drawn_given_its_elements(lib):
    """`u` is drawn given all of `z`, and each element of `z` has a term with `u` in the model."""
    weights = np.array([1.0, 2.0, -1.0])

    def model():
        u = lib.sample("u", lib.dist.Bernoulli(lib.array(0.2)))
        with lib.plate("data", 3):
            lib.sample("z", lib.dist.Bernoulli(logits=3.0 * u - 1.0))

    def guide():
        logits = lib.theta(LOGITS)
        with lib.plate("data", 3):
            z = lib.sample("z", lib.dist.Bernoulli(logits=logits))
        total = (as_float(lib.xp, z) * lib.array(weights)).sum(-1, keepdims=True)
        lib.sample("u", lib.dist.Bernoulli(logits=2.0 * total - 1.0))

    def loss(theta):
        total = 0.0
        for *z, u in np.ndindex(2, 2, 2, 2):
            z = np.array(z)
            log_q = oracles.log_bernoulli(theta, z).sum()
            log_q = log_q + oracles.log_bernoulli(2.0 * (weights * z).sum() - 1.0, u)
            log_p = oracles.log_bernoulli(log_odds(0.2), u)
            log_p = log_p + oracles.log_bernoulli(3.0 * u - 1.0, z).sum()
            total = total + np.exp(log_q) * (log_q - log_p)
        return total

    found = lib.estimates(lib.Loss(num_samples=1000), model, guide, LOGITS, 20, 5)
    oracles.check_unbiased(found, np.array([loss(LOGITS), *oracles.gradient(loss, LOGITS)]))


def test_a_jump_beside_an_enumerated_site(lib):
    """A term that jumps in one site, and has the values of another."""
    means, loc, scale = np.array([0.3, 0.5]), 1.2, 0.7

    def model():
        z = lib.sample("z", lib.dist.Normal(lib.array(0.0), 1.0))
        b = lib.sample("b", lib.dist.Bernoulli(lib.array(0.4)))
        sign = lib.xp.where(z > 0, lib.array(1.0), lib.array(-1.0))
        lib.sample("y", lib.dist.Normal(sign + b, 1.0), obs=lib.array(loc))

    def guide():
        theta = lib.theta(means)
        lib.sample("z", lib.dist.Normal(theta[0], scale))
        lib.sample("b", lib.dist.Bernoulli(logits=theta[1]))

    def loss(theta):
        above = scipy.special.ndtr(theta[0] / scale)
        total = 0.5 * (theta[0] ** 2 + scale**2 - 1.0) - np.log(scale)
        for b in (0, 1):
            q = np.exp(oracles.log_bernoulli(theta[1], b))
            fit = sum(
                p * oracles.log_normal(loc, sign + b, 1.0)
                for sign, p in ((1.0, above), (-1.0, 1.0 - above))
            )
            prior = oracles.log_bernoulli(log_odds(0.4), b)
            total = total + q * (oracles.log_bernoulli(theta[1], b) - prior - fit)
        return total

    found = lib.estimates(lib.Loss(num_samples=1000), model, guide, means, 20, 6)
    oracles.check_unbiased(found, np.array([loss(means), *oracles.gradient(loss, means)]))
    with pytest.raises(vi.EstimatorError, match="biased if a cost jumps"):
        lib.estimates(lib.Loss(estimators={"z": vi.Reparam()}), model, guide, means, 1, 0)
