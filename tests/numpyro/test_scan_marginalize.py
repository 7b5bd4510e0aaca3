"""Finite sites in the body of `scan` that only the model has: each model against a forward algorithm written by hand,
draw by draw."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from jax.nn import logsumexp
from numpyro import handlers
from numpyro.contrib.control_flow import cond, scan

import vi_kit as vi
from vi_kit.numpyro import Loss

MARK = {"enumerate": "parallel"}
JUMP = np.array([[0.7, 0.2, 0.1], [0.2, 0.5, 0.3], [0.3, 0.3, 0.4]])
SWITCH = np.array([[0.6, 0.4], [0.1, 0.9]])
X = np.random.default_rng(0).normal(size=(4, 2))
LENGTHS = np.array([4, 2])
TINY = 1e-300
PARAMS = {"loc": jnp.asarray(0.3), "logit": jnp.asarray(0.1)}


def guide():
    loc, logit = numpyro.param("loc", 0.3), numpyro.param("logit", 0.1)
    numpyro.sample("w", dist.Normal(loc, 1.0))
    numpyro.sample("b", dist.Bernoulli(logits=logit))


def latents():
    w = numpyro.sample("w", dist.Normal(0.0, 1.0))
    return w, numpyro.sample("b", dist.Bernoulli(0.4))


def normal(x, loc, scale=1.0):
    return dist.Normal(loc, scale).log_prob(x)


def lengths_and_last():
    """A chain per element of a plate, of unequal lengths, and a factor of the last states."""

    def model():
        w, b = latents()

        def step(carry, x):
            z, t = carry
            with numpyro.plate("n", 2), handlers.mask(mask=t < LENGTHS):
                z = numpyro.sample("z", dist.Categorical(jnp.asarray(JUMP)[z]), infer=MARK)
                numpyro.sample("x", dist.Normal(w * z + b, 1.0), obs=x)
            return (z, t + 1), None

        (z, t), _ = scan(step, (jnp.zeros(2, int), 0), jnp.asarray(X))
        with numpyro.plate("n", 2):
            numpyro.sample("last", dist.Normal(w * z * t, 2.0), obs=jnp.asarray(X[0]))

    def twin():
        w, b = latents()
        states = jnp.arange(3.0)[:, None]

        def step(alpha, now):
            x, t = now
            alpha = logsumexp(alpha[:, None] + np.log(JUMP)[:, :, None], 0)
            return alpha + jnp.where(t < LENGTHS, normal(x, w * states + b), 0.0), None

        start = jnp.log(jnp.array([[1.0, 1.0], [TINY, TINY], [TINY, TINY]]))
        alpha, _ = jax.lax.scan(step, start, (X, jnp.arange(len(X))))
        alpha = alpha + normal(X[0], len(X) * w * states, 2.0)
        with numpyro.plate("n", 2):
            numpyro.factor("all", logsumexp(alpha, 0))

    return model, twin


def two_chains():
    """Two chains, the first from a site before the scan; a switch for each datum, and a statement without them."""

    def model():
        w, b = latents()
        first = numpyro.sample("first", dist.Bernoulli(0.3), infer=MARK)

        def step(carry, x):
            u, v = carry
            u = numpyro.sample("u", dist.Categorical(jnp.asarray(JUMP)[u]), infer=MARK)
            v = numpyro.sample("v", dist.Categorical(jnp.asarray(SWITCH)[v]), infer=MARK)
            with numpyro.plate("n", 2):
                m = numpyro.sample("m", dist.Bernoulli(0.2 + 0.2 * u), infer=MARK)
                numpyro.sample("x", dist.Normal(w * u + b * v - m, 1.0), obs=x)
            numpyro.sample("y", dist.Normal(w, 1.0), obs=x[0])
            return (u, v), None

        (u, v), _ = scan(step, (first, 0), jnp.asarray(X))
        numpyro.sample("last", dist.Normal(w * u - v, 2.0), obs=1.0)

    def twin():
        w, b = latents()
        u, v = jnp.arange(3.0)[:, None, None], jnp.arange(2.0)[:, None]
        both = np.log(JUMP)[:, None, :, None] + np.log(SWITCH)[:, None, :]
        off, on = jnp.log(0.8 - 0.2 * u), jnp.log(0.2 + 0.2 * u)

        def step(alpha, x):
            alpha = logsumexp(alpha[:, :, None, None] + both, (0, 1))
            loc = w * u + b * v
            data = jnp.logaddexp(off + normal(x, loc), on + normal(x, loc - 1))
            return alpha + data.sum(-1), None

        start = jnp.log(jnp.outer(jnp.array([0.7, 0.3, TINY]), jnp.array([1.0, TINY])))
        alpha, _ = jax.lax.scan(step, start, X)
        last = normal(1.0, w * u - v, 2.0)[..., 0]
        numpyro.factor("all", logsumexp(alpha + last) + normal(X[:, 0], w).sum())

    return model, twin


def local_in_a_minibatch():
    def program(by_hand):
        def model():
            w, b = latents()

            def step(carry, x):
                with numpyro.plate("n", 6, subsample_size=2):
                    if by_hand:
                        off = jnp.log(0.7) + normal(x, b)
                        numpyro.factor("x", jnp.logaddexp(off, jnp.log(0.3) + normal(x, w + b)))
                    else:
                        m = numpyro.sample("m", dist.Bernoulli(0.3), infer=MARK)
                        numpyro.sample("x", dist.Normal(w * m + b, 1.0), obs=x)
                return carry, carry

            scan(step, 0, jnp.asarray(X))

        return model

    return program(False), program(True)


def scaled_masked_and_reversed():
    seen = np.array([True, False, True, True])

    def model():
        w, b = latents()

        def step(z, x):
            z = numpyro.sample("z", dist.Categorical(jnp.asarray(JUMP)[z]), infer=MARK)
            numpyro.sample("x", dist.Normal(w * z + b, 1.0), obs=x)
            return z, None

        with handlers.scale(scale=0.5), handlers.mask(mask=seen):
            scan(step, 0, jnp.asarray(X[:, 0]), reverse=True)

    def twin():
        w, b = latents()

        def step(alpha, now):
            x, kept = now
            alpha = logsumexp(alpha[:, None] + np.log(JUMP), 0)
            return alpha + kept * normal(x, w * jnp.arange(3.0) + b), None

        start = jnp.log(jnp.array([1.0, TINY, TINY]))
        alpha, _ = jax.lax.scan(step, start, (X[::-1, 0], seen[::-1]))
        with handlers.scale(scale=0.5):
            numpyro.factor("all", logsumexp(alpha))

    return model, twin


IN_TWO = Loss(vi.iwae(num_particles=2), {"w": vi.DoublyReparam(), "b": vi.Score()})

CASES = [
    (lengths_and_last, Loss()),
    (lengths_and_last, IN_TWO),
    (two_chains, IN_TWO),
    (local_in_a_minibatch, IN_TWO),
    (scaled_masked_and_reversed, IN_TWO),
]


def estimate(loss, model, guide, params=PARAMS, draws=2):
    """The loss and its gradient, for some draws."""

    def one(key):
        value, slopes = jax.value_and_grad(lambda p: loss.loss(key, p, model, guide))(params)
        return jnp.stack([value, *(jnp.sum(x) for _, x in sorted(slopes.items()))])

    return np.asarray(jax.jit(jax.vmap(one))(jax.random.split(jax.random.key(0), draws)))


@pytest.mark.filterwarnings("ignore:subsampled plates")
@pytest.mark.parametrize(("programs", "loss"), CASES)
def test_every_draw_is_that_of_the_forward_algorithm(programs, loss):
    found = [estimate(loss, program, guide) for program in programs()]
    assert np.abs(found[1][:, 1:]).min() > 1e-3
    np.testing.assert_allclose(found[0], found[1], rtol=1e-6)


def test_sites_of_the_guide_in_the_same_body():
    """A switching random walk: its states are drawn by a scan of the guide, and its switches summed."""

    def walk_guide():
        def step(h, loc):
            h = numpyro.sample("h", dist.Normal(loc + 0.5 * h, 1.0))
            return h, None

        scan(step, 0.0, numpyro.param("loc", jnp.zeros(4)))

    def model():
        def step(carry, x):
            h, z = carry
            z = numpyro.sample("z", dist.Categorical(jnp.asarray(SWITCH)[z]))
            h = numpyro.sample("h", dist.Normal(h + z, 1.0))
            numpyro.sample("x", dist.Normal(h, 1.0), obs=x)
            return (h, z), None

        scan(step, (0.0, 0), jnp.asarray(X[:, 0]))

    def twin():
        def step(carry, x):
            before, alpha = carry
            h = numpyro.sample("h", dist.Normal(0.0, 1.0).mask(False))
            alpha = logsumexp(alpha[:, None] + jnp.log(SWITCH), 0)
            alpha = alpha + normal(h, before + jnp.arange(2.0))
            numpyro.sample("x", dist.Normal(h, 1.0), obs=x)
            return (h, alpha), None

        first = jnp.log(jnp.array([1.0, TINY]))
        (_, alpha), _ = scan(step, (0.0, first), jnp.asarray(X[:, 0]))
        numpyro.factor("all", logsumexp(alpha))

    params, loss = {"loc": jnp.asarray(X[:, 1])}, Loss(vi.elbo(), marginalize=["z"])
    found = [estimate(one, p, walk_guide, params) for one, p in ((loss, model), (Loss(), twin))]
    assert np.abs(found[1][:, 1:]).min() > 1e-3
    np.testing.assert_allclose(found[0], found[1], rtol=1e-6)


def test_the_number_of_steps_costs_no_operations():
    """T steps are one `lax.scan`: what is compiled does not grow with them."""
    model, _ = lengths_and_last()
    sizes = []
    for xs in (X, np.tile(X, (3, 1))):
        with pytest.MonkeyPatch.context() as patch:
            patch.setitem(globals(), "X", xs)
            loss = lambda p: Loss().loss(jax.random.key(0), p, model, guide)  # noqa: E731
            sizes.append(str(jax.make_jaxpr(jax.grad(loss))(PARAMS)).count("\n"))
    assert sizes[0] == sizes[1]


def two_steps_back(w):
    def step(carry, x):
        one, two = carry
        z = numpyro.sample("z", dist.Bernoulli(0.2 + 0.3 * one + 0.2 * two), infer=MARK)
        numpyro.sample("x", dist.Normal(w * z, 1.0), obs=x[0])
        return (z, one), None

    scan(step, (0, 0), jnp.asarray(X))


def outputs(w):
    def step(carry, x):
        z = numpyro.sample("z", dist.Bernoulli(0.2 + 0.3 * carry), infer=MARK)
        numpyro.sample("x", dist.Normal(w * z, 1.0), obs=x[0])
        return z, z

    scan(step, 0, jnp.asarray(X))


def neighbours(w):
    def step(carry, x):
        with numpyro.plate("n", 2):
            z = numpyro.sample("z", dist.Bernoulli(0.2 + 0.3 * jnp.roll(carry, 1)), infer=MARK)
            numpyro.sample("x", dist.Normal(w * z, 1.0), obs=x)
        return z, None

    scan(step, jnp.zeros(2, int), jnp.asarray(X))


def other_plates(w):
    def step(carry, x):
        u = numpyro.sample("u", dist.Bernoulli(0.4), infer=MARK)
        with numpyro.plate("n", 2):
            z = numpyro.sample("z", dist.Bernoulli(0.2 + 0.3 * carry + 0.2 * u), infer=MARK)
            numpyro.sample("x", dist.Normal(w * z, 1.0), obs=x)
        return z, None

    scan(step, jnp.zeros(2, int), jnp.asarray(X))


def outside_its_plate(w):
    def step(carry, x):
        with numpyro.plate("n", 2):
            z = numpyro.sample("z", dist.Bernoulli(0.2 + 0.3 * carry), infer=MARK)
        numpyro.sample("x", dist.Normal(w * z.sum(), 1.0), obs=x[0])
        return z, None

    scan(step, jnp.zeros(2, int), jnp.asarray(X))


def unequal_scales(w):
    def step(carry, x):
        z = numpyro.sample("z", dist.Bernoulli(0.2 + 0.3 * carry), infer=MARK)
        with handlers.scale(scale=2.0):
            numpyro.sample("x", dist.Normal(w * z, 1.0), obs=x[0])
        return z, None

    scan(step, 0, jnp.asarray(X))


def a_minibatch_inside(w):
    def step(carry, x):
        z = numpyro.sample("z", dist.Bernoulli(0.2 + 0.3 * carry), infer=MARK)
        with numpyro.plate("n", 6, subsample_size=2):
            numpyro.sample("x", dist.Normal(w * z, 1.0), obs=x)
        return z, None

    scan(step, 0, jnp.asarray(X))


def a_mask_that_does_not_fit(w):
    with handlers.mask(mask=jnp.ones((3, 4), bool)):
        unequal_scales(w)


def nested(w):
    def step(carry, x):
        z = numpyro.sample("z", dist.Bernoulli(0.2 + 0.3 * carry), infer=MARK)
        scan(lambda c, x: (c, numpyro.sample("x", dist.Normal(w * z, 1.0), obs=x)), 0, x)
        return z, None

    scan(step, 0, jnp.asarray(X))


def in_a_cond(w):
    def branch(p):
        return numpyro.sample("z", dist.Bernoulli(p), infer=MARK)

    cond(w > 0, branch, branch, 0.3)


def too_many(w):
    def step(carry, x):
        z = numpyro.sample("z", dist.Categorical(jnp.eye(300)[carry]), infer=MARK)
        numpyro.sample("x", dist.Normal(w * z, 1.0), obs=x[0])
        return z, None

    scan(step, 0, jnp.asarray(X))


def continuous(w):
    def step(carry, x):
        z = numpyro.sample("z", dist.Bernoulli(0.2), infer=MARK)
        u = numpyro.sample("u", dist.Normal(carry, 1.0), infer=MARK)
        numpyro.sample("x", dist.Normal(w * z + u, 1.0), obs=x[0])
        return u, None

    scan(step, 0.0, jnp.asarray(X))


@pytest.mark.parametrize(
    ("body", "text"),
    [
        (two_steps_back, "its carry depends on steps before the last"),
        (outputs, "what a scan returns for each step depends on 'z'"),
        (neighbours, "elements of plate 'n' see each other's values"),
        (other_plates, "cannot be summed together with 'z' in a scan: they are in other plates"),
        (outside_its_plate, "which is outside plate 'n' of the site"),
        (unequal_scales, "unequal scales"),
        (a_minibatch_inside, "outside a subsampled plate"),
        (a_mask_that_does_not_fit, "the mask around the scan does not fit it"),
        (nested, "in control flow inside a scan"),
        (in_a_cond, "in the body of a cond, and cannot be summed out"),
        (too_many, "90000 joint values"),
        (continuous, "'u' cannot be summed out, since the support is not finite"),
    ],
    ids=lambda x: getattr(x, "__name__", ""),
)
def test_refusals(body, text):
    def model():
        w = numpyro.sample("w", dist.Normal(0.0, 1.0))
        body(w)

    def guide():
        numpyro.sample("w", dist.Normal(numpyro.param("loc", 0.3), 1.0))

    with pytest.raises(vi.ViKitError) as caught:
        Loss().loss(jax.random.key(0), {"loc": 0.3}, model, guide)
    assert text in str(caught.value), str(caught.value)


@pytest.mark.parametrize("looped", [False, True])
def test_states_that_cannot_be_reached(looped):
    """A chain that goes from left to right. The sum over the ways to a state to which there is none had no gradient."""
    jumps = np.array([[0.6, 0.4, 0, 0], [0, 0.6, 0.4, 0], [0, 0, 0.6, 0.4], [0, 0, 0, 1.0]])
    xs = jnp.asarray(X[:, 0])

    def model():
        scale = numpyro.param("scale", 0.8)

        def step(z, x, t=""):
            z = numpyro.sample(f"z{t}", dist.Categorical(jnp.asarray(jumps)[z]))
            numpyro.sample(f"x{t}", dist.Normal(1.0 * z, scale), obs=x)
            return z, None

        z = 0
        for t in range(len(X)) if looped else ():
            z, _ = step(z, xs[t], t)
        if not looped:
            scan(step, z, xs)

    def evidence(scale):
        alpha = jnp.eye(4)[0]
        for x in xs:
            alpha = (alpha @ jumps) * jnp.exp(normal(x, jnp.arange(4.0), scale))
        return -jnp.log(alpha.sum())

    loss = Loss(marginalize=["z*"])
    found = estimate(loss, model, lambda: None, {"scale": 0.8}, draws=1)[0]
    exact = [float(x) for x in jax.value_and_grad(evidence)(0.8)]
    np.testing.assert_allclose(found, exact, rtol=1e-6)
