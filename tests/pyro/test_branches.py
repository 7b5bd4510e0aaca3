"""Patterns for sites in branches that the first run of a program does not take."""

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch

import vi_kit as vi
from tests import oracles
from tests.libraries import PyroWords
from vi_kit.pyro import Loss

LOGIT, LOC = 0.1, np.array([0.6, -4.0])


def branching(first, locs):
    b = pyro.sample("b", first)
    name = "high" if b.item() > 0 else "low"
    return b, pyro.sample(name, dist.Normal(locs[name], 1.0))


def model():
    branching(dist.Bernoulli(0.5), {"high": torch.tensor(0.0), "low": torch.tensor(0.0)})


def guide():
    locs = pyro.param("locs", torch.tensor(LOC))
    logit = pyro.param("logit", torch.tensor(LOGIT))
    return branching(dist.Bernoulli(logits=logit), {"high": locs[0], "low": locs[1]})


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


def model_of_data():
    here = torch.tensor(0.0)
    b, z = branching(dist.Bernoulli(0.5), {"high": here, "low": here})
    pyro.sample("x", dist.Normal(2 * z if b else z - 1, 1.0), obs=torch.tensor(1.0))


OBJECTIVES = {
    "samples": (vi.elbo(), {"num_samples": 4}, lambda w: w.mean(0)),
    "iwae": (vi.iwae(num_particles=4), {}, lambda w: torch.logsumexp(w, 0) - np.log(4)),
    "renyi": (
        vi.renyi(alpha=0.5, num_particles=4),
        {},
        lambda w: 2 * (torch.logsumexp(w / 2, 0) - np.log(4)),
    ),
}


@pytest.mark.parametrize("estimators", [None, {"b": vi.Score()}], ids=["default", "plain score"])
@pytest.mark.parametrize("objective", OBJECTIVES)
def test_replicates_that_take_different_branches(objective, estimators):
    """Loss and gradient of one draw against those by hand: the score of each branch, and the path in it. By default
    there is a baseline."""
    bound, settings, reduced = OBJECTIVES[objective]
    loss, drawn = Loss(bound, estimators, **settings), []

    def noted():
        drawn.append(guide())

    pyro.clear_param_store()
    pyro.set_rng_seed(1)
    guide()
    leaves = [pyro.get_param_store()._params[name] for name in ("logit", "locs")]
    for _ in range(5):
        for leaf in leaves:
            leaf.grad = torch.zeros_like(leaf)
        value = loss.loss_and_grads(model_of_data, noted)
        copies = drawn[-4:]
        log_w, log_q = zip(*(weighed(b, z, *leaves) for b, z in copies), strict=True)
        by_hand = -reduced(torch.stack(log_w))
        scores = [by_hand.detach()] * 4
        if (
            objective == "samples"
        ):  # each has its own cost, and log q of a branch no path, its mean being zero
            scores = [-(1 + w.detach()) / 4 for w in log_w]
        surrogate = by_hand + sum(c * q for c, q in zip(scores, log_q, strict=True))
        assert value == pytest.approx(by_hand.item(), rel=1e-5)
        grads = torch.autograd.grad(surrogate, leaves)
        for leaf, wanted in list(zip(leaves, grads, strict=True))[estimators is None :]:
            np.testing.assert_allclose(leaf.grad.numpy(), wanted.numpy(), rtol=1e-4, atol=1e-5)
    assert len({b.item() for b, _ in drawn[-20:]}) == 2


def weighed(b, z, logit, locs):
    """The log weight of a draw, and the log density of its branch, which has a score and no path."""
    loc = locs[0] if b else locs[1]
    z = loc + (z - loc).detach()
    first = dist.Bernoulli(logits=logit).log_prob(b)
    standard = dist.Normal(0.0, 1.0)
    log_p = np.log(0.5) + standard.log_prob(z) + standard.log_prob(1.0 - (2 * z if b else z - 1))
    return log_p - first - dist.Normal(loc, 1.0).log_prob(z), first


def test_an_enumerable_site_that_some_replicates_lack_is_drawn_by_default():
    """Whichever branch was met when the plan was made."""

    def model():
        if pyro.sample("z", dist.Bernoulli(0.4)) == 1:
            a = pyro.sample("a", dist.Bernoulli(0.7))
            pyro.sample("x", dist.Normal(a, 1.0), obs=torch.tensor(0.8))
        else:
            b = pyro.sample("b", dist.Normal(0.0, 1.0))
            pyro.sample("y", dist.Normal(b, 1.0), obs=torch.tensor(-1.8))

    def guide():
        if pyro.sample("z", dist.Bernoulli(logits=pyro.param("p", torch.tensor(0.6)))) == 1:
            pyro.sample("a", dist.Bernoulli(logits=pyro.param("l", torch.tensor(0.3))))
        else:
            pyro.sample("b", dist.Normal(pyro.param("m", torch.tensor(0.3)), 0.7))

    for seed in range(8):
        pyro.set_rng_seed(seed)
        loss = Loss(num_samples=3)
        for _ in range(3):
            loss.loss_and_grads(model, guide)


@pytest.mark.parametrize("objective", [vi.elbo(), vi.iwae(2)], ids=repr)
def test_a_guide_that_branches_on_one_site_enumerates_both(objective):
    """What is drawn before the branch does not depend on itself."""
    values, x = np.array([0.3, -0.4, 0.9]), 0.7

    def model():
        w = pyro.sample("w", dist.Bernoulli(0.5))
        z = pyro.sample("z", dist.Bernoulli(0.4))
        pyro.sample("x", dist.Normal(w + 2.0 * z, 1.0), obs=torch.tensor(x))

    def guide():
        theta = pyro.param("theta", torch.tensor(values))
        w = pyro.sample("w", dist.Bernoulli(logits=theta[0]))
        pyro.sample("z", dist.Bernoulli(logits=theta[1] if w == 1.0 else theta[2]))

    def loss_at(theta):
        q = 1 / (1 + np.exp(-theta))
        q_w, q_z = np.array([1 - q[0], q[0]]), np.array([[1 - q[2], q[2]], [1 - q[1], q[1]]])
        w, z = np.arange(2.0)[:, None], np.arange(2.0)
        log_p = np.log(0.5) + np.log([0.6, 0.4]) + oracles.log_normal(x, w + 2 * z, 1.0)
        weights = (q_w[:, None] * q_z).ravel()
        log_w = log_p.ravel() - np.log(weights)
        if objective == vi.elbo():
            return -(weights * log_w).sum()
        pairs = np.log(0.5 * (np.exp(log_w)[:, None] + np.exp(log_w)))
        return -(np.outer(weights, weights) * pairs).sum()

    loss = Loss(objective)
    found = PyroWords().gradients(loss, model, guide, values, 1, 0)[0]
    np.testing.assert_allclose(found, oracles.gradient(loss_at, values), rtol=1e-6)
    assert loss.explain(model, guide).count("Enumerate(") == 2


def test_statements_at_some_values_of_a_continuous_site_are_served_by_default():
    """Alternatives to a draw, at which other statements are met, cannot be run together: the site is drawn."""

    def model():
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.sample("x", dist.Normal(z, 1.0), obs=torch.tensor(1.0))
        if z > 1.0:
            return
        pyro.factor("f", torch.tensor(2.0))

    def guide():
        pyro.sample("z", dist.Normal(pyro.param("m", torch.tensor(0.3)), 0.8))

    pyro.set_rng_seed(0)
    loss = Loss()
    for _ in range(30):
        loss.loss_and_grads(model, guide)
    assert "Score(" in loss.explain(model, guide)
