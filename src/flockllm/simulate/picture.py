"""Loss, verdicts and balances of a run at a glance."""

from pathlib import Path
from typing import Any

INK, FAINT = "#1f2430", "#c9ced6"
PEOPLE = ("#3366cc", "#e07b39", "#2a9d74", "#8e5cc4", "#c74a6b", "#6b7785", "#b59a1c", "#2a9bb5")
VERDICTS = {
    "accepted": "#2a9d74",
    "neutral": "#b8bec8",
    "abstained": "#dfe3e8",
    "harmful": "#c0392b",
    "invalid": "#7d3c98",
    "silent": "#e0a030",
    "no-show": "#e0a030",
}
MOST_ROWS = 12
"""Participants drawn with a row and a line of their own."""


def draw_rounds(report: dict[str, Any], path: Path) -> None:
    """Draws a demo's report: the loss falls, who was accepted, who earned."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    rounds, people = report["rounds"], report["participants"][:MOST_ROWS]
    style: Any = {
        "font.size": 10,
        "axes.edgecolor": FAINT,
        "axes.labelcolor": INK,
        "text.color": INK,
        "xtick.color": INK,
        "ytick.color": INK,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.titlelocation": "left",
        "axes.titleweight": "bold",
    }
    with mpl.rc_context(style):
        figure, (loss, seats, money) = plt.subplots(
            1, 3, figsize=(14, 4.4), width_ratios=(1.1, 1.2, 1.1), layout="constrained"
        )
        _loss(loss, report)
        _seats(seats, rounds, people)
        _money(money, rounds, people)
        figure.savefig(path, dpi=130, facecolor="white")
        plt.close(figure)


def _loss(axes: Any, report: dict[str, Any]) -> None:
    values = [report["base_loss"], *(r["loss_after"] for r in report["rounds"])]
    at = range(len(values))
    axes.plot(at, values, color=PEOPLE[0], linewidth=2.2, marker="o", markersize=6)
    axes.fill_between(at, values, color=PEOPLE[0], alpha=0.08)
    for x, value in enumerate(values):
        axes.annotate(
            f"{value:.2f}", (x, value), xytext=(5, 7), textcoords="offset points", ha="left"
        )
    axes.set_title("Loss on the global test set")
    axes.set_xticks(at, ["base", *(str(r["number"]) for r in report["rounds"])])
    axes.set_xlabel("after round")
    axes.set_ylim(0, max(values) * 1.15)
    axes.grid(axis="y", color=FAINT, alpha=0.5)


def _seats(axes: Any, rounds: list[dict[str, Any]], people: list[dict[str, Any]]) -> None:
    from matplotlib.patches import FancyBboxPatch

    rows = {p["name"]: len(people) - 1 - i for i, p in enumerate(people)}
    for column, r in enumerate(rounds):
        for name, row in rows.items():
            if name in r["proposers"]:
                verdict = r["verdicts"][name]
                scores = [s for s in r["scores"].get(name, {}).values() if s > -32768]
                text = f"{sum(scores) / len(scores) / 100:+.0f} %" if scores else verdict
                color, ink = VERDICTS[verdict], "white" if verdict != "abstained" else INK
            elif name in r["voters"]:
                text, color, ink = "vote", "white", INK
            else:
                continue
            box = FancyBboxPatch(
                (column - 0.38, row - 0.3),
                0.76,
                0.6,
                boxstyle="round,pad=0,rounding_size=0.08",
                facecolor=color,
                edgecolor=color if color != "white" else FAINT,
            )
            axes.add_patch(box)
            axes.text(column, row, text, ha="center", va="center", color=ink, fontsize=9)
    axes.set_title("Seats: who proposed, and the mean score")
    axes.set_xlim(-0.6, len(rounds) - 0.4)
    axes.set_ylim(-0.6, len(people) - 0.4)
    axes.set_xticks(range(len(rounds)), [str(r["number"]) for r in rounds])
    axes.set_yticks(
        list(rows.values()),
        [p["name"] + ("" if p["honest"] else "\n(attacker)") for p in people],
    )
    axes.set_xlabel("round")
    axes.tick_params(length=0)
    seen = {v for r in rounds for v in r["verdicts"].values()}
    patches = [
        FancyBboxPatch((0, 0), 1, 1, facecolor=VERDICTS[v], edgecolor="none", label=v)
        for v in VERDICTS
        if v in seen
    ]
    axes.legend(
        handles=patches,
        loc="upper center",
        bbox_to_anchor=(0.5, -0.14),
        ncols=max(1, len(patches)),
        frameon=False,
        handlelength=1,
        handleheight=1,
    )


def _money(axes: Any, rounds: list[dict[str, Any]], people: list[dict[str, Any]]) -> None:
    at = range(len(rounds) + 1)
    ends = []
    for i, p in enumerate(people):
        start = p["balance"] - p["paid"] + p["slashed"]
        line = [start, *p["balances"]]
        style = "-" if p["honest"] else "--"
        color = PEOPLE[i % len(PEOPLE)]
        axes.plot(at, line, style, color=color, linewidth=2, marker="o", markersize=4)
        ends.append((line[-1], f"{p['name']}  {line[-1]:.0f}", color))
    low, high = axes.get_ylim()
    gap, last = (high - low) * 0.06, float("-inf")
    for value, text, color in sorted(ends):  # labels keep a distance from each other
        last = max(value, last + gap)
        axes.annotate(
            text, (len(rounds), last), xytext=(8, -3), textcoords="offset points", color=color
        )
    axes.set_title("Stake and pay, in tokens")
    axes.set_xticks(at, ["start", *(str(r["number"]) for r in rounds)])
    axes.set_xlim(-0.2, len(rounds) * 1.45)
    axes.set_xlabel("after round")
    axes.grid(axis="y", color=FAINT, alpha=0.5)
