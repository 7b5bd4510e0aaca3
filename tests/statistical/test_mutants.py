"""The statistical rule has teeth: an estimator with one mistake in it is rejected, and passes without."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
from array_api_compat import array_namespace

import vi_kit as vi
from tests import oracles
from tests.cases import TwoLevelBernoulli
from tests.statistical_cases import ConjugateNormal, SubsampledBernoulli, TwoNormals, exact
from vi_kit.costs import downstream, nonlinear, terms, worlds
from vi_kit.costs.downstream import Downstream
from vi_kit.estimators import others, score
from vi_kit.language import replicates, varied

SCORE, LOO = vi.Score(), vi.Score(vi.LeaveOneOut())
MEASURE, LOCAL = vi.MeasureValued(), vi.Enumerate(max_worlds=255)
ELBO, IWAE = vi.elbo(), vi.iwae(num_particles=2)


@vi.objective
def mean_of_two(model, guide):
    return vi.iid(lambda: ELBO(model, guide), 2).mean()


@vi.objective
def and_held(model, guide):
    w = ELBO(model, guide)
    return w + vi.stop_gradient(w)


# The mistakes


def nothing(patch):
    del patch


def no_score_term(patch):
    patch.setattr(vi.Score, "contract", lambda self, downstream: downstream.terms)


def density_held_in_score(patch):
    given = Downstream.given
    patch.setattr(Downstream, "given", lambda *args: terms.stopped(given(*args)))


def own_sample_kept(patch):
    def mean_of_all(named, axis):
        everything = named.sum([axis]).scaled((axis.size - 1) / axis.size)
        return everything.broadcast([others.hidden(axis)])

    patch.setattr(others, "_others", mean_of_all)


def all_swapped_at_once(patch):
    def swap_all(self, base, other):
        xp = array_namespace(*other)
        shape = xp.broadcast_arrays(*base, *other)[0].shape
        return xp.broadcast_to(self.fn(*other)[None], shape)

    patch.setattr(nonlinear.Reduction, "swap_one", swap_all)
    patch.setattr(replicates.LogMeanExp, "swap_one", swap_all)


def no_stop_gradient(patch):
    stopped = terms.stopped
    for module in (terms, downstream, nonlinear, worlds, score):
        patch.setattr(module, "stopped", lambda named: named)
    patch.setattr(downstream, "centred", lambda x: x - stopped(x))


def classical_surrogate(patch):
    """log q times worth, where vi_kit has log q minus itself and so loses any gradient of worth."""
    patch.setattr(downstream, "centred", lambda named: named)


def worth_with_gradient(patch):
    no_stop_gradient(patch)
    classical_surrogate(patch)


def weights_held(patch):
    weights = worlds._exp
    patch.setattr(worlds, "_exp", lambda named: terms.stopped(weights(named)))


def slope_of_every_site(patch):
    slopes = varied._slopes
    patch.setattr(varied, "_slopes", lambda draw, name: slopes(draw, next(iter(draw.factors))))


def sum_for_mean(patch):
    patch.setattr(replicates.Replicates, "mean", replicates.Replicates.sum)


def scale_in_score(patch):
    given = Downstream.given

    def scaled(self, what):
        return given(self, what).scaled(math.prod(a.scale for a in self.site.axes))

    patch.setattr(Downstream, "given", scaled)


@dataclass(frozen=True)
class Mutant:
    """A mistake, where it shows, and what it is compared with."""

    mistake: Callable[[pytest.MonkeyPatch], None]
    objective: vi.Objective
    estimator: vi.Estimator
    case: Any = TwoLevelBernoulli
    correct: Callable[[pytest.MonkeyPatch], None] = nothing
    num_draws: int = 60

    def __repr__(self):
        names = self.mistake, self.objective.program, type(self.estimator), self.case
        return "-".join(named.__name__ for named in names)

    @functools.cached_property
    def exact(self):
        num_particles = dict(self.objective.settings).get("num_particles", 1)
        if self.case is TwoLevelBernoulli:
            return TwoLevelBernoulli.exact(num_particles)
        return exact(self.case, num_particles)


MUTANTS = [
    Mutant(no_score_term, ELBO, SCORE),
    Mutant(no_score_term, IWAE, LOO),
    Mutant(no_score_term, ELBO, SCORE, ConjugateNormal),
    Mutant(density_held_in_score, ELBO, SCORE),
    Mutant(own_sample_kept, IWAE, LOO),
    Mutant(own_sample_kept, mean_of_two(), LOO),
    Mutant(all_swapped_at_once, IWAE, MEASURE, ConjugateNormal),
    Mutant(all_swapped_at_once, IWAE, LOCAL),
    Mutant(all_swapped_at_once, IWAE, LOO),
    Mutant(no_stop_gradient, and_held(), SCORE),
    Mutant(worth_with_gradient, ELBO, SCORE, correct=classical_surrogate),
    Mutant(weights_held, ELBO, LOCAL),
    Mutant(weights_held, IWAE, LOCAL),
    Mutant(slope_of_every_site, IWAE, vi.DoublyReparam(), TwoNormals),
    Mutant(sum_for_mean, mean_of_two(), LOO),
    Mutant(scale_in_score, ELBO, LOO, SubsampledBernoulli, num_draws=500),
]


@pytest.mark.parametrize("mutant", MUTANTS, ids=repr)
def test_mutant_is_rejected(mutant, lib, request, monkeypatch):
    def draws(patch):
        loss = lib.Loss(mutant.objective, mutant.estimator, num_samples=1000)
        seed = oracles.seed_of(request.node.name)
        with monkeypatch.context() as patched:
            patch(patched)
            return mutant.case(lib).gradients(loss, mutant.num_draws, seed)

    oracles.check_unbiased(draws(mutant.correct), mutant.exact)
    assert oracles.largest_z(draws(mutant.mistake), mutant.exact) >= 8
