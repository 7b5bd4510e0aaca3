"""Sites that only the model has, summed out: each model against a twin with the sum written by hand, draw by draw."""

import numpy as np
import pytest

import vi_kit as vi
from tests.oracles import gradient, seed_of

DATA = np.array([0.3, -1.2, 2.0])
START = np.array([0.4, -0.3, 0.2])
MARK = {"enumerate": "parallel"}

CHOICES = [
    (vi.elbo(), None),
    (vi.elbo(), vi.MeasureValued()),
    (vi.iwae(num_particles=3), None),
    (vi.iwae(num_particles=3), {"w": vi.DoublyReparam(), "b": vi.Score()}),
    (vi.log_variance(num_particles=3), vi.Score()),
]


def log_sum_exp(lib, x, dim):
    return lib.xp.logsumexp(x, dim) if lib.name == "pyro" else _jax_lse(x, dim)


def _jax_lse(x, dim):
    import jax

    return jax.nn.logsumexp(x, dim)


def stacked(lib, parts):
    """Along a new first dim, brought to one shape."""
    alike = lib.xp.broadcast_tensors if lib.name == "pyro" else lib.xp.broadcast_arrays
    return lib.xp.stack(list(alike(*parts)))


def normal(lib, x, loc, scale=1.0):
    return lib.dist.Normal(loc, scale).log_prob(x)


def guide_of(lib):
    """A Normal `w` and a Bernoulli `b`."""

    def guide():
        theta = lib.theta(START)
        lib.sample("w", lib.dist.Normal(theta[0], lib.xp.exp(theta[1])))
        lib.sample("b", lib.dist.Bernoulli(logits=theta[2]))

    return guide


def latents(lib):
    w = lib.sample("w", lib.dist.Normal(lib.array(0.0), 1.0))
    b = lib.sample("b", lib.dist.Bernoulli(lib.array(0.4)))
    return w, b


def local(lib, infer):
    """A component for each datum."""
    probs = lib.array(np.array([0.5, 0.2, 0.3]))

    def means(w, b):
        return lib.xp.stack([w - 1.0, w * w, w + b])

    def model():
        w, b = latents(lib)
        with lib.plate("n", 3):
            z = lib.sample("z", lib.dist.Categorical(probs), infer=infer)
            at = means(w, b)
            loc = at[0] * (z == 0) + at[1] * (z == 1) + at[2] * (z == 2)
            lib.sample("x", lib.dist.Normal(loc, 1.0), obs=lib.array(DATA))

    def twin():
        w, b = latents(lib)
        with lib.plate("n", 3):
            x = lib.array(DATA)
            parts = [lib.xp.log(probs)[k] + normal(lib, x, means(w, b)[k]) for k in range(3)]
            lib.factor("x", log_sum_exp(lib, stacked(lib, parts), 0))

    return model, twin


def global_over_plate(lib, infer):
    """One switch for all data, and a local one below it."""

    def model():
        w, b = latents(lib)
        g = lib.sample("z_g", lib.dist.Bernoulli(lib.array(0.3)), infer=infer)
        with lib.plate("n", 3):
            z = lib.sample("z", lib.dist.Bernoulli(0.2 + 0.5 * g), infer=infer)
            lib.sample("x", lib.dist.Normal(w * z + b * g, 1.0), obs=lib.array(DATA))

    def twin():
        w, b = latents(lib)
        x, total = lib.array(DATA), []
        for g, prior in ((0.0, 0.7), (1.0, 0.3)):
            one = 0.2 + 0.5 * g
            parts = [
                np.log(1 - one) + normal(lib, x, b * g),
                np.log(one) + normal(lib, x, w + b * g),
            ]
            inside = log_sum_exp(lib, stacked(lib, parts), 0)
            total.append(np.log(prior) + inside.sum(-1, keepdims=True))
        lib.factor("x", log_sum_exp(lib, stacked(lib, total), 0))

    return model, twin


def chain(lib, infer):
    """A hidden Markov chain of four steps, and a factor of the last."""
    jump = np.array([[0.7, 0.2, 0.1], [0.3, 0.3, 0.4], [0.1, 0.6, 0.3]])
    first = np.array([0.2, 0.5, 0.3])

    def model():
        w, b = latents(lib)
        z = None
        for t in range(4):
            probs = lib.array(first) if z is None else lib.array(jump)[z]
            z = lib.sample(f"z_{t}", lib.dist.Categorical(probs), infer=infer)
            at = w * (z == 1) + b * (z == 2)
            lib.sample(f"x_{t}", lib.dist.Normal(at, 1.0), obs=lib.array(float(t)))

    def twin():
        w, b = latents(lib)
        alpha = None
        for t in range(4):
            x = lib.array(float(t))
            emit = stacked(
                lib, [normal(lib, x, 0.0 * w), normal(lib, x, w), normal(lib, x, b + 0.0 * w)]
            )
            if alpha is None:
                alpha = _column(lib, np.log(first), emit) + emit
            else:
                steps = [
                    log_sum_exp(lib, alpha + _column(lib, np.log(jump[:, k]), emit), 0)
                    for k in range(3)
                ]
                alpha = stacked(lib, steps) + emit
        lib.factor("x", log_sum_exp(lib, alpha, 0))

    return model, twin


def _column(lib, values, like):
    """Numbers along the first dim, whatever stands behind it."""
    return lib.xp.reshape(lib.array(values), (len(values), *[1] * (like.ndim - 1)))


MODELS = {"local": local, "global": global_over_plate, "chain": chain}


@pytest.mark.parametrize(("objective", "estimators"), CHOICES)
@pytest.mark.parametrize("kind", list(MODELS))
def test_every_draw_is_that_of_the_sum_by_hand(kind, objective, estimators, lib):
    model, twin = MODELS[kind](lib, MARK)
    found = []
    for program in (model, twin):
        loss = lib.Loss(objective, estimators, max_plate_nesting=1)
        found.append(lib.estimates(loss, program, guide_of(lib), START, 2, seed_of(kind)))
    assert np.abs(found[1][:, 1:]).max() > 1e-2
    np.testing.assert_allclose(found[0], found[1], rtol=1e-6, atol=1e-6)


def test_named_sites_need_no_marks(lib):
    model, twin = chain(lib, {})
    found = [
        lib.estimates(loss, program, guide_of(lib), START, 1, 0)
        for loss, program in ((lib.Loss(marginalize=["z_*"]), model), (lib.Loss(), twin))
    ]
    np.testing.assert_allclose(found[0], found[1], rtol=1e-6)
    with pytest.raises(vi.ObjectiveError, match=r"marginalize=\['z_0', 'z_1', 'z_2', 'z_3'\]"):
        lib.value(lib.Loss(), model, guide_of(lib), 0)
    with pytest.raises(vi.ObjectiveError, match="matches no site that only the model has"):
        lib.value(lib.Loss(marginalize=["z_*", "w"]), model, guide_of(lib), 0)


def test_scale_of_the_whole_and_mask_of_the_data(lib):
    """The scale stands outside the logarithm, the mask on the data inside it."""
    seen = np.array([True, False, True])

    def model():
        w, _ = latents(lib)
        with lib.plate("n", 3), lib.handlers.scale(scale=0.5):
            with lib.handlers.mask(mask=lib.array(seen)):
                z = lib.sample("z", lib.dist.Bernoulli(lib.array(0.3)), infer=MARK)
                lib.sample("x", lib.dist.Normal(w * z, 1.0), obs=lib.array(DATA))

    def twin():
        w, _ = latents(lib)
        with lib.plate("n", 3):
            x = lib.array(DATA)
            parts = [np.log(0.7) + normal(lib, x, 0.0 * w), np.log(0.3) + normal(lib, x, w)]
            both = log_sum_exp(lib, stacked(lib, parts), 0)
            lib.factor("x", 0.5 * lib.xp.where(lib.array(seen), both, 0.0))

    found = [
        lib.estimates(lib.Loss(o), program, guide_of(lib), START, 2, 0)
        for o in (vi.elbo(), vi.iwae(num_particles=2))
        for program in (model, twin)
    ]
    np.testing.assert_allclose(found[0], found[1], rtol=1e-6)
    np.testing.assert_allclose(found[2], found[3], rtol=1e-6)


def test_minibatches(lib):
    """A local site is summed for each datum of the minibatch, and the sums are scaled."""

    def program(by_hand):
        def model():
            w, _ = latents(lib)
            with lib.plate("n", 12, subsample_size=3):
                x = lib.array(DATA)
                if by_hand:
                    parts = [np.log(0.7) + normal(lib, x, 0.0 * w), np.log(0.3) + normal(lib, x, w)]
                    lib.factor("x", log_sum_exp(lib, stacked(lib, parts), 0))
                else:
                    z = lib.sample("z", lib.dist.Bernoulli(lib.array(0.3)), infer=MARK)
                    lib.sample("x", lib.dist.Normal(w * z, 1.0), obs=x)

        return model

    found = [
        lib.estimates(lib.Loss(), program(by_hand), guide_of(lib), START, 2, 0)
        for by_hand in (False, True)
    ]
    np.testing.assert_allclose(found[0], found[1], rtol=1e-6)


def refused(lib, body):
    def model():
        w, _ = latents(lib)
        body(w)

    return model


def unequal_scales(lib):
    def body(w):
        z = lib.sample("z", lib.dist.Bernoulli(lib.array(0.3)), infer=MARK)
        with lib.handlers.scale(scale=2.0):
            lib.sample("x", lib.dist.Normal(w * z, 1.0), obs=lib.array(1.0))

    return body


def outside_a_minibatch(lib):
    def body(w):
        z = lib.sample("z", lib.dist.Bernoulli(lib.array(0.3)), infer=MARK)
        with lib.plate("n", 12, subsample_size=3):
            lib.sample("x", lib.dist.Normal(w * z, 1.0), obs=lib.array(DATA))

    return body


def outside_its_plate(lib):
    def body(w):
        with lib.plate("n", 3):
            z = lib.sample("z", lib.dist.Bernoulli(lib.array(0.3)), infer=MARK)
        lib.sample("x", lib.dist.Normal(w * z.sum(-1), 1.0), obs=lib.array(1.0))

    return body


def crossing_plates(lib):
    def body(w):
        rows, columns = lib.plate("rows", 2, dim=-2), lib.plate("columns", 3, dim=-1)
        with rows:
            a = lib.sample("z_a", lib.dist.Bernoulli(lib.array(0.3)), infer=MARK)
        with columns:
            b = lib.sample("z_b", lib.dist.Bernoulli(lib.array(0.3)), infer=MARK)
        with rows, columns:
            lib.sample("x", lib.dist.Normal(w * a * b, 1.0), obs=lib.array(np.ones((2, 3))))

    return body


def continuous(lib):
    def body(w):
        z = lib.sample("z", lib.dist.Normal(lib.array(0.0), 1.0), infer=MARK)
        lib.sample("x", lib.dist.Normal(w * z, 1.0), obs=lib.array(1.0))

    return body


def too_many(lib):
    def body(w):
        total = 0.0
        for i in range(17):
            total = total + lib.sample(f"z_{i}", lib.dist.Bernoulli(lib.array(0.3)), infer=MARK)
        lib.sample("x", lib.dist.Normal(w * total, 1.0), obs=lib.array(1.0))

    return body


@pytest.mark.parametrize(
    ("body", "text"),
    [
        (unequal_scales, "unequal scales"),
        (outside_a_minibatch, "outside a subsampled plate"),
        (outside_its_plate, "cannot be summed out of"),
        (crossing_plates, "their plates cross"),
        (continuous, "cannot be summed out, since the support is not finite"),
        (too_many, "131072 joint values"),
    ],
)
def test_refusals(body, text, lib):
    with pytest.raises(vi.ViKitError) as caught:
        lib.value(lib.Loss(), refused(lib, body(lib)), guide_of(lib), 0)
    assert text in str(caught.value), str(caught.value)


def test_explain_shows_what_is_summed_out(lib):
    model, _ = chain(lib, MARK)
    lines = lib.Loss().explain(model, guide_of(lib)).splitlines()
    row = next(line for line in lines if line.startswith("z_3"))
    assert "z_3 (model, summed)" in row
    assert "infer" in row
    assert "summed out" in row


def test_a_value_with_which_nothing_is_possible(lib):
    """The sum over `z` is zero for one value of `y`. It had no gradient, also for the other."""
    start, values = np.array([0.4]), np.array([0.0, -np.inf])

    def model():
        y = lib.sample("y", lib.dist.Bernoulli(lib.array(0.3)), infer=MARK)
        z = lib.sample("z", lib.dist.Bernoulli(lib.array(0.6)), infer=MARK)
        lib.factor(
            "y and z",
            lib.array(values)[y.astype(int) if lib.name == "numpyro" else y.long()] + 0.0 * z,
        )
        lib.sample("x", lib.dist.Normal(lib.theta(start)[0] * (1.0 + z), 1.0), obs=lib.array(0.7))

    order = lib.Loss(marginalize=["y", "z"])
    found = lib.estimates(order, model, lambda: None, start, 1, 0)[0]

    def evidence(theta):
        x = np.exp(-0.5 * (0.7 - theta[0] * np.array([1.0, 2.0])) ** 2) / np.sqrt(2 * np.pi)
        return -np.log(0.7 * (0.4 * x[0] + 0.6 * x[1]))

    np.testing.assert_allclose(found[0], evidence(start), rtol=1e-6)
    np.testing.assert_allclose(found[1:], gradient(evidence, start), rtol=1e-5)
