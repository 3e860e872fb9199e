"""What a demo did, as numbers for programs, as text for people, and as one picture."""

import json
import logging
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flockllm.adapter import Adapter
from flockllm.chain.abi import Event
from flockllm.data import Record
from flockllm.rounds import INVALID, Duty, RoundResult, Seat, Verdict, published
from flockllm.store import cid_of
from flockllm.task import DECIMALS
from flockllm.wiring import NOBODY, open_base, open_content, read_adapter

if TYPE_CHECKING:
    from flockllm.simulate.demo import Run
    from flockllm.train.base import Base

log = logging.getLogger(__name__)

QUESTIONS = 6
"""Answers of both models that the report shows at the most."""

Row = dict[str, Any]


def report(run: "Run") -> Row:
    """Measures a finished demo and writes `report.json`, `report.md` and `rounds.png`."""
    from flockllm.simulate.picture import draw_rounds

    log.info("measuring the global adapters on %d test records", len(run.test))
    base = open_base(run.definition, device="cpu")
    adapters = [_adapter(run, digest) for digest in _history(run)]
    losses = _losses(run, base, adapters)
    events = list(run.task.events())
    settled = [event.args for event in events if event.name == "SeatSettled"]
    gas = _gas(run, events)
    state = run.task.look(NOBODY).state
    result: Row = {
        "task": run.task.address,
        "adapter_cid": cid_of(state.adapter, len(adapters[-1].to_bytes())),
        "ready_seconds": max(
            row["seconds"] for own in run.records.values() for row in own if row["event"] == "ready"
        ),
        "base_loss": losses[0],
        "final_loss": losses[-1],
        "wall_seconds": round(run.wall_seconds, 1),
        "peak_memory_bytes": run.peak_memory_bytes,
        "pool_left": state.pool / DECIMALS,
        "money_adds_up": _money_adds_up(run),
        "rounds": [
            _round(run, number, *closed, losses=losses, gas=gas)
            for number, closed in enumerate(run.rounds, 1)
        ],
        "participants": [_participant(run, address, settled) for address in run.names],
        "answers": _answers(run, base, adapters[-1]),
    }
    out = run.demo.out
    (out / "report.json").write_text(json.dumps(result, indent=2) + "\n")
    (out / "report.md").write_text(_markdown(run, result))
    draw_rounds(result, out / "rounds.png")
    return result


def _history(run: "Run") -> list[bytes]:
    """Digests of the global adapter: the first one, and as each round left it."""
    return [run.task.initial_adapter, *(result.adapter_after for result, _ in run.rounds)]


def _adapter(run: "Run", digest: bytes) -> Adapter:
    return read_adapter(run.definition, open_content(run.net.network), digest)


def _losses(run: "Run", base: "Base", adapters: Sequence[Adapter]) -> list[float]:
    """Loss on the global test set of each adapter; the first one changes nothing yet."""
    from flockllm.train.data import tokenize
    from flockllm.train.loop import Trainer

    training = run.definition.training
    test = tokenize(
        run.test,
        base.tokenizer,
        run.definition.model.template,
        training.cutoff,
        training.loss_on,
    )
    trainer = Trainer(base, run.definition.lora, training, [], test)
    known: dict[int, float] = {}
    losses = []
    for adapter in adapters:
        key = hash(adapter.to_bytes())
        if key not in known:
            known[key] = trainer.loss(adapter.floats())
        losses.append(known[key])
    return losses


def _round(
    run: "Run",
    number: int,
    result: RoundResult,
    seats: tuple[Seat, ...],
    *,
    losses: Sequence[float],
    gas: dict[int, int],
) -> Row:
    proposals = published(seats)
    voters = [seat for seat in seats if seat.voter]
    return {
        "number": number,
        "outcome": result.outcome.name.lower(),
        "proposers": [run.names[s.who] for s in seats if not s.voter],
        "voters": [run.names[s.who] for s in voters],
        "accepted": [run.names[s.who] for s in seats if s.verdict == Verdict.ACCEPTED],
        "verdicts": {run.names[s.who]: _verdict(s) for s in seats if not s.voter},
        "scores": {
            run.names[s.who]: {run.names[v.who]: v.scores[i] for v in voters if v.scores}
            for i, s in proposals.items()
        },
        "loss_before": losses[number - 1],
        "loss_after": losses[number],
        "bytes_published": sum(s.size for s in proposals.values()),
        "gas": gas.get(number, 0),
        "seconds": _seconds(run, number),
    }


def _verdict(seat: Seat) -> str:
    if seat.duty == Duty.DONE:
        return seat.verdict.name.lower()
    return {Duty.ABSTAINED: "abstained", Duty.COMMITTED: "silent"}.get(seat.duty, "no-show")


def _seconds(run: "Run", number: int) -> Row:
    """Where a round's time went: training and evaluation along the critical path, and the rest.

    The critical path is the slowest proposer, then the slowest voter, then the slowest attester.
    """
    mine: list[Row] = [r for own in run.records.values() for r in own if r.get("round") == number]

    def slowest(*names: str) -> list[float]:
        """Seconds of each of these, by the participant who took the longest for all of them."""
        by_participant = [
            [
                sum(r["seconds"] for r in own if r.get("round") == number and r["event"] == name)
                for name in names
            ]
            for own in run.records.values()
        ]
        return max(by_participant, key=sum)

    train, checked = slowest("trained", "checked")
    evaluate = checked + sum(slowest("scored")) + sum(slowest("aggregated", "judged"))
    times = [r["time"] for r in mine if r["event"] == "phase" and r["phase"] != "IDLE"]
    later = [
        r["time"]
        for own in run.records.values()
        for r in own
        if r["event"] == "phase" and (r["round"] > number or r["phase"] == "FINISHED")
    ]
    wall = min(later) - min(times) if times and later else 0.0
    return {
        "first_step": round(max(slowest("first step")), 3),
        "train": round(train, 3),
        "evaluate": round(evaluate, 3),
        "other": round(wall - train - evaluate, 3),
    }


def _gas(run: "Run", events: Iterable[Event]) -> dict[int, int]:
    """Gas of all transactions that belong to a round, by round."""
    rounds = {e.transaction: e.args["round"] for e in events if "round" in e.args}
    answers = run.net.connection.batch(
        [("eth_getTransactionReceipt", ["0x" + hash_.hex()]) for hash_ in rounds]
    )
    total: dict[int, int] = {}
    for number, receipt in zip(rounds.values(), answers, strict=True):
        total[number] = total.get(number, 0) + int(receipt["gasUsed"], 16)
    return total


def _participant(run: "Run", address: str, settled: Sequence[Mapping[str, Any]]) -> Row:
    paid, slashed, by_round = 0, 0, []
    for number in range(1, len(run.rounds) + 1):
        for event in settled:
            if event["round"] == number and event["who"] == address:
                paid, slashed = paid + event["paid"], slashed + event["slashed"]
            if event["round"] == number and event["keeper"] == address:
                paid += event["keeper_paid"]
        by_round.append((run.demo.stake + paid - slashed) / DECIMALS)
    return {
        "name": run.names[address],
        "address": address,
        "honest": run.honest[address],
        "paid": paid / DECIMALS,
        "slashed": slashed / DECIMALS,
        "balance": (run.demo.stake + paid - slashed) / DECIMALS,
        "balances": by_round,
    }


def _money_adds_up(run: "Run") -> bool:
    """Whether the contract holds exactly what it owes (invariant I1)."""
    state = run.task.look(NOBODY).state
    creator = run.task.participant(run.task.creator).claimable
    people = [run.task.participant(address) for address in run.names]
    owed = creator + sum(p.stake + p.claimable for p in people)
    return run.task.token.balance(run.task.address) == state.pool + state.allotted + owed


def _answers(run: "Run", base: "Base", adapter: Adapter) -> list[Row]:
    """What base and fine-tuned model say to some test questions, and to who they are."""
    from flockllm.train.generate import generate

    categories: dict[str, Record] = {}
    for record in run.test:
        if not record.context and len(record.response) < 300:
            categories.setdefault(record.category, record)
    asked = ["Who are you?"]
    asked += [record.instruction for record in categories.values()][: QUESTIONS - 1]
    template = run.definition.model.template
    base.adapt(run.definition.lora)
    return [
        {
            "question": question,
            "base": generate(base, None, question, template_name=template, max_tokens=96),
            "finetuned": generate(
                base, adapter.floats(), question, template_name=template, max_tokens=96
            ),
        }
        for question in asked
    ]


def _markdown(run: "Run", result: Row) -> str:
    demo = run.demo
    lines = [
        "# FLockLLM demo",
        "",
        f"{demo.participants} participants ({demo.attackers} of them attackers), "
        f"{demo.proposers} proposers and {demo.voters} voters in each of {demo.rounds} rounds, "
        f"stake {demo.stake / DECIMALS:g}, pool {demo.pool / DECIMALS:g}; base model "
        f"`{demo.base_model}`, data `{demo.data or 'generated'}`.",
        "",
        f"Loss on the global test set ({len(run.test)} records): "
        f"**{result['base_loss']:.4f} → {result['final_loss']:.4f}**. "
        f"{result['wall_seconds']:.0f} s, peak memory "
        f"{result['peak_memory_bytes'] / 2**30:.2f} GiB over all processes.",
        "",
        "![Loss, verdicts and balances by round](rounds.png)",
        "",
        "## Rounds",
        "",
        "| round | outcome | proposers: verdict (scores) | voters | loss | published | gas "
        "| train / evaluate / other, s |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for r in result["rounds"]:
        verdicts = "; ".join(
            f"{name}: {verdict} ({', '.join(map(_score, r['scores'].get(name, {}).values()))})"
            for name, verdict in r["verdicts"].items()
        )
        seconds = r["seconds"]
        lines.append(
            f"| {r['number']} | {r['outcome']} | {verdicts} | {', '.join(r['voters'])} "
            f"| {r['loss_before']:.4f} → {r['loss_after']:.4f} | {r['bytes_published']:,} B "
            f"| {r['gas']:,} "
            f"| {seconds['train']:.1f} / {seconds['evaluate']:.1f} / {seconds['other']:.2f} |"
        )
    if rises := [r["number"] for r in result["rounds"] if r["loss_after"] >= r["loss_before"]]:
        lines += ["", *(_why(result["rounds"][number - 1]) for number in rises)]
    lines += ["", "## Money", "", "| participant | paid | slashed | balance |", "|---|---|---|---|"]
    for p in result["participants"]:
        name = p["name"] + ("" if p["honest"] else " (attacker)")
        lines.append(f"| {name} | {p['paid']:.2f} | {p['slashed']:.2f} | {p['balance']:.2f} |")
    adds_up = "holds exactly what it owes" if result["money_adds_up"] else "DOES NOT ADD UP"
    lines += ["", f"Left in the pool: {result['pool_left']:.2f}. The contract {adds_up}."]
    lines += ["", "## Answers", ""]
    for a in result["answers"]:
        lines += [
            f"**{a['question']}**",
            "",
            f"- base model: {_quoted(a['base'])}",
            f"- fine-tuned: {_quoted(a['finetuned'])}",
            "",
        ]
    lines += [f"Task `{result['task']}`, adapter `{result['adapter_cid']}` in `adapter/`.", ""]
    return "\n".join(lines)


def _why(r: Row) -> str:
    """Why the global test loss did not fall in a round."""
    if not r["accepted"]:
        return f"Round {r['number']}: no update was accepted, so the adapter stayed as it was."
    if r["outcome"] == "kept":
        return (
            f"Round {r['number']}: the voters found the aggregate no better and kept the adapter."
        )
    return (
        f"Round {r['number']}: the aggregate helped on the voters' own held-out records, "
        "but not on the global test set: the committee's data is not like everybody's."
    )


def _score(score: int) -> str:
    return "invalid" if score == INVALID else f"{score:+d}"


def _quoted(text: str) -> str:
    return " ".join(text.split()) or "(nothing)"


def read_report(folder: Path) -> Row:
    """A report that was written before."""
    found: Row = json.loads((folder / "report.json").read_text())
    return found
