"""What the losses of both libraries have in common."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Self

from vi_kit.base.errors import refuse_settings
from vi_kit.engine.select import Given
from vi_kit.engine.settings import SETTINGS, Settings
from vi_kit.language.words import Objective


class CommonLoss:
    """Stands in front of a library's own class of losses. See `vi_kit.pyro.Loss` and `vi_kit.numpyro.Loss`."""

    can_infer_discrete = True

    def __init__(
        self,
        objective: Objective | None = None,
        estimators: Mapping[str, Given] | Given | None = None,
        *,
        num_samples: int = 1,
        max_plate_nesting: int | None = None,
        vectorize: bool | None = None,
        **others: Any,
    ):
        refuse_settings("Loss", others, SETTINGS)
        self.settings = Settings.of(
            objective, estimators, num_samples, max_plate_nesting, vectorize
        )
        of_library: Any = super()
        of_library.__init__(num_particles=num_samples, vectorize_particles=vectorize is not False)
        self._start()

    def _start(self) -> None:
        """Make what a library's loss keeps besides its settings."""

    def __repr__(self) -> str:
        return self.settings.describe()

    def with_estimators(self, estimators: Mapping[str, Given] | Given | None) -> Self:
        """The same loss with other estimators."""
        own = self.settings
        return type(self)(
            own.objective,
            estimators,
            num_samples=own.num_samples,
            max_plate_nesting=own.max_plate_nesting,
            vectorize=own.vectorize,
        )
