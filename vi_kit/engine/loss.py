"""What the losses of both libraries have in common."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, ClassVar, Self

from vi_kit.base.errors import BackendError, ObjectiveError, message, refuse_settings, whole_number
from vi_kit.engine.plan import Plan, Plans, explanation
from vi_kit.engine.select import Given
from vi_kit.engine.settings import SETTINGS, Settings
from vi_kit.engine.variance import GradientVariance, variance_of
from vi_kit.language.programs import Program, classes_told
from vi_kit.language.words import Objective


class CommonLoss:
    """Stands in front of a library's own class of losses. See `vi_kit.pyro.Loss` and `vi_kit.numpyro.Loss`."""

    library: ClassVar[str]
    """Whose programs it is for."""

    replays: ClassVar[Callable[..., Any]]
    """Runs programs plainly, for `vi.check_unbiased`."""

    drawn: ClassVar[Callable[..., Any]]
    """Runs programs plainly, for `vi.sample` and what is made of draws."""

    array: ClassVar[Callable[[Any], Any]]
    """An array of the library from one of NumPy's."""

    state_is_given: ClassVar[bool] = False
    """Whether programs are given what modules keep from step to step as they are given parameters."""

    can_infer_discrete = True

    def __init__(
        self,
        objective: Objective | None = None,
        estimators: Mapping[str, Given] | Given | None = None,
        *,
        num_samples: int = 1,
        max_plate_nesting: int | None = None,
        vectorize: bool | None = None,
        marginalize: Sequence[str] = (),
        **others: Any,
    ):
        refuse_settings("Loss", others, SETTINGS)
        self.settings = Settings.of(
            objective, estimators, num_samples, max_plate_nesting, vectorize, marginalize
        )
        of_library: Any = super()
        of_library.__init__(num_particles=num_samples, vectorize_particles=vectorize is not False)
        self._plans = Plans()
        self._start()

    def _start(self) -> None:
        """Make what a library's loss keeps besides its settings."""

    def __getstate__(self) -> dict[str, Any]:
        """What is pickled and copied: plans belong to the programs of this process."""
        return {**self.__dict__, "_plans": Plans()}

    def __repr__(self) -> str:
        return self.settings.describe()

    @property
    def plans(self) -> list[Plan]:
        """Those made so far, for whatever programs."""
        return [plan for of_kind in self._plans.kept.values() for plan in of_kind.values()]

    def with_estimators(self, estimators: Mapping[str, Given] | Given | None) -> Self:
        """The same loss with other estimators."""
        return self._changed(estimators, self.settings.num_samples)

    def with_samples(self, times: int) -> Self:
        """The same loss with `times` as many samples."""
        return self._changed(self.settings.estimators, times * self.settings.num_samples)

    def with_salts(self, salts: Mapping[str, Any]) -> Self:
        """The same loss, at the same state, with other random numbers at some sites: see `Settings`."""
        salted = copy.copy(self)
        salted.settings = replace(self.settings, salts=salts)
        salted._plans = self._plans
        return salted

    def _changed(self, estimators: Mapping[str, Given] | Given | None, num_samples: int) -> Self:
        own = self.settings
        return type(self)(
            own.objective,
            estimators,
            num_samples=num_samples,
            max_plate_nesting=own.max_plate_nesting,
            vectorize=own.vectorize,
            marginalize=own.selection.marginalize,
        )

    def replay(self, model: Callable, guide: Callable, args: Any, kwargs: Any, params: Any) -> Any:
        """Model and guide at their present parameters, for `vi.check_unbiased`."""
        _refuse_classes(model, guide)
        return type(self).replays(model, guide, args, kwargs, params)

    def gradient_variance(
        self,
        model: Callable,
        guide: Callable,
        *args: Any,
        num_draws: int = 200,
        seed: int = 0,
        params: Any = None,
        **kwargs: Any,
    ) -> GradientVariance:
        r"""The variance of one gradient at the present parameters, by parameter and by latent site.

        That of a parameter is summed over its coordinates. That of a site is what its random numbers contribute:
        the mean of the variance that is left where those of all other sites are held,
        $E[\mathrm{Var}(g \mid \text{the noise of all other sites})]$. By so much the variance of the whole gradient
        would fall if the expectation over this site's noise were exact. It is found by gradients in which this noise
        alone is drawn again: half the mean squared difference. The contributions add up to at least the total, and to
        more where sites interact (one noise changes what another one does). What an estimator learns is as at first.

        Args:
            model: as for `SVI`.
            guide: likewise.
            *args: of model and guide.
            num_draws: gradients; each takes one more for every site.
            seed: of the draws.
            params: NumPyro: values of the parameters, if not those that the programs start with.
            **kwargs: of model and guide.

        Returns:
            Variances, each with its standard error: of a mean of squares, as the fourth moments say. Where gradients
            have heavy tails that is too small.

        Raises:
            ObjectiveError: not a number of draws, or fewer than two.
            EstimatorError: as at the first step.

        Example:
            >>> import pyro, torch, vi_kit as vi
            >>> import pyro.distributions as dist
            >>> from vi_kit.pyro import Loss
            >>> def model():
            ...     z = pyro.sample("z", dist.Normal(0.0, 1.0))
            ...     pyro.sample("x", dist.Normal(z, 1.0), obs=torch.tensor(2.0))
            >>> def guide():
            ...     pyro.sample("z", dist.Normal(pyro.param("m", torch.tensor(0.5)), 1.0))
            >>> found = Loss().gradient_variance(model, guide, num_draws=50)
            >>> [part.name for part in found.params], [part.name for part in found.sites]
            (['m'], ['z'])
        """
        num_draws = whole_number("gradient_variance", "num_draws", num_draws, least=2)
        return variance_of(self, self.replay(model, guide, args, kwargs, params), num_draws, seed)

    def draws(self, model: Callable, guide: Callable, args: Any, kwargs: Any, params: Any) -> Any:
        """Plain runs of model and guide at some parameters (see `vi_kit.workflow.draws.Runs`)."""
        summed = self.settings.selection.marginalize
        _refuse_classes(model, guide)
        return type(self).drawn(model, guide, args, kwargs, params, summed)

    def explain(self, model: Callable, guide: Callable, *args: Any, **kwargs: Any) -> str:
        """Which estimator each latent site has, the rule that chose it, and why; no gradient is taken."""
        return self._said(*self._explained(self._programs(model, guide, args, kwargs)))

    def _said(self, plan: Plan, notes: Sequence[str] = ()) -> str:
        (other,) = {"Pyro", "NumPyro"} - {self.library}
        text = f"no latent site of {self.library}: vi_kit.{other.lower()}.Loss is for {other}'s programs"
        return explanation(plan, *notes, *[text] * (not plan.table))

    def _explained(self, programs: tuple[Program, Program]) -> tuple[Plan, list[str]]:
        """The plan, and what a library's loss has to say besides."""
        raise NotImplementedError

    def _programs(
        self, model: Callable, guide: Callable, args: Any, kwargs: Any
    ) -> tuple[Program, Program]:
        if not callable(model) or not callable(guide):
            raise self._of_other_library()
        _refuse_classes(model, guide)
        summed = ("", *self.settings.selection.marginalize)
        return Program(model, args, kwargs, "model", summed=summed), Program(
            guide, args, kwargs, "guide"
        )

    def _of_other_library(self) -> BackendError:
        """The error about a loss that is used as the other library uses its own."""
        return BackendError(
            message(
                f"vi_kit.{self.library.lower()}.Loss is a loss for {self.library}",
                got="a call as another library makes it, not of two programs",
                expected=f"the SVI of {self.library}",
                fix="Loss from vi_kit.pyro for Pyro's SVI, from vi_kit.numpyro for NumPyro's",
            )
        )


def _refuse_classes(model: Any, guide: Any) -> None:
    if texts := classes_told(model=model, guide=guide):
        raise ObjectiveError("\n".join(texts))
