"""What a gradient costs, without running it, next to the same written by hand; in single precision."""

import jax
import jax.numpy as jnp
import numpyro.distributions as dist
import pytest

import vi_kit as vi
from benchmarks import vae_overhead as vae
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
