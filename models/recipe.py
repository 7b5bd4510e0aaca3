"""A way to fit a model."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from operator import attrgetter
from typing import Any

import vi_kit as vi


@dataclass(frozen=True)
class Recipe:
    """A way to fit a model, whichever the library.

    Attributes:
        programs: from the module of a library to its model and guide.
        objectives: those that serve, with their usual settings; the first is the usual one.
        reference: from the module of a library to what objectives draw from that do not draw from the guide; their
            setting of that name.
        estimators: as `fit` takes them; `None` leaves them to the default.
        num_steps: of Adam.
        step_size: its size at first; it falls to a tenth.
        options: further arguments of `fit`, such as `num_samples` and `batch_size`.
        double: whether in double precision.
    """

    programs: Callable[[Any], Any] = attrgetter("model", "guide")
    objectives: tuple[vi.Objective, ...] = (vi.elbo(), vi.iwae(num_particles=5))
    reference: Callable[[Any], Any] | None = None
    estimators: Any = None
    num_steps: int = 1000
    step_size: float = 0.02
    options: Mapping[str, Any] = field(default_factory=dict)
    double: bool = False

    def objective(self, name: str | None = None, **settings: Any) -> vi.Objective:
        """One of the objectives by name, with settings in the place of the usual ones."""
        by_name = {o.program.__name__: o for o in self.objectives}
        chosen = self.objectives[0] if name is None else by_name[name]
        return chosen.factory(**dict(chosen.settings) | settings)
