"""Patterns for sites in branches that the first run of a program does not take."""

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch

import vi_kit as vi
from tests import oracles
from vi_kit.pyro import Loss

LOGIT, LOC = 0.1, np.array([0.6, -4.0])


def branching(first, locs):
    b = pyro.sample("b", first)
    name = "high" if b.item() > 0 else "low"
    pyro.sample(name, dist.Normal(locs[name], 1.0))


def model():
    branching(dist.Bernoulli(0.5), {"high": torch.tensor(0.0), "low": torch.tensor(0.0)})


def guide():
    locs = pyro.param("locs", torch.tensor(LOC))
    logit = pyro.param("logit", torch.tensor(LOGIT))
    branching(dist.Bernoulli(logits=logit), {"high": locs[0], "low": locs[1]})


def divergence(params):
    q = 1 / (1 + np.exp(-params[0]))
    own = q * np.log(2 * q) + (1 - q) * np.log(2 * (1 - q))
    return own + 0.5 * (q * params[1] ** 2 + (1 - q) * params[2] ** 2)


def test_patterns_for_both_branches():
    estimators = {"b": vi.Score(), "high": vi.Score(), "low": vi.Reparam()}
    for seed in range(6):
        pyro.clear_param_store()
        pyro.set_rng_seed(seed)
        assert "pattern 'b'" in Loss(estimators=estimators).explain(model, guide)
    loss, draws = Loss(estimators=estimators), []
    leaves = [pyro.get_param_store()._params[name] for name in ("logit", "locs")]
    for _ in range(700):
        for leaf in leaves:
            leaf.grad = torch.zeros_like(leaf)
        loss.loss_and_grads(model, guide)
        draws.append(np.concatenate([leaf.grad.numpy().ravel() for leaf in leaves]))
    exact = oracles.gradient(divergence, np.array([LOGIT, *LOC]))
    oracles.check_unbiased(np.array(draws), exact)


def test_a_pattern_for_no_branch_that_was_seen_is_a_warning():
    with pytest.warns(UserWarning, match="'hihg'.* has matched no latent site so far"):
        Loss(estimators={"b": vi.Score(), "hihg": vi.Score()}).explain(model, guide)


def test_a_pattern_for_no_site_of_a_fixed_program_is_an_error():
    def fixed():
        pyro.sample("z", dist.Normal(0.0, 1.0))

    with pytest.raises(vi.EstimatorError, match="matches no latent site"):
        Loss(estimators={"y": vi.Score()}).explain(fixed, fixed)
