"""Drawing an allocation: how much each client holds, and of what."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from flockllm.data.allocation import Allocation
from flockllm.data.records import Record

if TYPE_CHECKING:
    from matplotlib.axes import Axes

COLOURS = (
    "#3a6ea5", "#e39a4a", "#5aa17a", "#c9605b", "#8b74b5", "#7fb6cf", "#b08a5e", "#d69ab9",
    "#9aa84f",
)  # fmt: skip
"""For the largest categories; all others share `REST`."""

REST, AMOUNT, INK, FAINT = "#b7bec7", "#44546a", "#1f2933", "#6b7785"
REST_NAME = "all other"


def draw_distribution(allocation: Allocation, path: Path) -> None:
    """Draws a row per client: its amount on the left, its mix of categories on the right.

    A last row shows all clients together, so that what is special about one stands out.
    """
    from matplotlib.figure import Figure  # no pyplot: no display, no global state
    from matplotlib.patches import Patch

    local, everything = allocation.local, allocation.global_training
    ranked = [category for category, _ in Counter(r.category for r in everything).most_common()]
    colours = dict(zip(ranked, COLOURS, strict=False))
    if len(ranked) > len(COLOURS):
        colours[REST_NAME] = REST

    # Inches, from the top: title, column heads, a row each, legend.
    row = min(0.46, max(0.21, 6 / len(local)), 24 / len(local))
    columns = len(colours) if len(colours) <= 6 else 5
    head, foot = 1.1, 0.3 + 0.25 * -(-len(colours) // columns)
    height = head + row * (len(local) + 1.5) + foot
    font = min(10.0, 36 * row)
    figure = Figure(figsize=(11, height), dpi=150, facecolor="white")
    left, right = figure.subplots(1, 2, width_ratios=(1, 2.1), sharey=True)
    figure.subplots_adjust(
        left=0.085, right=0.98, top=1 - head / height, bottom=foot / height, wspace=0.03
    )

    places = [*range(len(local)), len(local) + 0.5]
    _amounts(left, local, font)
    _mixes(right, places, [*local, everything], colours, font)
    left.set_ylim(len(local) + 1, -0.5)
    left.set_yticks(places, [*(f"client {i}" for i in range(len(local))), "all"])
    for axes in (left, right):
        axes.spines[:].set_visible(False)
        axes.set_xticks([])
        axes.tick_params(length=0, labelsize=font, labelcolor=INK)
    right.tick_params(labelleft=False)

    title = f"{_count(len(everything))} records for {len(local)} clients"
    note = f"{_count(len(allocation.global_test))} more set aside for the global test"
    figure.text(0.015, 1 - 0.42 / height, title, fontsize=15, weight="bold", color=INK)
    figure.text(0.015, 1 - 0.68 / height, note, fontsize=10, color=FAINT)
    for axes, text in ((left, "amount (dotted: an even share)"), (right, "mix of categories")):
        x = axes.get_position().x0
        figure.text(x, 1 - 1.02 / height, text, fontsize=10, color=FAINT)
    figure.legend(
        handles=[Patch(color=c, label=name or "no category") for name, c in colours.items()],
        loc="lower center", ncols=columns, frameon=False, fontsize=9.5, labelcolor=INK,
        handlelength=0.9, handleheight=0.9, columnspacing=1.8,
    )  # fmt: skip
    figure.savefig(path, metadata={"Software": None})


def _amounts(axes: Axes, local: Sequence[Sequence[Record]], font: float) -> None:
    sizes = [len(records) for records in local]
    even, right = sum(sizes) / len(sizes), max(sizes) * 1.5
    axes.barh(range(len(sizes)), sizes, height=0.7, color=AMOUNT)
    axes.plot([even, even], [-0.5, len(sizes) - 0.5], color=FAINT, lw=1, ls=":")
    axes.set_xlim(0, right)
    for place, size in enumerate(sizes):
        text = f"{_count(size)}   {size / sum(sizes):4.0%}"
        axes.text(
            0.96 * right, place, text, ha="right", va="center", fontsize=font, color=INK
        )  # fmt: skip


def _mixes(
    axes: Axes,
    places: Sequence[float],
    rows: Sequence[Sequence[Record]],
    colours: Mapping[str, str],
    font: float,
) -> None:
    counts = [
        Counter(r.category if r.category in colours else REST_NAME for r in records)
        for records in rows
    ]
    starts = [0.0] * len(rows)
    for name, colour in colours.items():
        shares = [c[name] / max(1, c.total()) for c in counts]
        bars = axes.barh(
            places, shares, left=starts, height=0.7, color=colour, edgecolor="white", lw=0.8
        )
        labels = [f"{share:.0%}" if share >= 0.06 else "" for share in shares]
        axes.bar_label(
            bars, labels, label_type="center", fontsize=0.9 * font, color="white", weight="bold"
        )
        starts = [start + share for start, share in zip(starts, shares, strict=True)]
    axes.set_xlim(0, 1)


def _count(number: int) -> str:
    return f"{number:,}".replace(",", "\N{THIN SPACE}")
