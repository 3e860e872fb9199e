"""`flockllm watch`: follow a task in the terminal."""

import time
from typing import TYPE_CHECKING, Any

import click

from flockllm.cli.options import network_option

if TYPE_CHECKING:
    from flockllm.chain.task import Task
    from flockllm.rounds import RoundResult, Seat, View

SHOWN_ROUNDS = 12
"""The newest rounds that are shown."""

COLORS = {
    "accepted": "green",
    "neutral": "default",
    "harmful": "red",
    "invalid": "magenta",
    "abstained": "dim",
    "silent": "yellow",
    "no-show": "yellow",
}


@click.command()
@click.argument("task", metavar="TASK")
@click.option("--once", is_flag=True, help="Print the table once and end.")
@network_option
def watch(task: str, once: bool, network: str) -> None:
    """Follow TASK in the terminal until it is over; Ctrl-C ends the watching.

    A row a round: who proposed and what the voters made of it, what was adopted, what was paid.
    """
    from rich.console import Console
    from rich.live import Live

    from flockllm.config import find_network
    from flockllm.rounds import Phase
    from flockllm.wiring import NOBODY, open_connection, open_task

    found = find_network(network)
    console = Console()
    with open_connection(found) as connection:
        contract = open_task(connection, task)
        rounds = _Rounds(contract)
        if once:
            console.print(_table(contract, rounds.look(), contract.look(NOBODY)))
            return
        with Live(console=console, auto_refresh=False) as live:
            while True:
                view = contract.look(NOBODY)
                live.update(_table(contract, rounds.look(), view), refresh=True)
                if view.state.phase in (Phase.FINISHED, Phase.CANCELLED):
                    return
                connection.heads(5)


class _Rounds:
    """The newest rounds; what can no longer change is asked once."""

    def __init__(self, task: "Task") -> None:
        self._task = task
        self._closed: dict[int, tuple[RoundResult, tuple[Seat, ...]]] = {}

    def look(self) -> "dict[int, tuple[RoundResult, tuple[Seat, ...]]]":
        from flockllm.rounds import Outcome
        from flockllm.wiring import NOBODY

        last = min(self._task.look(NOBODY).state.round, self._task.terms.rounds)
        found = {}
        for number in range(max(1, last - SHOWN_ROUNDS + 1), last + 1):
            if number not in self._closed:
                round_ = self._task.result(number), self._task.seats(number)
                found[number] = round_
                if round_[0].outcome != Outcome.OPEN and all(s.settled for s in round_[1]):
                    self._closed[number] = round_
            else:
                found[number] = self._closed[number]
        return found


def _table(
    task: "Task", rounds: "dict[int, tuple[RoundResult, tuple[Seat, ...]]]", view: "View"
) -> Any:
    from rich import box
    from rich.table import Table

    from flockllm.task import in_tokens

    state = view.state
    left = f", {max(0, state.deadline - int(time.time()))} s left" if state.deadline else ""
    title = (
        f"task {task.address}   {state.phase.name}{left}   "
        f"{state.active} active   pool {in_tokens(state.pool)}"
    )
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("round", justify="right")
    table.add_column("outcome")
    table.add_column("proposers: verdict (scores in %)")
    table.add_column("voters")
    table.add_column("adapter")
    table.add_column("paid", justify="right")
    table.add_column("slashed", justify="right")
    for number, (result, seats) in rounds.items():
        paid, slashed = _money(task, result, seats)
        table.add_row(
            str(number),
            result.outcome.name.lower(),
            "\n".join(_proposer(seats, i) for i, s in enumerate(seats) if not s.voter),
            "\n".join(_voter(seat) for seat in seats if seat.voter),
            result.adapter_after.hex()[:8] if any(result.adapter_after) else "",
            in_tokens(paid),
            in_tokens(slashed),
        )
    return table


def _proposer(seats: "tuple[Seat, ...]", at: int) -> str:
    from flockllm.rounds import INVALID, Duty, revealed

    seat = seats[at]
    word = {
        Duty.DRAWN: "training",
        Duty.COMMITTED: "committed",
        Duty.ABSTAINED: "abstained",
        Duty.DONE: seat.verdict.name.lower() if seat.verdict else "published",
    }[seat.duty]
    scores = [voter.scores[at] for voter in revealed(seats)]
    shown = ", ".join("invalid" if s == INVALID else f"{s / 100:+.1f}" for s in scores)
    color = COLORS.get(word, "default")
    return f"{_short(seat.who)} [{color}]{word}[/]" + (f" ({shown})" if shown else "")


def _voter(seat: "Seat") -> str:
    from flockllm.rounds import Duty

    if any(seat.digest):
        return f"{_short(seat.who)} attested"
    word = {Duty.DRAWN: "", Duty.COMMITTED: "committed", Duty.DONE: "revealed"}[seat.duty]
    return f"{_short(seat.who)} {word}".rstrip()


def _money(task: "Task", result: "RoundResult", seats: "tuple[Seat, ...]") -> tuple[int, int]:
    from flockllm.rounds import Outcome, settlement

    if result.outcome == Outcome.OPEN:
        return 0, 0
    settled = [settlement(task.terms, result, seats, i) for i, s in enumerate(seats) if s.settled]
    return sum(s.paid for s in settled), sum(s.slashed for s in settled)


def _short(address: str) -> str:
    return address[:6] + "…" + address[-2:]
