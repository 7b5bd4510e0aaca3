"""Several starts of a fit in Pyro, one after the other: parameters live in one store, and in modules."""

from __future__ import annotations

import inspect
from dataclasses import dataclass, field, replace

import pyro
import torch
from pyro import poutine
from pyro.infer.autoguide import AutoGuide

from vi_kit.pyro.guides import copied
from vi_kit.pyro.minibatch import scaled
from vi_kit.pyro.noise import Generators, buffers_kept
from vi_kit.pyro.trainer import PyroTrainer
from vi_kit.workflow.fitting import Job
from vi_kit.workflow.processes import Alone, Processes


@dataclass
class Starts:
    """What all starts begin with.

    Attributes:
        job: with the guide of the user, which serves the first start.
        compile: as in `PyroTrainer`.
        processes: likewise.
        stored: parameters that the store has before.
        modules: of the user, with what they hold before.
        guide: an autoguide before it sets itself up, by random numbers; `None` if the guide is none.
        trainers: of the starts so far.
    """

    job: Job
    compile: bool | None
    processes: Processes = field(default_factory=Alone)
    stored: dict[str, torch.Tensor] = field(default_factory=dict)
    modules: dict[torch.nn.Module, dict[str, torch.Tensor]] = field(default_factory=dict)
    guide: AutoGuide | None = None
    trainers: list[PyroTrainer] = field(default_factory=list)

    def __post_init__(self) -> None:
        store = pyro.get_param_store()
        self.stored = {name: leaf.detach().clone() for name, leaf in store._params.items()}
        programs = [inspect.unwrap(program) for program in (self.job.model, self.job.guide)]
        if isinstance(programs[1], AutoGuide):
            self.guide = copied(programs[1], programs[0])
        for module in programs:
            if isinstance(module, torch.nn.Module) and not isinstance(module, AutoGuide):
                self.modules[module] = {k: v.clone() for k, v in module.state_dict().items()}

    def begin(self, start: int) -> PyroTrainer:
        """The trainer of the next start."""
        job = self.job
        if start:
            self.trainers[-1].put_away()
            self._forget()
            if self.guide is not None:
                guide = copied(self.guide, inspect.unwrap(job.model))
                guide = scaled(guide, job.plates, "guide")
                job = replace(job, guide=guide)
        self.trainers.append(PyroTrainer(job, start, self.compile, self.processes))
        return self.trainers[-1]

    def keep(self, trainer: PyroTrainer) -> None:
        """The user's guide, and the store, get the parameters of the best start."""
        self.trainers[-1].put_away()
        if self.guide is not None and len(self.trainers) > 1:
            self._forget()
            self._run_once()
        trainer.put_back()

    def _forget(self) -> None:
        """All parameters are where they were before the first start."""
        store = pyro.get_param_store()
        for name in list(store._params):
            if name in self.stored:
                store._params[name].data.copy_(self.stored[name])
            else:
                del store[name]
        for module, state in self.modules.items():
            module.load_state_dict(state)
        self.job.loss.state.clear()

    def _run_once(self) -> None:
        """The store gets the parameters of the user's guide and model."""
        args, kwargs = self.job.source.example
        before = Generators.now()
        with torch.no_grad(), buffers_kept():
            trace = poutine.trace(self.job.guide).get_trace(*args, **kwargs)
            poutine.replay(self.job.model, trace=trace)(*args, **kwargs)
        before.restore()
