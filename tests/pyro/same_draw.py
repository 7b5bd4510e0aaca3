"""Compare with Pyro's own losses on the same draw: where both are reparameterised they must agree."""

import pyro
import torch
from pyro import poutine
from pyro.infer import RenyiELBO, Trace_ELBO

import vi_kit as vi
from vi_kit.pyro import Loss


def value_and_gradients(loss, model, guide, *args, seed=0):
    """The value of a loss and its gradient by unconstrained parameter, from one seed."""
    leaves = pyro.get_param_store()._params
    for leaf in leaves.values():
        leaf.grad = None
    pyro.set_rng_seed(seed)
    value = loss.loss_and_grads(model, guide, *args)
    return value, {k: p.grad.clone() for k, p in leaves.items() if p.grad is not None}


def check_same(ours, theirs, model, guide, *args, num_seeds=3):
    """Value and gradients agree to 1e-6 for each of a few seeds, and are not all zero."""
    poutine.trace(guide).get_trace(*args)  # makes the parameters
    for seed in range(num_seeds):
        expected, gradients = value_and_gradients(theirs, model, guide, *args, seed=seed)
        value, got = value_and_gradients(ours, model, guide, *args, seed=seed)
        torch.testing.assert_close(value, expected, rtol=1e-6, atol=1e-6)
        assert got.keys() == gradients.keys()
        for name, gradient in gradients.items():
            torch.testing.assert_close(got[name], gradient, rtol=1e-6, atol=1e-6, msg=name)
        assert any(bool((g != 0).any()) for g in gradients.values())


def check_same_as_trace_elbo(model, guide, *args):
    """`Loss()` does what `Trace_ELBO()` does on the same draw."""
    check_same(Loss(), Trace_ELBO(), model, guide, *args)


def check_same_in_all_ways(model, guide, *args, max_plate_nesting):
    """One sample, four vectorised samples and a bound of three particles."""

    def pyro_settings(num_particles):
        return {
            "num_particles": num_particles,
            "vectorize_particles": True,
            "max_plate_nesting": max_plate_nesting,
        }

    check_same_as_trace_elbo(model, guide, *args)
    check_same(Loss(num_samples=4), Trace_ELBO(**pyro_settings(4)), model, guide, *args)
    bound = Loss(vi.iwae(num_particles=3))
    check_same(bound, RenyiELBO(alpha=0.0, **pyro_settings(3)), model, guide, *args)
