"""What a gradient costs, without running it, next to the same written by hand; in single precision."""

import math

import jax
import jax.numpy as jnp
import numpyro
import numpyro.distributions as dist
import pytest
from jax.extend.core import jaxprs_in_params

import vi_kit as vi
from benchmarks import vae_overhead as vae
from vi_kit.costs import downstream
from vi_kit.costs.terms import Site
from vi_kit.numpyro import Loss

WELL = {"xla_cpu_opt_preset": "CPU_OPT_PRESET_DEFAULT"}
"""Other than the rest of the tests, which are compiled quickly: equal forward passes become one."""


@pytest.fixture
def costs():
    """Of the gradient of a loss, or of a function, on a batch of 64."""

    def of(fn):
        with jax.enable_x64(False):
            x = vae.images(64)
            args = jax.random.key(0), vae.initial_params(x), x
            return vae.static_cost(fn, *args, compiler_options=WELL)

    return of


def by_hand():
    """Minus the ELBO, with NumPyro's distributions."""
    encode, decode = vae.encoder_net()[1], vae.decoder_net()[1]

    def minus_elbo(key, params, x):
        q = dist.Normal(*encode(params["encoder$params"], x)).to_event(1)
        z = q.sample(key)
        prior = dist.Normal(jnp.zeros(vae.NUM_LATENT), 1.0).to_event(1)
        likelihood = dist.Bernoulli(logits=decode(params["decoder$params"], z)).to_event(1)
        return (q.log_prob(z) - prior.log_prob(z) - likelihood.log_prob(x)).sum()

    return minus_elbo


@vi.objective
def split_elbo(model, guide):
    """The ELBO for both groups of parameters."""
    z = vi.simulate(guide)
    bound = vi.log_density(model, z) - z.log_density
    return vi.split_gradients(model=bound, guide=bound)


def test_elbo_costs_what_it_costs_by_hand(costs):
    ours, hand = costs(vae.through(Loss())), costs(by_hand())
    assert ours["equations"] <= 1.10 * hand["equations"]
    assert ours["flops"] == pytest.approx(hand["flops"], rel=0.02)
    assert ours["bytes"] == pytest.approx(hand["bytes"], rel=0.02)


def test_split_gradients_take_one_forward_pass(costs):
    split, whole = costs(vae.through(Loss(split_elbo()))), costs(vae.through(Loss()))
    assert split["flops"] <= 1.05 * whole["flops"]


def products(jaxpr):
    """Multiplications in the matrix products of a jaxpr and of what it calls."""
    found = 0
    for eqn in jaxpr.eqns:
        if eqn.primitive.name == "dot_general":
            (contracted, _), _ = eqn.params["dimension_numbers"]
            left = eqn.invars[0].aval.shape
            found += math.prod(left[d] for d in contracted) * eqn.outvars[0].aval.size
        found += sum(products(getattr(sub, "jaxpr", sub)) for sub in jaxprs_in_params(eqn.params))
    return found


def test_alternatives_are_not_differentiated(monkeypatch):
    """A gradient takes one forward pass for each of the alternatives, and no backward pass."""
    num_bits, weights = 20, jnp.ones((20, 10))

    def model():
        w = numpyro.param("w", weights)
        z = numpyro.sample("z", dist.Bernoulli(0.5 * jnp.ones(num_bits)).to_event(1))
        numpyro.sample("x", dist.Normal(z @ w, 1.0).to_event(1), obs=jnp.ones(10))

    def guide():
        probs = numpyro.param("probs", 0.4 * jnp.ones(num_bits))
        numpyro.sample("z", dist.Bernoulli(probs).to_event(1))

    def passes(estimator):
        loss = Loss(estimators=estimator)
        params = {"w": weights, "probs": 0.4 * jnp.ones(num_bits)}
        gradient = jax.grad(lambda p: loss.loss(jax.random.key(0), p, model, guide))
        return products(jax.make_jaxpr(gradient)(params).jaxpr) / weights.size

    assert passes(vi.Score()) == 2
    assert passes(vi.DisARM()) == 2 + 1
    assert passes(vi.MeasureValued()) == 2 + num_bits
    monkeypatch.setattr(Site, "is_live", True)
    monkeypatch.setattr(downstream, "stopped", lambda named: named)
    assert passes(vi.MeasureValued()) > 2 + 1.5 * num_bits  # the mutant
