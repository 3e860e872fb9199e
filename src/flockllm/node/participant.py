"""One participant: look at the chain, decide, act; again until the task is over.

Decisions are `rounds.next_action`, a pure function of what is on chain; so a node that was
killed at any point looks again and goes on. Only `act` has effects.
"""

import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass, field

from flockllm.cid import cid_of, digest_of
from flockllm.errors import ChainError, Reverted, StoreError
from flockllm.node.journal import Journal, copy_of
from flockllm.node.outside import Bench, Blocks, Head, Task, Work
from flockllm.rounds import (
    RETIRED,
    Action,
    Address,
    Advance,
    Attest,
    Draw,
    Duty,
    OpenRound,
    Participant,
    Phase,
    Propose,
    Publish,
    Reactivate,
    Reveal,
    Seat,
    Settle,
    Stop,
    Tally,
    TopUp,
    View,
    Vote,
    Wait,
    commitment,
    next_action,
    pack_scores,
    unpack_scores,
    word,
)
from flockllm.task import in_tokens

log = logging.getLogger(__name__)

HEAD_TIMEOUT = 30.0
"""Seconds after which the chain is looked at again even if it says nothing new."""

TALLY_PIECE = 4
"""Updates judged by one call: bounded gas with many voters."""

FETCH_SHARE = 4
"""A quarter of what is left of the phase may be spent waiting for others' content."""


@dataclass
class Node:
    """A participant and the outside it acts on."""

    me: Address
    task: Task
    blocks: Blocks
    bench: Bench
    journal: Journal
    top_up_limit: int = 0
    """The most to add to the stake after slashes, in the token's smallest unit."""
    _past: dict[int, Sequence[Seat]] = field(default_factory=dict)
    _seen_rounds: int | None = None
    _trained: tuple[tuple[int, bytes], Work] | None = None
    _story: tuple[int, Phase] | None = None

    def run(self) -> None:
        """Takes part until the task is over and every seat of its last rounds is settled."""
        pause = 1.0
        while True:
            try:
                if isinstance(self.step(), Stop):
                    return
                pause = 1.0
            except Reverted as e:  # somebody was faster, or a deadline passed meanwhile
                log.debug("the contract refused: %s; looking again", e)
                self.blocks.heads(HEAD_TIMEOUT)
            except (ChainError, StoreError) as e:
                log.warning("%s; trying again in %.0f s", e, pause)
                time.sleep(pause)
                pause = min(60.0, 2 * pause)

    def step(self) -> Action:
        """Looks, decides and acts once. Done work is seen on chain, so repeating is safe."""
        head = self.blocks.head()
        view = self.task.look(self.me, head.number)
        self._tell(view)
        action = next_action(
            self.task.terms,
            view,
            self.me,
            head.timestamp,
            block=head.number,
            past=self._unsettled(view),
            top_up_limit=self.top_up_limit,
        )
        if isinstance(action, Wait):
            self.blocks.heads(HEAD_TIMEOUT)
        else:
            self.act(action, view, head)
        return action

    def act(self, action: Action, view: View, head: Head) -> None:
        """Does what was decided, once."""
        match action:
            case OpenRound():
                log.debug("asking for the committee of round %d", view.state.round)
                self.task.open_round()
            case Draw():
                self.task.draw()
            case Advance():
                log.info("%s is over its deadline: pushing it on", view.state.phase.name)
                self.task.advance()
            case Tally():
                self.task.tally(TALLY_PIECE)
            case TopUp(amount):
                log.info("topping up my stake by %s", in_tokens(amount))
                self.task.top_up(amount)
            case Reactivate():
                log.info("back after %d no-shows in a row", RETIRED)
                self.task.reactivate()
            case Settle(round_, who):
                self._settle(round_, who, view.me)
            case Propose(round_, current):
                self._propose(round_, current)
            case Publish(round_, current, committed):
                self._publish(round_, current, committed)
            case Vote(round_, current, updates):
                left = max(0, view.state.deadline - head.timestamp)
                scores = self._scores(round_, current, updates, time.time() + left / FETCH_SHARE)
                committed = self._commitment(round_, word(pack_scores(scores)), "vote")
                self.task.commit_vote(round_, committed)
            case Reveal(round_, current, updates, committed):
                self._reveal(round_, current, updates, committed)
            case Attest(round_, current, accepted):
                self._attest(round_, current, accepted)

    # Proposer

    def _propose(self, round_: int, current: bytes) -> None:
        trained = self._train(round_, current)
        log.info(
            "trained: held-out %.4f → %.4f (score %+d), update of %s",
            trained.before,
            trained.after,
            trained.score,
            _size(len(trained.data)),
        )
        if trained.score < self.task.terms.accept_margin:
            log.info("no improvement on my own held-out records: abstaining")
            self.task.abstain(round_)
            return
        digest = digest_of(trained.data)
        self.task.commit_update(round_, self._commitment(round_, digest, "update"))

    def _publish(self, round_: int, current: bytes, committed: bytes) -> None:
        data = self._train(round_, current).data
        digest = digest_of(data)
        if self._commitment(round_, digest, "update") != committed:
            log.error("my update was lost and did not train to the same bytes: staying silent")
            self.blocks.heads(HEAD_TIMEOUT)
            return
        self.bench.store.put(data)
        self.task.publish_update(round_, digest, len(data), self.bench.secret(round_, "update"))
        log.info("published update %s (%s)", cid_of(digest, len(data)), _size(len(data)))

    def _train(self, round_: int, current: bytes) -> Work:
        """Trained and measured once; after a restart, measured again."""
        if not self._trained or self._trained[0] != (round_, current):
            self._trained = (round_, current), self.bench.train(round_, current)
        return self._trained[1]

    # Voter

    def _scores(
        self,
        round_: int,
        current: bytes,
        updates: Sequence[tuple[int, bytes, int]],
        until: float,
    ) -> tuple[int, ...]:
        """Scores, computed once: the copy on disk opens the commitment after a restart."""
        terms = self.task.terms
        name = copy_of("scores", round_, current, *(digest for _, digest, _ in updates))
        if kept := self.journal.kept(name):
            return unpack_scores(int.from_bytes(kept), terms.proposers)
        scores = self.bench.vote(round_, current, updates, until)
        self.journal.keep(name, word(pack_scores(scores)))
        for item, digest, size in updates:
            log.info("update %s: score %+d", cid_of(digest, size), scores[item])
        return scores

    def _reveal(
        self,
        round_: int,
        current: bytes,
        updates: Sequence[tuple[int, bytes, int]],
        committed: bytes,
    ) -> None:
        packed = pack_scores(self._scores(round_, current, updates, time.time()))
        if self._commitment(round_, word(packed), "vote") != committed:
            log.error("my scores were lost and did not come out the same: staying silent")
            self.blocks.heads(HEAD_TIMEOUT)
            return
        self.task.reveal_vote(round_, packed, self.bench.secret(round_, "vote"))

    def _attest(
        self, round_: int, current: bytes, accepted: Sequence[tuple[bytes, int, int]]
    ) -> None:
        aggregate = self.bench.aggregate(round_, current, accepted)
        better = aggregate.score >= 0
        digest = self.bench.store.put(aggregate.data) if better else current
        log.info(
            "aggregate of %d accepted: held-out %.4f → %.4f; attesting %s",
            len(accepted),
            aggregate.before,
            aggregate.after,
            cid_of(digest, len(aggregate.data)) if better else "to keep the current one",
        )
        self.task.attest(round_, digest)

    # Everybody

    def _settle(self, round_: int, who: Address, before: Participant) -> None:
        self.task.settle(round_, who)
        after = self.task.look(self.me).me
        paid, slashed = after.claimable - before.claimable, before.stake - after.stake
        if who != self.me:
            log.info("settled %s in round %d; keeper's share %s", who, round_, in_tokens(paid))
            return
        log.info(
            "round %d settled: paid %s, slashed %s; stake %s, claimable %s",
            round_,
            in_tokens(paid),
            in_tokens(slashed),
            in_tokens(after.stake),
            in_tokens(after.claimable),
        )
        self.journal.record("settled", round=round_, paid=paid, slashed=slashed)

    def _commitment(self, round_: int, content: bytes, purpose: str) -> bytes:
        salt = self.bench.secret(round_, purpose)
        return commitment(self.task.chain_id, self.task.address, round_, self.me, content, salt)

    def _unsettled(self, view: View) -> dict[int, Sequence[Seat]]:
        """Closed rounds with open seats: all since the last look, and own ones from before."""
        closed = view.state.round - 1
        if self._seen_rounds is None:
            first = closed if not view.me.unsettled else 1
            self._past = dict.fromkeys(range(max(1, first), closed + 1), ())
        else:
            self._past |= dict.fromkeys(range(self._seen_rounds + 1, closed + 1), ())
        self._seen_rounds = closed
        for number in list(self._past):
            seats = self.task.seats(number)
            if all(seat.settled for seat in seats):
                del self._past[number]
            else:
                self._past[number] = seats
        return self._past

    def _tell(self, view: View) -> None:
        """Logs each new phase once, from where this participant stands."""
        state, terms = view.state, self.task.terms
        if self._story == (state.round, state.phase):
            return
        before, self._story = self._story, (state.round, state.phase)
        self.journal.record("phase", round=state.round, phase=state.phase.name)
        if before and before[0] < state.round:
            self._tell_end(state.round - 1)
        mine = next((seat for seat in view.seats if seat.who == self.me), None)
        match state.phase:
            case Phase.IDLE if view.me.registered and not view.me.index:
                log.warning(
                    "stake %s is below the bond %s: not drawn until it is topped up (--top-up)",
                    in_tokens(view.me.stake),
                    in_tokens(terms.bond),
                )
            case Phase.IDLE if state.active < terms.committee:
                log.info("waiting for participants: %d of %d", state.active, terms.committee)
            case Phase.TRAIN:
                role = "not drawn" if mine is None else "voter" if mine.voter else "proposer"
                log.info("round %d of %d: I am %s", state.round, terms.rounds, role.upper())
                self.bench.forget()
                self.journal.record("drawn", round=state.round, role=role)
            case Phase.EVALUATE:
                done = sum(not s.voter and s.duty == Duty.DONE for s in view.seats)
                log.info("round %d: %d updates published", state.round, done)
            case Phase.ATTEST:
                verdicts = [s.verdict.name.lower() for s in view.seats[: terms.proposers]]
                log.info("round %d: verdicts: %s", state.round, ", ".join(verdicts))

    def _tell_end(self, round_: int) -> None:
        result = self.task.result(round_)
        self.journal.drop(f"*-{round_}-*")
        log.info(
            "round %d finished: %s, adapter %s; %d rounds remaining",
            round_,
            result.outcome.name.lower(),
            self.bench.name(result.adapter_after),
            self.task.terms.rounds - round_,
        )


def _size(count: int) -> str:
    return f"{count / 1e6:.2f} MB" if count >= 1e5 else f"{count / 1e3:.1f} kB"
