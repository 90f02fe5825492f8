"""Figures of the open problem: the five criteria, and what further training does to accuracy and offset."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import matplotlib.pyplot as plt
import pandas as pd
from matplotlib.figure import Figure

from flownlib.evaluation import HELD_OUT
from flownlib.extensions.frontier import ACCURACY_GAIN, NOVELTY, OFFSET, OVERLAP, SPREAD
from flownlib.plots.audit import name_points
from flownlib.plots.charts import Measure, comparison, frame
from flownlib.plots.style import GREY, colour_of, name_of

GAIN = "accuracy minus\nheld-out networks'"


def criteria(
    records: Sequence[Mapping], kinds: Mapping[str, str], methods: Sequence[str], shares: Mapping[float, str]
) -> Figure:
    """Methods down the side, a criterion and its band a panel, a kind of zoo a line: means with 95 % intervals over seeds.

    Args:
        records: of the study. kinds, shares: of zoo and of further training, each with what it is called.
        methods: held-out networks among them are drawn with the first share.
    """
    table, panels = frame(records), {}
    held_out = table["method"] == HELD_OUT
    overlaps = table[held_out & (table["quantity"] == "error_overlap")].set_index("zoo")["value"]
    table.loc[held_out, "share"] = next(iter(shares))
    table["panel"] = table["zoo"] + table["quantity"]
    for kind in kinds:
        panels |= {
            f"{kind}accuracy_gain": Measure(GAIN, (ACCURACY_GAIN, 0.04), (-0.2, 0.04)),
            f"{kind}spread": Measure("spread\n(1: the zoo's)", SPREAD, (0.4, 1.6)),
            f"{kind}offset": Measure("offset\n(0: the zoo's mean)", (0, OFFSET), (0, 0.8)),
            f"{kind}nearest_training_distance": Measure("nearest distance\n(1: held-out)", (NOVELTY, 1.4), (0.2, 1.4)),
            f"{kind}error_overlap": Measure("error overlap\n(1: a copy)", (0, overlaps[kind] + OVERLAP), (0, 0.8)),
        }
    fig = comparison(table, panels, methods, panel="panel", series=shares, by="share", columns=5)
    for ax, name in zip(fig.axes[:: len(panels) // len(kinds)], kinds.values(), strict=True):
        ax.set_ylabel(name)
    return fig


def costs_of(table: pd.DataFrame) -> pd.Series:
    """Processor time of one network by (method, share), sampling included, as a share of a training from scratch."""
    seconds = table[table["quantity"] == "seconds_sample"].set_index(["method", "share"])["value"]
    share = seconds["fresh"].index.max()
    return seconds / (seconds["fresh", share] / share)


def further_training(records: Sequence[Mapping], kinds: Mapping[str, str], starts: Sequence[str]) -> Figure:
    """Accuracy and offset of some starts against all that a network costs; a column a kind of zoo, grey what is asked for."""
    table = frame(records)
    panels = {"accuracy_gain": (GAIN, (ACCURACY_GAIN, 1), (-0.15, 0.03)), "offset": ("offset", (0, OFFSET), (0, 0.6))}
    size = (4.8 * len(kinds), 3.2 * len(panels))
    fig, axes = plt.subplots(len(panels), len(kinds), figsize=size, squeeze=False, sharex=True, sharey="row")
    for column, (kind, title) in zip(axes.T, kinds.items(), strict=True):
        own = table[table["zoo"] == kind]
        costs = costs_of(own)
        for ax, (quantity, (_, band, limits)) in zip(column, panels.items(), strict=True):
            ax.axhspan(*band, color=GREY, alpha=0.2, lw=0)
            ends = {}
            for start in starts:
                curve = own[(own["quantity"] == quantity) & (own["method"] == start)].sort_values("share")
                x, y, colour = costs[start][curve["share"]].to_numpy(), curve["value"].to_numpy(), colour_of(start)
                ax.errorbar(x, y, [y - curve["low"], curve["high"] - y], color=colour, marker="o", lw=2, elinewidth=1.2)
                for edge, marker, outside in ((limits[0], "v", y < limits[0]), (limits[1], "^", y > limits[1])):
                    ax.scatter(x[outside], [edge] * outside.sum(), marker=marker, s=40, color=colour, clip_on=False, zorder=4)
                ends[name_of(start)] = (x[-1], min(y[-1], limits[1]))
            ax.set(ylim=limits, xlim=(-0.03, 1))
            name_points(ax, ends)
        column[0].set_title(title)
    for ax, (name, _, _) in zip(axes[:, 0], panels.values(), strict=True):
        ax.set_ylabel(name)
    fig.supxlabel("processor time of a network (1: a training from scratch)")
    return fig
