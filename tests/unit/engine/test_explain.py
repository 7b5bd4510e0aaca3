"""How a site gets its estimator, and the table that says so."""

import itertools

import pyro
import pyro.distributions as dist
import pytest
import torch

import vi_kit as vi
from vi_kit.pyro import Loss

TABLE = """\
site   distribution  plates        estimator                                                    chosen by    why
-----  ------------  ------------  -----------------------------------------------------------  -----------  -----------------------------------------------------------
b      Bernoulli     -             MeasureValued()                                              pattern 'b'  you said so
group  Categorical   groups        Enumerate(max_worlds=64)                                     default      3 values, at most 64
count  Poisson       data, groups  Score(baseline=MovingAverage(decay=0.9, per_element=False))  default      no reparameterised sampler; support is not fixed and finite
z      Normal (2,)   data, groups  Reparam()                                                    default      Normal has a reparameterised sampler"""  # noqa: E501

NOTES = """

pattern 'b': b
a step evaluates the model on 6 draws: 3 joint values of enumerated sites x 2 values and their alternatives"""


def model():
    b = pyro.sample("b", dist.Bernoulli(0.5))
    with pyro.plate("groups", 4, dim=-1):
        group = pyro.sample("group", dist.Categorical(torch.ones(3)))
        with pyro.plate("data", 5, dim=-2):
            count = pyro.sample("count", dist.Poisson(1.0 + group))
            pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(b + count, 1.0), obs=torch.zeros(5, 4))


def guide():
    logit = pyro.param("logit", torch.tensor(0.2))
    pyro.sample("b", dist.Bernoulli(logits=logit))
    with pyro.plate("groups", 4, dim=-1):
        pyro.sample("group", dist.Categorical(torch.ones(3)))
        with pyro.plate("data", 5, dim=-2):
            pyro.sample("count", dist.Poisson(2.0))
            pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))


def rows(loss, *programs):
    """Estimator, rule and reason by site, read from the table."""
    table, _, notes = loss.explain(*programs).partition("\n\n")
    assert "a step evaluates the model on" in notes
    starts = [0]
    rule = table.splitlines()[1]
    for width in rule.split():
        starts.append(starts[-1] + len(width) + 2)
    cells = [
        [line[a : b - 2].strip() for a, b in itertools.pairwise(starts)]
        for line in table.splitlines()[2:]
    ]
    return {c[0]: tuple(c[3:5]) for c in cells}, {c[0]: c[5] for c in cells}


def single(distribution, infer=None):
    def program():
        pyro.sample("z", distribution, infer=infer or {})

    return program, program


BERNOULLI = dist.Bernoulli(torch.tensor(0.5))
POISSON = dist.Poisson(torch.tensor(2.0))
ANNOTATED = {"estimator": vi.MeasureValued()}


def test_the_table():
    assert Loss(vi.elbo(), {"b": vi.MeasureValued()}).explain(model, guide) == TABLE + NOTES


@pytest.mark.parametrize(
    ("estimators", "infer", "estimator", "rule"),
    [
        (None, None, "Enumerate(max_worlds=64)", "default"),
        (None, ANNOTATED, "MeasureValued()", "infer"),
        ({"z": vi.Score()}, ANNOTATED, "Score(baseline=Constant(value=0.0))", "pattern 'z'"),
        ({"*": vi.Score()}, ANNOTATED, "Score(baseline=Constant(value=0.0))", "pattern '*'"),
        (vi.Enumerate(), ANNOTATED, "Enumerate(max_worlds=1024)", "pattern '*'"),
        ({"?": vi.Enumerate(8), "z": vi.Score()}, None, "Enumerate(max_worlds=8)", "pattern '?'"),
        (
            {"[a-z]": vi.MeasureValued(), "z": vi.Score()},
            None,
            "MeasureValued()",
            "pattern '[a-z]'",
        ),
    ],
)
def test_pattern_before_annotation_before_default(estimators, infer, estimator, rule):
    chosen, _ = rows(Loss(vi.elbo(), estimators), *single(BERNOULLI, infer))
    assert chosen == {"z": (estimator, rule)}


def test_first_matching_pattern_wins_per_site():
    def program():
        for name in ("ab", "ac", "bc"):
            pyro.sample(name, BERNOULLI)

    estimators = {"a*": vi.Score(), "ab": vi.MeasureValued(), "*c": vi.Enumerate()}
    loss = Loss(vi.elbo(), estimators)
    chosen, _ = rows(loss, program, program)
    assert [rule for _, rule in chosen.values()] == ["pattern 'a*'", "pattern 'a*'", "pattern '*c'"]


@pytest.mark.parametrize(
    ("distribution", "objective", "num_samples", "estimator"),
    [
        (dist.Normal(0.0, 1.0), vi.elbo(), 1, "Reparam()"),
        (dist.Gamma(2.0, 1.0), vi.elbo(), 1, "Reparam()"),
        (dist.Delta(torch.tensor(1.0)), vi.elbo(), 1, "Reparam()"),
        (BERNOULLI, vi.elbo(), 1, "Enumerate(max_worlds=64)"),
        (dist.Categorical(torch.ones(64)), vi.elbo(), 1, "Enumerate(max_worlds=64)"),
        (dist.Categorical(torch.ones(65)), vi.elbo(), 1, "MovingAverage"),
        (dist.Categorical(torch.ones(65)), vi.elbo(), 2, "LeaveOneOut"),
        (dist.Categorical(torch.ones(65)), vi.iwae(num_particles=2), 1, "LeaveOneOut"),
        (dist.Categorical(torch.ones(65)), vi.iwae(num_particles=1), 1, "MovingAverage"),
        (POISSON, vi.elbo(), 1, "MovingAverage"),
        (POISSON, vi.elbo(), 2, "LeaveOneOut"),
        (POISSON, vi.miwae(num_outer=1, num_inner=3), 1, "LeaveOneOut"),
    ],
)
@pytest.mark.parametrize("vectorize", [True, False])
def test_default_rule(distribution, objective, num_samples, estimator, vectorize):
    loss = Loss(objective, num_samples=num_samples, vectorize=vectorize)
    chosen, _ = rows(loss, *single(distribution))
    assert estimator in chosen["z"][0]
    assert chosen["z"][1] == "default"


def joint(num_values, num_sites, together=True):
    """Sites of `num_values` each, all of which one term sees (or each has a term of its own)."""

    def model():
        zs = [
            pyro.sample(f"z{i}", dist.Categorical(torch.ones(num_values))) for i in range(num_sites)
        ]
        groups = [sum(zs)] if together else zs
        for i, z in enumerate(groups):
            pyro.sample(f"x{i}", dist.Normal(z * 1.0, 1.0), obs=torch.tensor(0.0))

    def guide():
        for i in range(num_sites):
            pyro.sample(f"z{i}", dist.Categorical(torch.ones(num_values)))

    return model, guide


@pytest.mark.parametrize(
    ("num_values", "num_sites", "together", "sampled"),
    [
        (8, 2, True, []),
        (2, 6, True, []),
        (2, 7, True, ["z6"]),
        (2, 9, True, ["z6", "z7", "z8"]),
        (9, 2, True, ["z1"]),
        (9, 4, False, []),
    ],
)
def test_enumeration_gives_way_above_64_joint_values(num_values, num_sites, together, sampled):
    chosen, why = rows(Loss(), *joint(num_values, num_sites, together))
    assert [name for name, (estimator, _) in chosen.items() if "Score" in estimator] == sampled
    assert all("over 64 joint values" in why[name] for name in sampled)
    Loss().loss_and_grads(*joint(num_values, num_sites, together))


def test_a_site_that_the_user_enumerates_is_not_demoted():
    chosen, _ = rows(Loss(vi.elbo(), {"z6": vi.Enumerate()}), *joint(2, 7))
    assert chosen["z6"] == ("Enumerate(max_worlds=1024)", "pattern 'z6'")


def test_repr_of_a_loss():
    assert repr(Loss()) == "Loss(elbo())"
    loss = Loss(vi.iwae(num_particles=5), {"a*": vi.Score(vi.LeaveOneOut())}, num_samples=3)
    assert repr(loss) == (
        "Loss(iwae(num_particles=5), estimators={'a*': Score(baseline=LeaveOneOut())}, num_samples=3)"
    )
    assert repr(Loss(estimators=vi.Reparam())) == "Loss(elbo(), estimators=Reparam())"


def test_values_are_equal_by_content():
    assert vi.elbo() == vi.elbo()
    assert vi.iwae(num_particles=5) == vi.iwae(5)
    assert vi.iwae(num_particles=5) != vi.iwae(num_particles=6)
    assert vi.iwae(num_particles=1) != vi.elbo()
    assert len({vi.iwae(num_particles=5), vi.iwae(num_particles=5)}) == 1
    assert vi.Score(vi.MovingAverage(0.9)) == vi.Score(vi.MovingAverage())
    assert vi.Score() != vi.Score(vi.LeaveOneOut())
    assert vi.Enumerate() != vi.Enumerate(max_worlds=64)
    assert len({vi.Reparam(), vi.Reparam(), vi.MeasureValued()}) == 2


@pytest.mark.parametrize("objective", [vi.elbo(), vi.iwae(num_particles=2)], ids=repr)
def test_explain_changes_nothing(objective):
    pyro.param("logit", torch.tensor(0.7))
    store = pyro.get_param_store()
    before = {name: value.detach().clone() for name, value in store.items()}
    state = torch.get_rng_state()
    Loss(objective, {"count": vi.Score(vi.MovingAverage())}).explain(model, guide)
    assert torch.equal(torch.get_rng_state(), state)
    assert set(store.keys()) == set(before)
    assert all(torch.equal(store[name], value) for name, value in before.items())
    assert all(leaf.grad is None for leaf in store._params.values())


def test_explain_leaves_the_next_draw_as_it_was():
    pyro.set_rng_seed(3)
    expected = Loss().loss(model, guide)
    pyro.set_rng_seed(3)
    loss = Loss()
    loss.explain(model, guide)
    assert loss.loss(model, guide) == expected
