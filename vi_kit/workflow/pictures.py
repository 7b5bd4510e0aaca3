"""Pictures of a fit. Each is drawn into Axes of matplotlib, which nothing else in vi_kit needs."""

from __future__ import annotations

import importlib
import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from vi_kit.base.errors import BackendError, ObjectiveError, message
from vi_kit.engine.variance import GradientVariance
from vi_kit.workflow.asking import asked
from vi_kit.workflow.diagnosis import Diagnosis
from vi_kit.workflow.fitted import Fit
from vi_kit.workflow.psis import pareto_smoothed
from vi_kit.workflow.sampling import drawn, sample
from vi_kit.workflow.weights import refuse_without_weights

BLUE, ORANGE, GREEN, GREY = "#0072B2", "#D55E00", "#009E73", "#777777"
"""Of Okabe and Ito, which colour-blind people can tell apart."""
MOST_ROWS = 30
"""Of a picture that has a row for each number."""


def plot_bound(fit: Fit, *, window: int | None = None, ax: Any = None) -> Any:
    """The objective by step, its moving mean, where the fit stopped, and other restarts.

    Args:
        fit: what `fit` returned.
        window: steps of the moving mean; if left out, a fiftieth of all.
        ax: Axes to draw into; if left out, a new figure's.

    Returns:
        The Axes. Their height leaves out what the first steps alone have.
    """
    ax = _axes(ax)
    sign, num = fit.loss.settings.sign, fit.num_steps
    window = max(1, num // 50) if window is None else max(1, min(window, num))
    smooth = [_moving(sign * own, window) for own in (fit.losses, *fit.restarts)]
    ax.plot(np.arange(1, num + 1), sign * fit.losses, color=BLUE, alpha=0.25, lw=0.6, label="steps")
    at = np.arange(window, num + 1)
    is_own = [np.array_equal(own, fit.losses) for own in fit.restarts]
    others = [own for own, same in zip(smooth[1:], is_own, strict=True) if not same]
    for i, own in enumerate(others):
        label = f"other restarts ({len(others)})" if i == 0 else None
        ax.plot(np.arange(window, window + len(own)), own, color=GREY, lw=0.9, label=label)
    ax.plot(at, smooth[0], color=BLUE, lw=1.8, label=f"mean of {window} steps")
    ax.axvline(num, color=ORANGE, ls="--", lw=1.2, label="end")
    ax.set(xlabel="step", ylabel=f"objective, {fit.direction}", xlim=(0, num * 1.02 + 1))
    ax.set_title(fit.stopped, fontsize="medium")
    late = [own[len(own) // 10 :] for own in smooth] + [sign * fit.losses[num // 4 :]]
    _heights(ax, [own for own in late if len(own)])
    ax.legend(
        fontsize="small", loc="lower right" if sign > 0 or _rises(smooth[0]) else "upper right"
    )
    return ax


def plot_snr(found: Diagnosis | GradientVariance, *, ax: Any = None) -> Any:
    """Signal and noise of the gradient.

    Args:
        found: by `vi.diagnose(fit)`: the signal-to-noise ratio by parameter, and by site with `by_site=True`; an arrow
            is what cannot be told from none. By `Loss.gradient_variance`: the standard deviation that the noise of
            each site contributes.
        ax: Axes to draw into; if left out, a new figure's.

    Returns:
        The Axes.

    Raises:
        ObjectiveError: a diagnosis without gradients, or neither of these.
    """
    if isinstance(found, GradientVariance):
        names = [p.name for p in found.sites]
        values = [math.sqrt(max(p.variance, 0.0)) for p in found.sites]
        errors = [p.error / (2 * v) if v else 0.0 for p, v in zip(found.sites, values, strict=True)]
        label = "standard deviation of the gradient by the site's noise"
    elif isinstance(found, Diagnosis) and found.noise:
        own = dict(found.noise) | {f"noise of site {n}": s for n, s in found.site_noise.items()}
        names = list(own)
        values, errors = [n.signal for n in own.values()], [n.error for n in own.values()]
        label = "signal-to-noise ratio of one gradient"
    else:
        raise ObjectiveError(
            message(
                "plot_snr: nothing is known of the gradient's noise",
                got="a diagnosis without gradients"
                if isinstance(found, Diagnosis)
                else f"a {type(found).__name__}",
                expected="a diagnosis with gradients, or what Loss.gradient_variance found",
                fix="vi.plot_snr(vi.diagnose(fit, by_site=True))",
            )
        )
    names, values = _at_most(names), np.array(values[:MOST_ROWS])
    ax, bars = _axes(ax, rows=len(names)), np.array(errors[:MOST_ROWS])
    rows = np.arange(len(values))
    style = {"color": BLUE, "capsize": 3, "lw": 1.2}
    if isinstance(found, GradientVariance):
        ax.errorbar(values, rows, xerr=bars, fmt="o", **style)
        ax.set_xlim(left=0.0)
    else:
        told = values > bars
        left = min([*(values - bars)[told], *bars[~told], 1.0]) / 2
        ax.errorbar(values[told], rows[told], xerr=bars[told], fmt="o", **style)
        ax.errorbar(values[~told] + bars[~told], rows[~told], fmt="<", **style)
        ax.set_xscale("log")
        ax.set_xlim(left, 2 * max([*(values + bars), 1.0]))
        ax.axvline(1.0, color=ORANGE, ls="--", lw=1.2, label="signal = noise")
        ax.legend(fontsize="small")
    _names(ax, names)
    ax.set_xlabel(label)
    return ax


def plot_weights(
    fit: Any,
    *args: Any,
    num_samples: int = 2000,
    seed: int = 0,
    params: Any = None,
    ax: Any = None,
    **kwargs: Any,
) -> Any:
    """The tail of the importance weights: how many of the draws have larger ones, with Pareto's k.

    Args:
        fit: what `fit` returned; or a `Loss`, followed by model and guide; or log weights, shape `(num,)`.
        *args: as for `vi.diagnose`.
        num_samples: draws of the guide.
        seed: of them.
        params: as for `vi.sample`.
        ax: Axes to draw into; if left out, a new figure's.
        **kwargs: as `args`.

    Returns:
        The Axes.

    Raises:
        BackendError: there are no importance weights, or no ArviZ.
    """
    if isinstance(fit, np.ndarray):
        log_weights = fit.astype(float).ravel()
    else:
        who = asked("plot_weights", fit, args, kwargs, params)
        draws = drawn(who, num_samples, seed)
        refuse_without_weights(who, draws)
        log_weights = draws.log_weights
    _, k = pareto_smoothed(log_weights)
    num = len(log_weights)
    relative = np.sort(log_weights - np.logaddexp.reduce(log_weights) + math.log(num))[::-1]
    share = np.arange(1, num + 1) / num
    ax = _axes(ax)
    in_tail = max(2, min(num // 5, int(3 * num**0.5)))  # those that k is read from
    ax.plot(np.exp(relative), share, ".", color=GREY, ms=3, label="weights")
    ax.plot(np.exp(relative[:in_tail]), share[:in_tail], ".", color=BLUE, ms=5, label="their tail")
    if np.isfinite(k) and k != 0:
        tail = np.exp(relative[:in_tail])
        curve = share[in_tail - 1] * _pareto_tail(tail - tail[-1], float(k))
        ax.plot(tail, curve, color=ORANGE, lw=1.5, label=f"generalised Pareto, k = {k:.2f}")
    ax.set(xscale="log", yscale="log", ylim=(0.5 / num, 2.0))
    body = float(np.quantile(relative, 0.02))
    ax.set_xlim(
        left=math.exp(body), right=math.exp(relative[0] + 0.05 * (relative[0] - body) + 1e-3)
    )
    ax.set(xlabel="weight (mean one)", ylabel="share of draws with more")
    good = "good" if k < 0.5 else "usable" if k < 0.7 else "too heavy a tail"
    ax.set_title(f"Pareto k = {k:.2f}: {good}", fontsize="medium")
    ax.legend(fontsize="small", loc="lower left")
    return ax


def plot_posterior(
    fit: Any,
    reference_draws: Mapping[str, Any],
    *,
    num_samples: int = 2000,
    seed: int = 0,
    ax: Any = None,
) -> Any:
    """The guide against draws of the posterior, such as those of NUTS: medians, halves and nine tenths.

    Args:
        fit: what `fit` returned; or draws of it by site, as of `vi.sample`.
        reference_draws: by site, shape `(num, *shape)`.
        num_samples: draws of the guide.
        seed: of them.
        ax: Axes to draw into; if left out, a new figure's.

    Returns:
        The Axes, with a row for each number, at most thirty.

    Raises:
        ObjectiveError: no site is in both, or a site has two shapes.
    """
    own = fit if isinstance(fit, Mapping) else sample(fit, num_samples=num_samples, seed=seed)
    pairs = {n: (np.asarray(own[n]), np.asarray(x)) for n, x in reference_draws.items() if n in own}
    unlike = {
        n: (a.shape[1:], b.shape[1:]) for n, (a, b) in pairs.items() if a.shape[1:] != b.shape[1:]
    }
    if not pairs or unlike:
        raise ObjectiveError(
            message(
                "plot_posterior: the draws are not of the same sites",
                got=f"guide and reference have shapes {unlike}"
                if unlike
                else f"guide {sorted(own)}, reference {sorted(reference_draws)}",
                expected="draws by site, of shape (num, *shape)",
                fix="reference_draws=mcmc.get_samples()",
            )
        )
    names, flat = [], []
    for name, (a, b) in pairs.items():
        for index in np.ndindex(a.shape[1:]):
            names.append(name + (f"[{', '.join(map(str, index))}]" if index else ""))
            flat.append((a[(slice(None), *index)], b[(slice(None), *index)]))
    names, flat = _at_most(names), flat[:MOST_ROWS]
    ax = _axes(ax, rows=len(names))
    for side, (label, color, marker, shift) in enumerate(
        (("guide", BLUE, "o", -0.15), ("reference", ORANGE, "s", 0.15))
    ):
        at = np.arange(len(flat)) + shift
        marks = np.array([np.quantile(x[side], [0.05, 0.25, 0.5, 0.75, 0.95]) for x in flat]).T
        ax.hlines(at, marks[0], marks[4], color=color, lw=1.2)
        ax.hlines(at, marks[1], marks[3], color=color, lw=3.5)
        ax.plot(marks[2], at, marker, color="white", mec=color, ms=5, mew=1.4, ls="", label=label)
    _names(ax, names)
    ax.set_xlabel("value (median, 50 % and 90 % intervals)")
    ax.legend(fontsize="small", loc="upper left", bbox_to_anchor=(1.01, 1.0), borderaxespad=0.0)
    return ax


def _axes(ax: Any, rows: int = 0) -> Any:
    if ax is not None:
        return ax
    try:
        plt = importlib.import_module("matplotlib.pyplot")
    except ModuleNotFoundError as error:
        raise BackendError(
            message(
                "pictures need matplotlib",
                got="no module matplotlib",
                expected="matplotlib 3",
                fix="pip install matplotlib",
            )
        ) from error
    height = max(2.0, 0.9 + 0.28 * rows) if rows else 3.6
    return plt.subplots(figsize=(6.0, height), layout="constrained")[1]


def _at_most(names: list[str]) -> list[str]:
    """Those that are shown; the last says how many are not."""
    left = len(names) - MOST_ROWS
    return (
        names
        if left <= 0
        else [*names[: MOST_ROWS - 1], f"{names[MOST_ROWS - 1]} (and {left} more)"]
    )


def _names(ax: Any, names: list[str]) -> None:
    ax.set_yticks(range(len(names)), names)
    ax.set_ylim(len(names) - 0.4, -0.6)  # the first is on top
    ax.grid(axis="x", alpha=0.3)


def _moving(x: np.ndarray, window: int) -> np.ndarray:
    total = np.cumsum(np.concatenate([[0.0], x]))
    return (total[window:] - total[:-window]) / window


def _pareto_tail(excess: np.ndarray, k: float) -> np.ndarray:
    """The survival function of a generalised Pareto distribution with the median of what is given."""
    scale = k * float(np.median(excess)) / (2**k - 1) or 1.0
    return np.maximum(1 + k * excess / scale, 1e-12) ** (-1 / k)


def _rises(smooth: np.ndarray) -> bool:
    return len(smooth) > 1 and smooth[-1] >= smooth[0]


def _heights(ax: Any, parts: list[np.ndarray]) -> None:
    """So that the first steps, and rare ones, do not press the others flat."""
    ends = np.array(
        [np.quantile(x[np.isfinite(x)], [0.01, 0.99]) for x in parts if np.isfinite(x).any()]
    )
    if len(ends):
        low, high = float(ends[:, 0].min()), float(ends[:, 1].max())
        room = 0.08 * (high - low) or 1.0
        ax.set_ylim(low - room, high + room)
