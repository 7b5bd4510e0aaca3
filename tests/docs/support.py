"""Which estimator works with which objective, by trying: `make support` writes docs/support.md."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np

import vi_kit as vi
from tests.docs.how_to_choose import DOCS, write
from tests.libraries import LIBRARIES, NumPyroWords, PyroWords
from vi_kit.estimators import REGISTRY

PAGE, START = DOCS / "support.md", "<!-- by trying -->\n"
FOUND = Path(__file__).with_name("support.json")
DATA = np.array([0.4, -0.3])
WAYS = ("Pyro", "Pyro, compiled", "NumPyro")


def network(lib: Any) -> Any:
    """A network with second derivatives, for `Relax`."""
    if lib.name == "pyro":
        import torch

        layers = torch.nn.Linear(1, 3), torch.nn.Tanh(), torch.nn.Linear(3, 1)
        return torch.nn.Sequential(*layers).double()
    import flax.linen as nn
    import jax.numpy as jnp

    class Network(nn.Module):
        @nn.compact
        def __call__(self, z: Any) -> Any:
            z = nn.tanh(nn.Dense(3, param_dtype=jnp.float64)(z))
            return nn.Dense(1, param_dtype=jnp.float64)(z)

    return Network()


ESTIMATORS: dict[type, tuple[str, Callable[[Any], Any]]] = {
    vi.Reparam: ("normal", lambda _: vi.Reparam()),
    vi.DoublyReparam: ("normal", lambda _: vi.DoublyReparam()),
    vi.MixtureReparam: ("mixture", lambda _: vi.MixtureReparam()),
    vi.RejectionReparam: ("gamma", lambda _: vi.RejectionReparam()),
    vi.GeneralizedReparam: ("gamma", lambda _: vi.GeneralizedReparam()),
    vi.Analytic: ("normal", lambda _: vi.Analytic()),
    vi.Score: ("bernoulli", lambda _: vi.Score()),
    vi.Enumerate: ("bernoulli", lambda _: vi.Enumerate()),
    vi.MeasureValued: ("bernoulli", lambda _: vi.MeasureValued()),
    vi.Quadrature: ("normal", lambda _: vi.Quadrature(3)),
    vi.DisARM: ("bernoulli", lambda _: vi.DisARM()),
    vi.SumAndSample: ("categorical", lambda _: vi.SumAndSample(1)),
    vi.WithoutReplacement: ("categorical", lambda _: vi.WithoutReplacement(2)),
    vi.Rebar: ("bernoulli", lambda _: vi.Rebar()),
    vi.Relax: ("bernoulli", lambda lib: vi.Relax(network(lib))),
    vi.Relaxed: ("bernoulli", lambda _: vi.Relaxed(0.5, biased=True)),
    vi.StraightThrough: ("bernoulli", lambda _: vi.StraightThrough(biased=True)),
    vi.Annealed: ("normal", lambda _: vi.Annealed(vi.Score(), vi.Reparam(), lambda step: 0.5)),
}
"""The distribution of the site, and the estimator."""


def reward(values: dict[str, Any], *args: Any) -> Any:
    return values["z"] * 0.5


OBJECTIVES: dict[str, Callable[[], Any]] = {
    "elbo": vi.elbo,
    "iwae": lambda: vi.iwae(num_particles=3),
    "miwae": lambda: vi.miwae(num_outer=2, num_inner=2),
    "piwae": lambda: vi.piwae(num_outer=2, num_inner=2),
    "ciwae": lambda: vi.ciwae(num_particles=3, beta=0.5),
    "renyi": lambda: vi.renyi(alpha=0.5, num_particles=3),
    "cubo": lambda: vi.cubo(order=2.0, num_particles=3),
    "thermodynamic": lambda: vi.thermodynamic(num_particles=3),
    "log_variance": lambda: vi.log_variance(num_particles=3),
    "trajectory_balance": lambda: vi.trajectory_balance(num_particles=3),
    "sub_trajectory_balance": lambda: vi.sub_trajectory_balance(lambda_=0.9, num_particles=3),
    "f_divergence": lambda: vi.f_divergence(
        generator=vi.generators.squared_hellinger, num_particles=3
    ),
    "tail_adaptive": lambda: vi.tail_adaptive(num_particles=3),
    "wake_sleep": lambda: vi.wake_sleep(num_particles=3, insomnia=0.5),
    "eubo": lambda: vi.eubo(num_particles=3),
    "forward_kl": lambda: vi.forward_kl(num_particles=3),
    "multi_trace": lambda: vi.multi_trace(num_particles=3),
    "expected_reward": lambda: vi.expected_reward(reward=reward, beta=0.1),
}


def programs(lib: Any, kind: str, has_data: bool) -> tuple[Callable, Callable]:
    """One site in a plate of two; the model has a parameter of its own, and data that are an argument."""
    dist, array = lib.dist, lib.array

    def site(theta: Any) -> Any:
        if kind == "normal":
            return dist.Normal(theta, 0.8)
        if kind == "gamma":
            return dist.Gamma(theta * theta + 1.5, array(2.0))
        if kind == "bernoulli":
            return dist.Bernoulli(logits=theta)
        if kind == "categorical":
            return dist.Categorical(logits=theta * array(np.array([0.0, 1.0, -1.0])))
        weights = dist.Categorical(logits=array(np.array([0.0, 0.3])))
        return dist.MixtureSameFamily(
            weights, dist.Normal(theta + array(np.array([0.0, 1.0])), 1.0)
        )

    def model(x: Any) -> None:
        offset = lib.theta(np.array([0.1]), "offset")[0] if has_data else 0.0
        with lib.plate("rows", 2):
            z = lib.sample("z", site(array(0.2)))
            if has_data:
                lib.sample("x", dist.Normal(z * 0.7 + offset, 1.0), obs=x)

    def guide(x: Any) -> None:
        theta = lib.theta(np.array([0.3]))[0]
        with lib.plate("rows", 2):
            lib.sample("z", site(theta))

    return model, guide


def by_pyro(lib: PyroWords, loss: Any, model: Callable, guide: Callable) -> None:
    import pyro
    import torch

    pyro.clear_param_store()
    pyro.set_rng_seed(0)
    for _ in range(3 if loss.compile else 1):  # the third is captured
        assert np.isfinite(loss.loss_and_grads(model, guide, torch.tensor(DATA)))
    grads = [p.grad for p in pyro.get_param_store()._params.values() if p.grad is not None]
    assert grads and all(bool(g.isfinite().all()) for g in grads)


def by_numpyro(lib: NumPyroWords, loss: Any, model: Callable, guide: Callable) -> None:
    import jax
    import optax
    from numpyro.infer import SVI

    svi = SVI(model, loss.with_state(guide), optax.sgd(1.0), loss)
    data = lib.array(DATA)
    state = svi.init(jax.random.key(0), data)
    state, value = jax.jit(svi.update)(state, data)
    numbers = jax.tree.leaves((value, svi.get_params(state)))
    assert all(bool(np.isfinite(np.asarray(n)).all()) for n in numbers)


def tried(estimator: type, objective: str, way: str) -> str:
    """The reason for which it is refused, in the words of the error; empty if it works."""
    lib = LIBRARIES["numpyro" if way == "NumPyro" else "pyro"]()
    kind, make = ESTIMATORS[estimator]
    model, guide = programs(lib, kind, has_data=objective != "expected_reward")
    try:
        if lib.name == "numpyro":
            loss = lib.Loss(OBJECTIVES[objective](), {"z": make(lib)})
            by_numpyro(lib, loss, model, guide)
            return ""
        compiled = way.endswith("compiled")
        loss = lib.Loss(OBJECTIVES[objective](), {"z": make(lib)}, compile=compiled)
        # graphs are captured, and run by torch: inductor takes long
        with mock.patch("vi_kit.pyro.capture.compiled", lambda graph, inputs: graph):
            by_pyro(lib, loss, model, guide)
    except vi.ViKitError as error:
        return re.sub(r" at \w+\.py:\d+", "", str(error).split("\n")[0])
    return ""


def found() -> dict[str, dict[str, dict[str, str]]]:
    """What has been tried: reasons by estimator, objective and way."""
    return json.loads(FOUND.read_text()) if FOUND.exists() else {}


def table() -> str:
    """What was found, as Markdown: a row per estimator, and the reasons below."""
    notes: dict[str, int] = {}

    def mark(name: str, reason: str | None) -> str:
        if reason is None:
            return "?"
        reason = reason.replace(f"{name}()", "it")
        return str(notes.setdefault(reason, len(notes) + 1)) if reason else "✓"

    def cell(name: str, reasons: dict[str, str]) -> str:
        marks = [mark(name, reasons.get(way)) for way in WAYS]
        return marks[0] if len(set(marks)) == 1 else " ".join(marks)

    lines = [
        f"| | {' | '.join(f'`{o}`' for o in OBJECTIVES)} |",
        "|---" * (len(OBJECTIVES) + 1) + "|",
    ]
    everything = found()
    for name in (estimator.__name__ for estimator in REGISTRY):
        row = everything.get(name, {})
        lines.append(f"| `{name}` | {' | '.join(cell(name, row.get(o, {})) for o in OBJECTIVES)} |")
    return "\n".join([*lines, "", *(f"{n}. {r}" for r, n in notes.items()), ""])


def main() -> None:
    """Try what has not been tried: without the file, everything."""
    import torch

    torch.set_default_dtype(torch.float64)
    everything = found()
    for way in (WAYS[0], WAYS[2], WAYS[1]):
        for estimator in REGISTRY:
            for objective in OBJECTIVES:
                of_pair = everything.setdefault(estimator.__name__, {}).setdefault(objective, {})
                if way not in of_pair:
                    of_pair[way] = tried(estimator, objective, way)
                    print(
                        estimator.__name__,
                        objective,
                        way,
                        of_pair[way] or "works",
                        sep=" | ",
                        flush=True,
                    )
            FOUND.write_text(json.dumps(everything, indent=0) + "\n")


if __name__ == "__main__":
    if "--try" in sys.argv:
        main()
    write(PAGE, START, table())
