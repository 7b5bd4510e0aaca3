"""Programs with sites integrated out: densities without bias, bounds and their gradients against enumeration."""

import itertools

import numpy as np
import pytest

import vi_kit as vi
import vi_kit.language.marginal as module
from tests.oracles import seed_of

TABLE = np.array([0.2, 0.5, 0.9])
START = np.array([0.3, -0.4, 0.6])
X = 0.7


def softmax(x):
    e = np.exp(x - x.max())
    return e / e.sum()


def densities(theta):
    """q(u), q(k = 1 | u), m(u | k) as a table, of the programs below."""
    first = softmax(np.array([theta[0], 0.2, 0.0]))
    one = 1 / (1 + np.exp(-(TABLE * 2 - 1 + theta[1])))
    guess = np.stack([softmax(np.array([theta[2] * (1 + k), 0.0, 0.3 * k])) for k in (0, 1)])
    return first, one, guess


def programs(lib):
    """A guide with an auxiliary site `u`, a program that guesses it, and a model of `k` alone."""

    def guide():
        theta = lib.theta(START)
        zero = 0.0 * theta[0]
        u = lib.sample("u", lib.dist.Categorical(logits=lib.xp.stack([theta[0], zero + 0.2, zero])))
        lib.sample("k", lib.dist.Bernoulli(logits=lib.array(TABLE)[u] * 2 - 1 + theta[1]))

    def guess(kept):
        theta, k = lib.theta(START), kept["k"]
        zero = 0.0 * k
        logits = [theta[2] * (1 + k), zero, 0.3 * k]
        lib.sample("u", lib.dist.Categorical(logits=lib.xp.stack(logits, -1)))

    def model():
        k = lib.sample("k", lib.dist.Bernoulli(lib.array(0.35)))
        lib.sample("x", lib.dist.Normal(2.0 * k, 1.0), obs=lib.array(X))

    return guide, guess, model


def log_joint(k):
    return np.log([0.65, 0.35][k]) - 0.5 * (X - 2.0 * k) ** 2 - 0.5 * np.log(2 * np.pi)


def expected(theta, n, guessed, value):
    """The mean of a function of the density estimate at the program's own draws, by enumeration."""
    first, one, guess = densities(theta)
    total = 0.0
    for k in (0, 1):
        cond = one if k else 1 - one
        m = guess[k] if guessed else first
        for us in itertools.product(range(3), repeat=n):
            prob = first[us[0]] * cond[us[0]] * np.prod([m[u] for u in us[1:]])
            estimate = np.mean([first[u] * cond[u] / m[u] for u in us])
            total += prob * value(k, np.log(estimate))
    return total


def slopes_of(fn):
    step = 1e-5 * np.eye(3)
    return np.array([(fn(START + s) - fn(START - s)) / 2e-5 for s in step])


@pytest.mark.parametrize("guessed", [True, False])
@pytest.mark.parametrize("n", [1, 3])
def test_a_bound_and_its_gradient(n, guessed, lib):
    guide, guess, model = programs(lib)
    algorithm = vi.ImportanceSampling(n, guess if guessed else None)
    kept = vi.marginal(guide, keep=["k"], algorithm=algorithm)

    def bound(theta):
        return expected(theta, n, guessed, lambda k, log_q: log_joint(k) - log_q)

    exact = np.concatenate([[-bound(START)], -slopes_of(bound)])
    everything = lib.Loss(estimators=vi.Enumerate())
    found = lib.estimates(everything, model, kept, START, 1, 0)[0]
    np.testing.assert_allclose(found, exact, rtol=1e-6)
    by_scores = lib.Loss(estimators=vi.Score(), num_samples=4000)
    draws = lib.estimates(by_scores, model, kept, START, 8, seed_of("marginal"))
    error = draws.std(0, ddof=1) / np.sqrt(len(draws))
    assert (np.abs(draws.mean(0) - exact) < 5 * error + 1e-9).all(), (draws.mean(0), exact, error)
    assert (np.abs(exact[1:3]) > 8 * error[1:3]).all()


@vi.objective
def reciprocal(model, guide):
    """The mean of 1 / q(k), which is the number of values of k."""
    z = vi.simulate(guide)
    return vi.apply(lambda x: _exp(-x), z.log_density)


@vi.objective
def density(model, guide):
    """The mean of an estimate of q(k) at draws of the model."""
    z = vi.simulate(model)
    return vi.apply(_exp, vi.log_density(guide, vi.stop_gradient(z)))


def _exp(x):
    return vi.array_namespace(x).exp(x)


@pytest.mark.parametrize("guessed", [True, False])
def test_neither_density_nor_its_reciprocal_is_biased(guessed, lib, monkeypatch):
    guide, guess, _ = programs(lib)

    def prior():
        lib.sample("k", lib.dist.Bernoulli(lib.array(0.35)))

    kept = vi.marginal(guide, ["k"], vi.ImportanceSampling(3, guess if guessed else None))
    loss = lib.Loss(reciprocal(), vi.Enumerate())
    assert lib.estimates(loss, prior, kept, START, 1, 0)[0, 0] == pytest.approx(-2.0, rel=1e-6)
    first, one, _ = densities(START)
    q = float(first @ one)
    exact = 0.35 * q + 0.65 * (1 - q)
    draws = lib.estimates(
        lib.Loss(density(), vi.Score(), num_samples=4000), prior, kept, START, 8, 1
    )[:, 0]
    assert abs(draws.mean() + exact) < 5 * draws.std(ddof=1) / np.sqrt(8) + 1e-9
    # a mutant: the particle that the program drew is left out
    monkeypatch.setattr(module, "with_others", lambda n: lambda own, others: others + 0.0 * own)
    wrong = lib.estimates(lib.Loss(reciprocal(), vi.Enumerate()), prior, kept, START, 1, 0)[0, 0]
    assert abs(wrong + 2.0) > 1e-2


def test_exact_sums(lib):
    guide, _, model = programs(lib)
    kept = vi.marginal(guide, keep="k", algorithm=vi.Exact())

    def bound(theta):
        first, one, _ = densities(theta)
        q = np.array([1 - first @ one, first @ one])
        return sum(q[k] * (log_joint(k) - np.log(q[k])) for k in (0, 1))

    exact = np.concatenate([[-bound(START)], -slopes_of(bound)])
    found = lib.estimates(lib.Loss(estimators=vi.Enumerate()), model, kept, START, 1, 0)[0]
    np.testing.assert_allclose(found, exact, rtol=1e-6, atol=1e-9)
    by_scores = lib.Loss(estimators=vi.Score(), num_samples=4000)
    draws = lib.estimates(by_scores, model, kept, START, 8, 3)
    error = draws.std(0, ddof=1) / np.sqrt(len(draws))
    assert (np.abs(draws.mean(0) - exact) < 5 * error + 1e-9).all()


def test_a_marginal_model_is_that_which_is_summed(lib):
    """`vi.marginal(model, ..., Exact())` and `Loss(marginalize=...)` are one density."""

    def model():
        w = lib.sample("w", lib.dist.Normal(lib.array(0.0), 1.0))
        with lib.plate("n", 3):
            z = lib.sample("z", lib.dist.Bernoulli(lib.array(0.3)))
            lib.sample("x", lib.dist.Normal(w * z, 1.0), obs=lib.array([0.3, -1.2, 2.0]))

    def guide():
        theta = lib.theta(START)
        lib.sample("w", lib.dist.Normal(theta[0], lib.xp.exp(theta[1])))

    for objective in (vi.elbo(), vi.iwae(num_particles=3)):
        found = [
            lib.estimates(loss, program, guide, START, 2, 0)
            for loss, program in (
                (lib.Loss(objective, marginalize="z"), model),
                (lib.Loss(objective), vi.marginal(model, ["w"], vi.Exact())),
            )
        ]
        assert np.abs(found[0][:, 1]).max() > 1e-2
        np.testing.assert_allclose(found[0], found[1], rtol=1e-9)


def test_each_datum_has_a_bound_of_its_own(lib):
    """Local auxiliary sites: the estimate is taken for each element of the plate."""

    def guide():
        theta = lib.theta(START)
        with lib.plate("n", 2):
            u = lib.sample("u", lib.dist.Bernoulli(logits=theta[0] + 0.0 * lib.array([1.0, 2.0])))
            lib.sample("k", lib.dist.Bernoulli(logits=theta[1] + theta[2] * u))

    def model():
        with lib.plate("n", 2):
            k = lib.sample("k", lib.dist.Bernoulli(lib.array(0.35)))
            lib.sample("x", lib.dist.Normal(2.0 * k, 1.0), obs=lib.array([X, X]))

    def bound(theta):
        first = 1 / (1 + np.exp(-theta[0]))
        first = np.array([1 - first, first])
        one = 1 / (1 + np.exp(-(theta[1] + theta[2] * np.arange(2))))
        total = 0.0
        for k in (0, 1):
            cond = one if k else 1 - one
            for us in itertools.product(range(2), repeat=2):
                prob = first[us[0]] * cond[us[0]] * first[us[1]]
                total += prob * (log_joint(k) - np.log(np.mean([cond[u] for u in us])))
        return 2 * total

    exact = np.concatenate([[-bound(START)], -slopes_of(bound)])
    kept = vi.marginal(guide, ["k"], vi.ImportanceSampling(2))
    loss = lib.Loss(estimators=vi.Enumerate())
    found = lib.estimates(loss, model, kept, START, 1, 0)[0]
    np.testing.assert_allclose(found, exact, rtol=1e-6)


def test_three_deep(lib):
    """A marginal of a marginal of a marginal; Exact at every level is the sum over everything."""

    def chain():
        theta = lib.theta(START)
        a = lib.sample("a", lib.dist.Bernoulli(logits=theta[0]))
        b = lib.sample("b", lib.dist.Bernoulli(logits=theta[1] + a))
        c = lib.sample("c", lib.dist.Bernoulli(logits=theta[2] - b))
        lib.sample("k", lib.dist.Bernoulli(logits=0.5 - c))

    def model():
        k = lib.sample("k", lib.dist.Bernoulli(lib.array(0.35)))
        lib.sample("x", lib.dist.Normal(2.0 * k, 1.0), obs=lib.array(X))

    def guess_b(kept):
        lib.sample("b", lib.dist.Bernoulli(logits=0.3 * kept["c"] + 0.0 * lib.theta(START)[0]))

    def guess_c(kept):
        lib.sample("c", lib.dist.Bernoulli(logits=0.4 - kept["k"] + 0.0 * lib.theta(START)[0]))

    one = vi.marginal(chain, ["b", "c", "k"], vi.Exact())
    two = vi.marginal(one, ["c", "k"], vi.ImportanceSampling(2, guess_b))
    three = vi.marginal(two, ["k"], vi.ImportanceSampling(2, guess_c))
    draws = lib.estimates(
        lib.Loss(reciprocal(), vi.Score(), num_samples=4000), model, three, START, 8, 5
    )[:, 0]
    assert abs(draws.mean() + 2.0) < 5 * draws.std(ddof=1) / np.sqrt(8)
    whole = vi.marginal(chain, ["k"], vi.Exact())
    upper, lower = (
        lib.estimates(lib.Loss(estimators=vi.Score(), num_samples=4000), model, g, START, 4, 6)
        for g in (three, whole)
    )
    assert upper[:, 0].mean() > lower[:, 0].mean()  # losses: an estimate costs some of the bound


def refusal(lib, make):
    guide, guess, model = programs(lib)
    with pytest.raises(vi.ViKitError) as caught:
        lib.value(lib.Loss(), model, make(guide, guess), 0)
    return str(caught.value)


def test_refusals(lib):
    guide, _, model = programs(lib)
    text = refusal(lib, lambda g, m: vi.marginal(g, ["k", "j*"], vi.Exact()))
    assert "no latent site 'j*' to keep" in text
    assert "['k', 'u']" in text

    def lacking(kept):
        lib.sample("v", lib.dist.Bernoulli(lib.array(0.5)))

    for n in (1, 2):
        algorithm = vi.ImportanceSampling(n, lacking)
        text = refusal(lib, lambda g, m, a=algorithm: vi.marginal(g, ["k"], a))
        assert ("must draw the sites" if n > 1 else "sample('u', ...) in the proposal") in text

    def outside(kept):
        lib.sample("u", lib.dist.Categorical(lib.array(np.ones(2) / 2)))

    text = refusal(lib, lambda g, m: vi.marginal(g, ["k"], vi.ImportanceSampling(2, outside)))
    assert "outside the guide proposal's support" in text or "is not finite" in text
    text = refusal(lib, lambda g, m: g)
    assert "vi.marginal(guide, keep=[...], algorithm)" in text

    def endless():
        w = lib.sample("w", lib.dist.Normal(lib.theta(START)[0], 1.0))
        lib.sample("k", lib.dist.Bernoulli(logits=w))

    text = refusal(lib, lambda g, m: vi.marginal(endless, ["k"], vi.Exact()))
    assert "'w' cannot be summed out, since the support is not finite" in text
    assert "vi.ImportanceSampling(num_particles)" in text
    for wrong in ([], [""]):
        with pytest.raises(vi.ObjectiveError, match="keep takes names"):
            vi.marginal(guide, wrong, vi.Exact())
    with pytest.raises(vi.ObjectiveError, match="no algorithm"):
        vi.marginal(guide, ["k"], 5)
    with pytest.raises(vi.ObjectiveError, match="num_particles"):
        vi.ImportanceSampling(0)
    with pytest.raises(vi.ObjectiveError, match="one number for all"):
        loss = lib.Loss(vi.sub_trajectory_balance(lambda_=0.9))
        lib.value(loss, model, vi.marginal(guide, ["k"], vi.Exact()), 0)


def test_simulated_data_of_a_marginal_model(lib):
    """The guide learns from joint draws of what is kept and of the data: E[w x] = E[w^2 z] = 0.3."""

    def model(x):
        w = lib.sample("w", lib.dist.Normal(lib.array(0.0), 1.0))
        z = lib.sample("z", lib.dist.Bernoulli(lib.array(0.3)), infer={"enumerate": "parallel"})
        lib.sample("x", lib.dist.Normal(w * z, 1.0), obs=x)

    def guide(x):
        lib.sample("w", lib.dist.Normal(lib.theta(np.zeros(1))[0] * x, 1.0))

    kept = vi.marginal(model, ["w"], vi.Exact())
    loss, x = lib.Loss(vi.forward_kl(), num_samples=4000), lib.array(1.0)
    draws = lib.gradients(loss, kept, guide, np.zeros(1), 8, 0, args=(x,))[:, 0]
    error = draws.std(ddof=1) / np.sqrt(8)
    assert abs(draws.mean() + 0.3) < 5 * error < 0.2
    with pytest.raises(vi.ObjectiveError, match=r"vi.marginal\(model, keep"):
        lib.gradients(lib.Loss(vi.forward_kl()), model, guide, np.zeros(1), 1, 0, args=(x,))


def test_draws_of_enumerated_sites_below_a_site_that_is_summed(lib):
    """A nonlinear function that no longer depends on `u` draws `g` and `h`, and these depend on it."""
    rows = np.array([[-1.0, 0.3, 1.4], [0.8, 0.3, -1.4]])

    def model():
        g = lib.sample("g", lib.dist.Bernoulli(lib.array(0.35)))
        h = lib.sample("h", lib.dist.Bernoulli(lib.array(0.6)))
        lib.sample("x", lib.dist.Normal(2 * g - 0.4 * h, 1.0), obs=lib.array(1.5))

    def guide():
        theta = lib.theta(np.zeros(3))
        u = lib.sample("u", lib.dist.Categorical(lib.array(np.array([0.3, 0.25, 0.45]))))
        for name, row in zip("gh", rows, strict=True):
            lib.sample(name, lib.dist.Bernoulli(logits=(lib.array(row) + theta)[u]))

    def bound(theta):
        one = 1 / (1 + np.exp(-(rows + theta)))
        joint = [
            np.prod([row if v else 1 - row for row, v in zip(one, values, strict=True)], 0)
            for values in itertools.product((0, 1), repeat=2)
        ]
        q = np.array(joint) @ np.array([0.3, 0.25, 0.45])
        g, h = np.array(list(itertools.product((0, 1), repeat=2))).T
        log_p = np.log(np.where(g, 0.35, 0.65)) + np.log(np.where(h, 0.6, 0.4))
        log_p += -0.5 * (1.5 - 2 * g + 0.4 * h) ** 2 - 0.5 * np.log(2 * np.pi)
        w = np.exp(log_p) / q
        return sum(q[i] * q[j] * np.log((w[i] + w[j]) / 2) for i in range(4) for j in range(4))

    step = 1e-5 * np.eye(3)
    exact = -np.array([(bound(s) - bound(-s)) / 2e-5 for s in step])
    kept = vi.marginal(guide, ["g", "h"], vi.Exact())
    loss = lib.Loss(vi.iwae(num_particles=2), num_samples=2000)  # more joint values than are summed
    draws = lib.gradients(loss, model, kept, np.zeros(3), 8, 0)
    error = draws.std(0, ddof=1) / np.sqrt(8)
    assert (np.abs(draws.mean(0) - exact) < 5 * error).all(), (draws.mean(0), exact, error)
    assert (error < 0.005).all()


def test_a_sum_of_estimates_is_no_estimate_of_its_reciprocal(lib):
    guide, guess, model = programs(lib)
    inner = vi.marginal(guide, ["u", "k"], vi.ImportanceSampling(2))
    for outer, text in (
        (vi.Exact(), "the reciprocal of a sum of estimates is biased"),
        (vi.ImportanceSampling(2), "a marginal or a posterior itself"),
    ):
        with pytest.raises(vi.ObjectiveError, match=text):
            lib.value(lib.Loss(), model, vi.marginal(inner, ["k"], outer), 0)
    exactly = vi.marginal(guide, ["u", "k"], vi.Exact())
    lib.value(lib.Loss(), model, vi.marginal(exactly, ["k"], vi.ImportanceSampling(2, guess)), 0)


def test_held_draws_of_a_marginal_are_single_by_default(lib):
    """A density at a held draw is estimated anew."""
    guide, _, model = programs(lib)
    kept = vi.marginal(guide, ["k"], vi.ImportanceSampling(2))
    loss = lib.Loss(vi.trajectory_balance())
    assert np.isfinite(lib.value(loss, model, kept, 0, compiled=True))
    several = lib.Loss(vi.trajectory_balance(), {"u": vi.Enumerate(), "k": vi.Score()})
    with pytest.raises(vi.EstimatorError, match="held has several values at sites"):
        lib.value(several, model, kept, 0)


def test_a_mask_that_the_program_changes_in_place():
    """As in Pyro's capture-recapture example, from the first capture on."""
    import pyro
    import pyro.distributions as dist
    import torch
    from pyro import poutine

    from vi_kit.pyro import Loss

    captured = torch.tensor([[1.0, 0, 1, 0], [0, 1, 1, 0], [0, 0, 1, 1]])
    survives, seen = 0.6, 0.3

    def model():
        phi = pyro.sample("phi", dist.Uniform(0.0, 1.0))
        with pyro.plate("animals", 3):
            z, first = torch.ones(3), torch.zeros(3).bool()
            for t in range(4):
                with poutine.mask(mask=first):
                    alive = first.float() * phi * z + 1 - first.float()
                    z = pyro.sample(
                        f"z_{t}", dist.Bernoulli(alive), infer={"enumerate": "parallel"}
                    )
                    pyro.sample(f"y_{t}", dist.Bernoulli(seen * z), obs=captured[:, t])
                first |= captured[:, t].bool()

    def guide():
        pyro.sample("phi", dist.Delta(pyro.param("p", torch.tensor(survives))))

    exact = 0.0
    for row in captured.numpy():
        alpha, first = np.array([0.0, 1.0]), int(row.argmax())
        for value in row[first + 1 :]:
            alpha = np.array([alpha[0] + alpha[1] * (1 - survives), alpha[1] * survives])
            alpha *= [1.0 - value, seen if value else 1 - seen]
        exact -= np.log(alpha.sum())
    pyro.clear_param_store()
    assert Loss().loss_and_grads(model, guide) == pytest.approx(exact, rel=1e-5)


@pytest.mark.parametrize("guessed", [True, False])
def test_gradients_at_held_draws(guessed, lib):
    """Of log q at draws of the model, which have no gradient: all that is drawn anew is scored or enumerated."""
    guide, guess, _ = programs(lib)

    def prior():
        lib.sample("k", lib.dist.Bernoulli(lib.array(0.35)))

    def mean_log_q(theta):
        first, one, table = densities(theta)
        total = 0.0
        for k, prob in ((0, 0.65), (1, 0.35)):
            cond = one if k else 1 - one
            m = table[k] if guessed else first
            for us in itertools.product(range(3), repeat=2):
                estimate = np.mean([first[u] * cond[u] / m[u] for u in us])
                total += prob * np.prod([m[u] for u in us]) * np.log(estimate)
        return total

    exact = -slopes_of(mean_log_q)
    kept = vi.marginal(guide, ["k"], vi.ImportanceSampling(2, guess if guessed else None))
    for estimator in (vi.Score(), {"u": vi.Enumerate(), "k": vi.Score()}):
        loss = lib.Loss(at_draws_of_the_model(), estimator, num_samples=2000)
        draws = lib.gradients(loss, prior, kept, START, 8, 7)
        error = draws.std(0, ddof=1) / np.sqrt(8)
        assert (np.abs(draws.mean(0) - exact) < 5 * error + 1e-9).all(), (draws.mean(0), exact)
        assert abs(exact[1]) > 8 * error[1]


@vi.objective
def at_draws_of_the_model(model, guide):
    return vi.log_density(guide, vi.stop_gradient(vi.simulate(model)))
