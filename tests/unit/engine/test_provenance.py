"""Which terms enter the score of a site: all that depend on it, also where its value leaves the tensors,
and none that does not."""

import copy

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch

import vi_kit as vi
from tests import oracles
from tests.unseen import WAYS
from vi_kit.pyro import Loss
from vi_kit.pyro import backend as pyro_backend
from vi_kit.pyro.leak_probe import LeakProbe

VALUES = np.array([0.3, -0.4])
# Constants near the mean costs, so that few draws have power.
SCORE, FROM_U = vi.Score(vi.Constant(-3.0)), vi.Score(vi.Constant(-1.5))


def branch(z):
    return 1.0 if z > 0.5 else 0.0


def write(z):
    out = torch.zeros(2)
    out[0] = z
    return out[0]


def write_to_view(z):
    out = torch.zeros(2)
    view = out[:1]
    view += z
    return out[0]


def out_argument(z):
    out = torch.zeros(())
    torch.add(z, 0.0, out=out)
    return out


def item(z):
    return z.item()


def through_numpy(z):
    return torch.as_tensor(z.numpy())


def list_index(z):
    return [0.0, 1.0][z.long()]


def new_tensor(z):
    return torch.tensor([z, 0.0])[0]


def equal(z):
    return float(torch.equal(z, torch.tensor(1.0)))


def selected(z):
    return float(len(z.reshape(1).nonzero()))


def masked(z):
    return torch.ones(1)[z.reshape(1) > 0.5].sum()


def through_vmap(z):
    return torch.vmap(lambda a: a * 1.0)(z.reshape(1))[0]


def integers_through_vmap(z):
    return torch.vmap(lambda a: ONE_HOT[a])(z.long().reshape(1))[0]


SCRIPTED = torch.jit.CompilationUnit("""
def pick(z, values):
    return values[z]

def branch(z):
    if int(z) == 1:
        return torch.ones(1)[0]
    return torch.zeros(1)[0]
""")


def integers_through_script(z):
    return SCRIPTED.pick(z.long(), ONE_HOT)


def branch_in_script(z):
    return SCRIPTED.branch(z)


ONE_HOT = torch.tensor([0.0, 1.0], dtype=torch.float64)


IN_A_FOLDER = {}
code = "def leak(z):\n    return 1.0 if z > 0.5 else 0.0"
exec(compile(code, "/home/distributions/mine.py", "exec"), IN_A_FOLDER)


def in_a_folder_named_distributions(z):
    return IN_A_FOLDER["leak"](z)


LEAKS = [
    branch,
    write,
    write_to_view,
    out_argument,
    float,
    item,
    through_numpy,
    list_index,
    new_tensor,
    equal,
    selected,
    masked,
    through_vmap,
    integers_through_vmap,
    integers_through_script,
    branch_in_script,
    in_a_folder_named_distributions,
]


def programs(leak):
    """The leaked value moves the likelihood in the model, and the other site in the guide."""

    def model():
        z = pyro.sample("z", dist.Bernoulli(0.5))
        loc = torch.as_tensor(3.0 * leak(z))
        u = pyro.sample("u", dist.Bernoulli(0.5))
        pyro.sample("x", dist.Normal(loc + 0.1 * u, 1.0), obs=torch.tensor(3.0))

    def guide():
        theta = pyro.param("theta", torch.tensor(VALUES))
        z = pyro.sample("z", dist.Bernoulli(logits=theta[0]))
        pyro.sample("u", dist.Bernoulli(logits=theta[1] - 0.5 * leak(z)))

    return model, guide


def bound(theta):
    value = 0.0
    for z, u in np.ndindex(2, 2):
        log_q = oracles.log_bernoulli(theta[0], z) + oracles.log_bernoulli(theta[1] - 0.5 * z, u)
        log_p = 2 * np.log(0.5) + oracles.log_normal(3.0, 3.0 * z + 0.1 * u, 1.0)
        value = value + np.exp(log_q) * (log_p - log_q)
    return value


EXACT = -oracles.gradient(bound, VALUES)


def draws(leak, seed, of_u=FROM_U, num_draws=300):
    model, guide = programs(leak)
    return gradients(Loss(estimators={"z": SCORE, "u": of_u}), model, guide, seed, num_draws)


def gradients(loss, model, guide, seed, num_draws=300):
    """Of the parameter `theta`."""
    pyro.set_rng_seed(seed % 2**31)
    found = []
    for _ in range(num_draws):
        loss.loss_and_grads(model, guide)
        leaf = pyro.get_param_store()._params["theta"]
        found.append(leaf.grad.numpy().copy())
        leaf.grad = None
    return np.array(found)


def test_a_leak_after_one_that_looks_at_memory(request):
    _, guide = programs(integers_through_vmap)

    def model():
        u = pyro.sample("u", dist.Bernoulli(0.5))
        seen = float(u.numpy())
        loc = 3.0 * integers_through_vmap(pyro.sample("z", dist.Bernoulli(0.5)))
        pyro.sample("x", dist.Normal(loc + 0.1 * seen, 1.0), obs=torch.tensor(3.0))

    seed = oracles.seed_of(request.node.name)
    loss = Loss(estimators={"z": SCORE, "u": FROM_U})
    oracles.check_unbiased(gradients(loss, model, guide, seed), EXACT)


def test_a_plan_made_in_inference_mode_is_as_good(request):
    model, guide = programs(integers_through_vmap)
    loss = Loss(estimators={"z": SCORE, "u": FROM_U})
    guide()  # makes the parameter
    with torch.inference_mode():
        loss.loss(model, guide)
    seed = oracles.seed_of(request.node.name)
    oracles.check_unbiased(gradients(loss, model, guide, seed), EXACT)


@pytest.mark.parametrize("leak", LEAKS, ids=lambda leak: leak.__name__)
def test_unbiased_where_a_value_leaves_the_tensors(leak, request):
    oracles.check_unbiased(draws(leak, oracles.seed_of(request.node.name)), EXACT)


@pytest.mark.parametrize("leak", [branch, write, item], ids=lambda leak: leak.__name__)
def test_mutant_that_ignores_leaks(leak, request, monkeypatch):
    def plain(self, func, types, args=(), kwargs=None):
        return func(*args, **(kwargs or {}))

    monkeypatch.setattr(pyro_backend._Leaks, "__torch_function__", plain)
    monkeypatch.setattr(LeakProbe, "_report", lambda *args: None)
    biased = draws(leak, oracles.seed_of(request.node.name))
    assert oracles.largest_z(biased, EXACT) >= 8


@pytest.mark.parametrize("name", [*WAYS, "followed"])
def test_worlds_where_a_value_leaves_the_tensors(name):
    """Enumerated, so that one draw is exact."""
    way = WAYS.get(name, copy.deepcopy)
    model, guide = programs(lambda z: torch.as_tensor(way(z)))
    loss = Loss(estimators={"z": vi.Enumerate(), "u": vi.Enumerate()})
    np.testing.assert_allclose(gradients(loss, model, guide, 0, 1)[0], EXACT, rtol=1e-6)


@pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)
def test_what_comes_later_enters_where_a_value_leaves_the_tensors(way):
    def model(constant):
        z = pyro.sample("z", dist.Bernoulli(0.5))
        pyro.sample("u", dist.Bernoulli(0.5))
        way(z)
        pyro.factor("of none", torch.tensor(constant))

    plain = gradient(lambda: model(0.0), global_guide, vi.Score(), 0)
    shifted = gradient(lambda: model(HUGE), global_guide, vi.Score(), 0)
    assert (plain - shifted)[0].abs() > 1e6
    assert plain[1] == shifted[1]


def test_beside_an_enumerated_site(request):
    seed = oracles.seed_of(request.node.name)
    oracles.check_unbiased(draws(branch, seed, vi.Enumerate()), EXACT)


def gradient(model, guide, estimators, seed):
    """Of the parameter `logits`, in one draw."""
    pyro.set_rng_seed(seed)
    Loss(estimators=estimators).loss_and_grads(model, guide)
    leaf = pyro.get_param_store()._params["logits"]
    result, leaf.grad = leaf.grad.clone(), None
    return result


HUGE = 1e9


def plate_guide():
    logits = pyro.param("logits", torch.tensor([0.2, -0.3, 0.5]))
    with pyro.plate("data", 3):
        pyro.sample("z", dist.Bernoulli(logits=logits))


def plate_model(constant=0.0):
    def model():
        with pyro.plate("data", 3):
            z = pyro.sample("z", dist.Bernoulli(0.5))
            pyro.sample("x", dist.Normal(z, 1.0), obs=torch.tensor([0.1, 1.2, -0.4]))
            pyro.factor("constant", torch.tensor([constant, 0.0, 0.0]) * z)

    return model


@pytest.mark.parametrize("estimator", [vi.Score(), vi.MeasureValued()], ids=repr)
def test_other_elements_of_a_plate_do_not_enter(estimator):
    for seed in range(5):
        plain = gradient(plate_model(), plate_guide, estimator, seed)
        shifted = gradient(plate_model(HUGE), plate_guide, estimator, seed)
        assert torch.equal(plain[1:], shifted[1:])
    assert shifted[0].abs() > 1e6 or plain[0] == shifted[0]


def global_guide():
    logits = pyro.param("logits", torch.tensor([0.2, -0.3]))
    pyro.sample("z", dist.Bernoulli(logits=logits[0]))
    pyro.sample("u", dist.Bernoulli(logits=logits[1]))


def global_model(constant=0.0, leak=None):
    def model():
        z = pyro.sample("z", dist.Bernoulli(0.5))
        u = pyro.sample("u", dist.Bernoulli(0.5))
        pyro.factor("of u", constant * u)
        pyro.factor("of none", torch.tensor(constant))
        value = z if leak is None else leak(z)
        pyro.sample("x", dist.Normal(torch.as_tensor(value), 1.0), obs=torch.tensor(0.7))

    return model


@pytest.mark.parametrize(
    "leak", [None, branch, write, item], ids=lambda leak: getattr(leak, "__name__", "none")
)
def test_terms_of_other_sites_do_not_enter(leak):
    """Nor do terms before the statement by which a value leaves the tensors."""
    plain, shifted = (
        torch.stack(
            [gradient(global_model(c, leak), global_guide, vi.Score(), s)[0] for s in range(20)]
        )
        for c in (0.0, HUGE)
    )
    assert torch.equal(plain, shifted)
    assert plain.var() > 0


def test_terms_after_a_leak_do_enter():
    """What comes later may depend on the value in a way that no tensor shows: it has to be kept."""

    def model(constant):
        z = pyro.sample("z", dist.Bernoulli(0.5))
        pyro.sample("u", dist.Bernoulli(0.5))
        z.item()
        pyro.factor("of none", torch.tensor(constant))

    plain = gradient(lambda: model(0.0), global_guide, vi.Score(), 0)
    shifted = gradient(lambda: model(HUGE), global_guide, vi.Score(), 0)
    assert (plain - shifted)[0].abs() > 1e6
    assert plain[1] == shifted[1]


@pytest.mark.parametrize("scale", [1.0, 0.01])
def test_a_site_of_which_the_likelihood_knows_nothing(scale):
    """The log density of a Gamma makes a tensor of its value anew, which must not count as a leak."""

    def model():
        pyro.sample("a", dist.Gamma(2.0, 1.0))
        b = pyro.sample("b", dist.Normal(0.0, 1.0))
        pyro.sample("x", dist.Normal(b, scale), obs=torch.tensor(3.0))

    def guide():
        pyro.sample("a", dist.Gamma(pyro.param("p", torch.tensor(1.5)), 1.0))
        pyro.sample("b", dist.Normal(torch.tensor(0.5), 1.0))

    pyro.clear_param_store()
    pyro.set_rng_seed(0)
    loss, grads = Loss(vi.elbo(), vi.Score()), []
    for _ in range(200):
        loss.loss_and_grads(model, guide)
        leaf = pyro.get_param_store()._params["p"]
        grads.append(leaf.grad.item())
        leaf.grad = None
    assert np.var(grads) < 5.0  # 37 and 2e9 if x counts


BRANCHES = torch.jit.CompilationUnit("""
def either(z, b):
    if bool(z > 0.5):
        r = z * 0.0 + 3.0
    else:
        r = b * 1.0
    return r
""")


def test_what_another_branch_of_a_script_sees_enters():
    """Of two sites a run of the script sees only one."""

    def model():
        z = pyro.sample("z", dist.Bernoulli(torch.tensor(0.4)))
        b = pyro.sample("b", dist.Bernoulli(torch.tensor(0.6)))
        pyro.sample("x", dist.Normal(BRANCHES.either(z, b), 1.0), obs=torch.tensor(1.3))

    def guide():
        pyro.sample("z", dist.Bernoulli(torch.tensor(0.3)))
        pyro.sample("b", dist.Bernoulli(torch.tensor(0.2)))

    loss = Loss(estimators=vi.Score())
    plan = loss._plan(loss._programs(model, guide, (), {}))
    assert plan.provenance == {"z", "b"}
