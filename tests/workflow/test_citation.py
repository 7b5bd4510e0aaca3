"""`vi.citation`: every source has an entry, every entry is what a docstring refers to, and what is used is cited."""

import inspect
import re
import subprocess
import sys
from dataclasses import dataclass

import pytest

import vi_kit as vi
from tests.workflow.programs import normals
from vi_kit.workflow.references import ENTRIES, SOURCES

NO_SOURCE = {"Constant", "MovingAverage", "ScaledBaseline", "SumOfBaselines"}
ABSTRACT = {"Estimator", "Baseline", "Generator", "Objective"}
NO_STRATEGY = {"Expansion", "Rejector"}
LANGUAGE = {"AIS", "Exact", "Hamiltonian", "ImportanceSampling", "Langevin", "SIR", "SMC"} | {
    "marginal",
    "normalize",
}
LIBRARIES = {"Pyro", "NumPyro"}
MARKS = {r"\'e": "é", r"\'a": "á", r"\"o": "ö", r"\"u": "ü", r"\"O": "Ö", r"\o": "ø"}


def exported():
    baselines = {
        n
        for n in vi.__all__
        if isinstance(getattr(vi, n), type) and issubclass(getattr(vi, n), vi.Baseline)
    }
    return baselines | {*vi.estimators.__all__, *vi.objectives.__all__} | LANGUAGE


def keys_in(text):
    return re.findall(r"^@\w+\{([^,]+),$", text, re.MULTILINE)


def notes_in(text):
    return dict(re.findall(r"^% (.+?): (.+)$", text, re.MULTILINE))


def plain(text):
    for mark, letter in MARKS.items():
        text = text.replace(f"{{{mark}}}", letter)
    return text


def test_all_that_is_exported_has_a_source_or_is_known_to_have_none():
    assert exported() - NO_SOURCE - ABSTRACT - NO_STRATEGY == SOURCES.keys() - LIBRARIES


def test_every_entry_is_used_and_every_key_is_known():
    assert {key for keys in SOURCES.values() for key in keys} == ENTRIES.keys()
    assert list(ENTRIES) == sorted(ENTRIES)


@pytest.mark.parametrize("name", sorted(SOURCES.keys() - LIBRARIES))
def test_sources_are_those_of_the_docstring(name):
    *_, references = inspect.getdoc(getattr(vi, name)).partition("References:")
    assert references
    words = " ".join(references.split())
    for key in SOURCES[name]:
        surname = plain(ENTRIES[key].authors).split(",")[0]
        assert re.search(rf"\b{surname}\b\D* {ENTRIES[key].year}\b", words), key


@pytest.mark.parametrize("key", ENTRIES)
def test_entries_are_well_formed(key):
    entry = ENTRIES[key]
    text, depth = entry.text(key), 0
    for letter in text:
        depth += {"{": 1, "}": -1}.get(letter, 0)
        assert depth >= 0
    assert depth == 0 and text.isascii()
    surname = re.sub(r"\W", "", plain(entry.authors).split(",")[0]).lower().replace("ø", "o")
    assert key.startswith(f"{surname}{entry.year}")
    authors = entry.authors.split(" and ")
    assert all(a == "others" or a.count(",") == 1 for a in authors)


MIXTURE = """\
% vi_kit: vi_kit
% ciwae: rainforth2018tighter
% Score: williams1992simple
% NeuralBaseline: mnih2014neural
% LeaveOneOut: kool2019buy, mnih2016variational
% Annealed: shao2025zero
% Analytic: shao2025zero, ranganath2014black
% Reparam: kingma2014auto, figurnov2018implicit
% SIR: rubin1988using, cremer2017reinterpreting
% normalize: becker2024probabilistic
% AIS: neal2001annealed, thin2021monte, geffner2021mcmc, doucet2022score
% Hamiltonian: geffner2021mcmc, zhang2021differentiable
"""


def test_a_mixture_of_things():
    def guide(): ...

    nested = vi.ScaledBaseline(vi.NeuralBaseline(lambda x: x)) + vi.LeaveOneOut()
    given = [
        vi.Score(nested),
        vi.Annealed(vi.Analytic(fallback=vi.Reparam()), vi.Score(), lambda step: 1.0),
        vi.SIR(vi.normalize(guide, vi.AIS(guide, 2, kernel=vi.Hamiltonian(0.1))), 3),
    ]
    text = vi.citation(vi.ciwae(num_particles=5, beta=0.5), given)
    assert text.startswith(MIXTURE + "\n@software{vi_kit,\n")
    keys = keys_in(text)
    assert len(keys) == len({*keys}) == 18
    assert keys[:4] == ["vi_kit", "rainforth2018tighter", "williams1992simple", "mnih2014neural"]
    assert text == vi.citation(vi.ciwae(num_particles=5, beta=0.5), given)
    assert f"version = {{{vi.__version__}}}" in text


def test_what_is_of_ones_own_is_named():
    @vi.objective
    def iwae(model, guide):
        return vi.log_density(model, vi.simulate(guide))

    @dataclass(frozen=True)
    class Half(vi.Baseline):
        def subtracted(self, others):
            return others.constant(0.5)

    class Mine(vi.Score):
        pass

    text = vi.citation(iwae(), {"a": Mine(Half()), "b": Mine()})
    assert notes_in(text) == {
        "vi_kit": "vi_kit",
        "iwae": "of your own",
        "Mine": "of your own; williams1992simple",
        "Half": "of your own",
    }
    assert keys_in(text) == ["vi_kit", "williams1992simple"]


def test_of_a_loss_and_of_a_fit(lib):
    model, guide, args = normals(lib)
    library = {"pyro": "Pyro", "numpyro": "NumPyro"}[lib.name]
    loss = lib.Loss(vi.iwae(num_particles=2), {"z": vi.DoublyReparam(), "other": vi.Score()})
    before = notes_in(vi.citation(loss))
    assert [*before] == ["vi_kit", library, "iwae", "DoublyReparam", "Score"]
    fit = lib.fit(model, guide, *args, num_steps=2)
    after = vi.citation(fit)
    assert [*notes_in(after)] == ["vi_kit", library, "elbo", "Reparam"]
    assert keys_in(after)[1] == SOURCES[library][0]


def test_of_a_loss_that_has_met_its_programs():
    import torch

    from tests.libraries import PyroWords

    lib = PyroWords()
    model, guide, args = normals(lib)
    loss = lib.Loss(estimators={"z": vi.DoublyReparam(), "*": vi.Score()})
    with torch.no_grad():
        loss.loss(model, guide, *args)
    assert [*notes_in(vi.citation(loss))] == ["vi_kit", "Pyro", "elbo", "DoublyReparam"]


def test_nothing_and_what_has_no_source():
    assert keys_in(vi.citation()) == ["vi_kit"]
    assert keys_in(vi.citation(None, vi.MovingAverage())) == ["vi_kit"]


def test_what_is_not_known_is_refused_at_once():
    with pytest.raises(vi.ObjectiveError) as error:
        vi.citation(vi.iwae, {"z": vi.Score, "y": 3})
    assert str(error.value) == (
        "citation: no source is known of what is neither objective, loss, fit, estimator, baseline nor algorithm\n"
        "  got:      iwae, Score, 3\n"
        "  expected: an objective, a Loss or a Fit first; then estimators, baselines, algorithms; all of them values\n"
        "  fix:      call it with its settings: iwae(...)"
    )


def test_the_table_is_read_only_when_asked_for():
    code = "import sys, vi_kit; assert 'vi_kit.workflow.references' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
