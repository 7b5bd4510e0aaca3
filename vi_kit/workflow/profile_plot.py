"""The picture of a profile."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from vi_kit.workflow.shelf import short

INK, QUIET, BIASED = "#1f5fa8", "#8a8a8a", "#b5541c"


def plotted(profile: Any, axes: Any) -> Any:
    """See `Profile.plot`."""
    import matplotlib.pyplot as plt

    panels = {site: profile.of(site) for site in profile.sites}
    if axes is None:
        heights = [len(rows) + 1.2 for rows in panels.values()]
        _, axes = plt.subplots(
            len(panels),
            1,
            figsize=(8.5, 0.28 * sum(heights) + 0.5 * len(panels) + 0.4),
            height_ratios=heights,
            squeeze=False,
            layout="constrained",
        )
        axes = axes[:, 0]
    for ax, (site, rows) in zip(axes, panels.items(), strict=True):
        _panel(ax, site, rows)
    unit = "s" if _cost(profile.rows) == "seconds" else "evaluations"
    axes[-1].set_xlabel(f"variance of one gradient x time ({unit}); less is better")
    return axes


def _cost(rows: Sequence[Any]) -> str:
    return next((r.measured.cost for r in rows if r.measured is not None), "seconds")


def _panel(ax: Any, site: str, rows: Sequence[Any]) -> None:
    from matplotlib.ticker import LogLocator

    products = [r.measured.product for r in rows if r.measured is not None]
    positive = [p for p in products if p > 0]
    low, high = (min(positive), max(positive)) if positive else (1.0, 1.0)
    floor = low / 10 if 0.0 in products else low
    for place, row in enumerate(rows):
        m = row.measured
        assert m is not None
        color = BIASED if row.biased else INK if row.chosen else QUIET
        at = max(m.product, floor)
        filled = color if not row.biased else "white"
        style = {"color": color, "markerfacecolor": filled, "markersize": 6, "capsize": 2.5}
        error = [[min(m.product_error, 0.95 * at)], [m.product_error]] if m.product else None
        ax.errorbar(at, place, xerr=error, fmt="o" if m.product else "<", **style)
        words = [w for w in ("no variance" * (m.product == 0), row.marks) if w]
        if words:
            note = ", ".join(words)
            ax.annotate(
                note,
                (1.01, place),
                xycoords=("axes fraction", "data"),
                va="center",
                fontsize=8,
                color=color,
            )
    ax.set_xscale("log")
    # more of them have no room for their numbers
    ax.xaxis.set_minor_locator(LogLocator(subs=(2, 5)))
    ends = [r.measured.product + r.measured.product_error for r in rows if r.measured is not None]
    ax.set_xlim(floor / 1.6, max([high, *ends]) * 1.4)
    ax.set_yticks(range(len(rows)), [short(row.estimator) for row in rows], fontsize=8)
    ax.set_ylim(len(rows) - 0.4, -0.6)
    ax.set_title(f"site {site}", loc="left", fontsize=10)
    ax.grid(axis="x", which="major", alpha=0.25)
    ax.spines[["top", "right"]].set_visible(False)
