"""What to cite for a run: BibTeX of its objective, estimators and algorithms."""

from __future__ import annotations

import importlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import fields, is_dataclass
from typing import Any

from vi_kit.base.errors import ObjectiveError, message
from vi_kit.engine.loss import CommonLoss
from vi_kit.estimators import Estimator, Policy
from vi_kit.estimators.baselines import Baseline
from vi_kit.language.annealing import AIS
from vi_kit.language.kernels import Hamiltonian, Langevin
from vi_kit.language.marginal import Exact, ImportanceSampling, Marginal
from vi_kit.language.normalize import SIR, Normalized
from vi_kit.language.objective import Objective
from vi_kit.language.smc import SMC
from vi_kit.workflow.asking import Trained
from vi_kit.workflow.profile import chosen_by

ALGORITHMS = (Exact, ImportanceSampling, SIR, SMC, AIS, Langevin, Hamiltonian)
KINDS = (Estimator, Policy, Baseline, Marginal, Normalized, *ALGORITHMS)
"""What has sources, besides objectives."""
PARTS = ("algorithm", "kernel")
"""Fields whose values count whoever has written them."""
WORDS = {Marginal: "marginal", Normalized: "normalize"}
"""What makes such programs."""


def citation(objective: Any = None, estimators: Any = None) -> str:
    """What to cite, as BibTeX: vi_kit, its library, and the sources of the objective and of all estimators used.

    Comments say what each entry is for. What is of your own is named in one, since only you know its source. Of a
    `Fit` it is the estimators that its sites had, of a `Loss` those of the programs that it has met, or else those that
    it was given. What estimators hold (baselines, fallbacks) and what programs are made of (`vi.marginal`,
    `vi.normalize`) is included.

    Args:
        objective: an objective, a `Loss` or a `Fit`.
        estimators: one, several, or a dict by site; also baselines, algorithms such as `vi.SMC(...)`, and programs made
            by `vi.marginal` or `vi.normalize`.

    Returns:
        The text of a .bib file. Titles, authors, venues and years only; no pages or identifiers.

    Raises:
        ObjectiveError: something is none of these.

    Example:
        >>> import vi_kit as vi
        >>> print(vi.citation(vi.iwae(num_particles=5), {"z": vi.Reparam()}))
        % vi_kit: vi_kit
        % iwae: burda2016importance
        % Reparam: kingma2014auto, figurnov2018implicit
        <BLANKLINE>
        @software{vi_kit,
        ...
        @inproceedings{burda2016importance,
          author = {Burda, Yuri and Grosse, Roger and Salakhutdinov, Ruslan},
          title = {{Importance Weighted Autoencoders}},
          booktitle = {International Conference on Learning Representations},
          year = {2016},
        }
        ...
    """
    first, bad = _of_first(objective)
    given = list(_listed(estimators))
    bad += [x for x in given if not isinstance(x, KINDS)]
    if bad:
        raise _unknown(bad)
    return _text(part for thing in (*first, *given) for part in _used(thing))


def _of_first(thing: Any) -> tuple[list[Any], list[Any]]:
    """What the first argument stands for, and what of it is not known. A library is its name."""
    if thing is None:
        return [], []
    if isinstance(thing, Objective):
        return [thing], []
    if isinstance(thing, Trained):
        return _of_fit(thing), []
    if isinstance(thing, CommonLoss):
        chosen = [e for plan in thing.plans for e in chosen_by(plan).values()]
        return _of_loss(thing, chosen), []
    return [], [thing]


def _of_fit(fit: Trained) -> list[Any]:
    replay = fit.loss.replay(fit.model, fit.guide, fit.args, dict(fit.kwargs), fit.params)
    chosen = list(chosen_by(replay.plan(fit.loss)).values())
    programs = [p for p in (fit.model, fit.guide) if isinstance(p, KINDS)]
    return [*_of_loss(fit.loss, chosen), *programs]


def _of_loss(loss: CommonLoss, chosen: Sequence[Estimator]) -> list[Any]:
    """What it was given stands for what it chose, where it has not met programs; policies choose between others."""
    given = list(_listed(loss.settings.estimators))
    policies = [x for x in given if isinstance(x, Policy)]
    return [loss.library, loss.settings.objective, *policies, *(chosen or given)]


def _listed(things: Any) -> Iterable[Any]:
    if things is None:
        return ()
    if isinstance(things, Mapping):
        return things.values()
    return things if isinstance(things, list | tuple) else (things,)


def _used(thing: Any) -> Iterator[Any]:
    """It, and what it holds that may have a source."""
    yield thing
    if isinstance(thing, str | Objective) or not is_dataclass(thing):
        return
    for field in fields(thing):
        for part in _listed(getattr(thing, field.name)):
            if isinstance(part, KINDS) or field.name in PARTS:
                yield from _used(part)


def _text(things: Iterable[Any]) -> str:
    """Comments, then entries, each once and in the order in which they are met."""
    from vi_kit.workflow.references import ENTRIES, SOURCES  # only where somebody asks

    notes, keys = {"vi_kit": "vi_kit"}, {}
    for thing in things:
        name, is_ours, known = _named(thing)
        own = [key for word in known for key in SOURCES.get(word, ())]
        keys |= dict.fromkeys(own)
        said = ", ".join(own) if is_ours else "of your own" + ("; " if own else "") + ", ".join(own)
        if said:
            notes.setdefault(name, said)
    comments = "\n".join(f"% {name}: {said}" for name, said in notes.items())
    return "\n\n".join([comments, _software(), *(ENTRIES[key].text(key) for key in keys)]) + "\n"


def _named(thing: Any) -> tuple[str, bool, list[str]]:
    """Its name, whether it is vi_kit's, and the names under which the table may have it: of a class also those that it
    is made from."""
    if isinstance(thing, str):
        return thing, True, [thing]
    if isinstance(thing, Objective):
        name, is_ours = thing.program.__name__, _is_ours(thing.program)
        return name, is_ours, [name] * is_ours
    cls = type(thing)
    ours = [WORDS.get(c, c.__name__) for c in cls.__mro__ if _is_ours(c)]
    return WORDS.get(cls, cls.__name__), _is_ours(cls), ours[:1]


def _is_ours(thing: Any) -> bool:
    return thing.__module__.startswith("vi_kit.")


def _software() -> str:
    version = importlib.import_module("vi_kit").__version__
    fields = (
        r"  title = {{vi\_kit: Variational objectives as programs for Pyro and NumPyro}},",
        f"  version = {{{version}}},",
    )
    return "\n".join(["@software{vi_kit,", *fields, "}"])


def _unknown(bad: Sequence[Any]) -> ObjectiveError:
    """The error about all that is neither an objective nor something that is used with one."""
    uncalled = [x for x in bad if callable(x) and hasattr(x, "__name__")]
    return ObjectiveError(
        message(
            "citation: no source is known of what is neither objective, loss, fit, estimator, baseline nor algorithm",
            got=", ".join(getattr(x, "__name__", repr(x)) for x in bad),
            expected="an objective, a Loss or a Fit first; then estimators, baselines, algorithms; all of them values",
            fix=f"call it with its settings: {uncalled[0].__name__}(...)"
            if uncalled
            else 'vi.citation(vi.elbo(), {"z": vi.Reparam()})',
        )
    )
