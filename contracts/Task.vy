# pragma version 0.4.3
# pragma evm-version cancun
# pragma nonreentrancy on
"""
@title A FLockLLM task
@license Apache-2.0
@notice Strangers improve one LoRA adapter round by round: a drawn committee of P proposers and V
        voters trains, publishes, scores and attests; stakes answer for what they do, the pool pays.
        IDLE → DRAW → TRAIN → PUBLISH → EVALUATE → REVEAL → TALLY → ATTEST → IDLE of the next round
@dev Rules: docs/protocol.md. All external functions, views too, are behind one reentrancy lock.
     A = V // 2 + 1 and K = ceil(2V / 3) are always held against the voters drawn.
     Deployed from a blueprint by TaskFactory; the terms live in the code, as immutables.
"""

import events
import packing
import seats as committee
import stakes
import terms as rules
import verdicts

initializes: stakes
initializes: committee

exports: (stakes.token, stakes.pool, stakes.allotted)

# kinds, as numbers so that every ABI reads them


IDLE: constant(uint256) = 0
DRAW: constant(uint256) = 1
TRAIN: constant(uint256) = 2
PUBLISH: constant(uint256) = 3
EVALUATE: constant(uint256) = 4
REVEAL: constant(uint256) = 5
TALLY: constant(uint256) = 6
ATTEST: constant(uint256) = 7
FINISHED: constant(uint256) = 8
CANCELLED: constant(uint256) = 9

DRAWN: constant(uint256) = 0
COMMITTED: constant(uint256) = 1
DONE: constant(uint256) = 2  # a proposer has published, a voter has revealed
ABSTAINED: constant(uint256) = 3

OPEN: constant(uint256) = 0
VOID: constant(uint256) = 1
KEPT: constant(uint256) = 2
ADOPTED: constant(uint256) = 3

BPS: constant(uint256) = 10_000
MAX_PROPOSERS: constant(uint256) = 16
MAX_VOTERS: constant(uint256) = 63
MAX_SEATS: constant(uint256) = 79
MAX_SIZE: constant(uint256) = 2**48 - 1  # bytes of an update, 256 TiB
READABLE: constant(uint256) = 256  # blocks for which the EVM knows a block's hash
RETIRED: constant(uint256) = 3  # no-shows in a row


# what views return


struct State:
    round: uint256  # from 1: the running round, or the next one
    phase: uint256
    since: uint256  # when the phase was entered
    deadline: uint256  # from when on anyone may end it; 0 if it waits for something else
    draw_block: uint256
    adapter: bytes32  # the current global adapter
    pool: uint256
    allotted: uint256
    active: uint256  # N


struct Seat:
    who: address
    voter: bool
    duty: uint256
    commitment: bytes32
    digest: bytes32  # proposer: the update published; voter: the adapter attested
    size: uint256  # bytes of the update
    scores: uint256  # voter: as revealed
    verdict: uint256
    weight: uint256
    settled: bool


struct Participant:
    registered: bool
    stake: uint256
    deposited: uint256  # all that was ever put in as stake
    claimable: uint256
    index: uint256  # place in the active list, from 1; 0 if not active
    missed: uint256  # no-shows in a row
    unsettled: uint256  # seats not settled, the running round's included
    last_round: uint256  # the last in which it was drawn


struct Round:
    seed: bytes32
    budget: uint256
    close: uint256  # packed Close
    good_low: uint256  # item i at bits 16·i: scores ≥ τ, at 16·i + 8: scores ≤ -M
    high: uint256  # item i at bits 16·i: scores ≥ M


struct Record:
    mark: uint256  # packed Mark
    commitment: bytes32
    digest: bytes32
    scores: uint256


# state


creator: public(immutable(address))
spec_digest: public(immutable(bytes32))
initial_adapter: public(immutable(bytes32))
TERMS: immutable(rules.Terms)
MAJORITY: immutable(uint256)  # A
MOST: immutable(uint256)  # K

entropy: public(uint256)  # xor of the salts revealed since the last draw
_clock: uint256  # packed Clock
_standings: HashMap[address, uint256]  # packed Standing
_rounds: HashMap[uint256, Round]
_adapters: HashMap[uint256, bytes32]  # the global adapter after a round; 0: the initial one
_seat_of: HashMap[uint256, HashMap[address, uint256]]  # round -> who -> seat + 1
_records: HashMap[uint256, Record]  # round << 7 | seat
_published: HashMap[bytes32, bool]  # digests of updates seen in this task
_support: HashMap[uint256, HashMap[bytes32, uint256]]  # round -> digest -> attestations


@deploy
def __init__(
    terms_: rules.Terms, token: address, spec_digest_: bytes32, adapter: bytes32, creator_: address
):
    """
    @notice Makes a task, idle before its first round.
    @dev Believes its arguments: TaskFactory has checked them. Trust a task that a factory lists.
    @param terms_ See terms.vy.
    @param token An ERC-20 without transfer fee, for bonds and pay.
    @param spec_digest_ Digest of the task definition.
    @param adapter Digest of the initial global adapter.
    @param creator_ Who may cancel, and withdraw what is left.
    """
    stakes.__init__(token)
    creator = creator_
    spec_digest = spec_digest_
    initial_adapter = adapter
    TERMS = terms_
    MAJORITY = terms_.voters // 2 + 1
    MOST = (2 * terms_.voters + 2) // 3
    self._adapters[0] = adapter
    self._store_clock(packing.Clock(
        round=1, phase=IDLE, since=block.timestamp, deadline=0, draw_block=0, waiting=0, done=0,
        revealed=0,
    ))


# anyone who wants to take part


@external
def register(amount: uint256):
    """
    @notice Puts `amount` at stake; from the next draw on the caller can get a seat.
    @dev Anyone who is not registered, between draws, while the task lives.
    @param amount At least the bond; must be approved.
    """
    phase: uint256 = self._load_clock().phase
    assert phase != DRAW, "task: drawing"
    assert phase < FINISHED, "task: over"
    standing: packing.Standing = self._load_standing(msg.sender)
    assert not standing.registered, "task: registered already"
    assert amount >= TERMS.bond, "task: less than the bond"

    standing.registered = True
    standing.missed = 0
    self._store_standing(msg.sender, standing)
    stakes.deposit(msg.sender, amount)
    committee.join(msg.sender)

    log events.Registered(who=msg.sender, amount=amount)
    stakes.pull(amount)


@external
def top_up(amount: uint256):
    """
    @notice Adds to the caller's stake; with the bond complete it can be drawn, unless retired.
    @dev Participants, between draws.
    """
    assert self._load_clock().phase != DRAW, "task: drawing"
    standing: packing.Standing = self._load_standing(msg.sender)
    assert standing.registered, "task: not registered"
    assert amount > 0, "task: nothing to add"

    stakes.deposit(msg.sender, amount)
    if stakes.stake[msg.sender] >= TERMS.bond and standing.missed < RETIRED:
        committee.join(msg.sender)

    log events.ToppedUp(who=msg.sender, amount=amount, stake=stakes.stake[msg.sender])
    stakes.pull(amount)


@external
def reactivate():
    """
    @notice Ends the caller's retirement after three no-shows in a row.
    @dev Retired participants with the bond at stake, between draws.
    """
    assert self._load_clock().phase != DRAW, "task: drawing"
    standing: packing.Standing = self._load_standing(msg.sender)
    assert standing.missed == RETIRED, "task: not retired"
    assert stakes.stake[msg.sender] >= TERMS.bond, "task: less than the bond"

    standing.missed = 0
    self._store_standing(msg.sender, standing)
    committee.join(msg.sender)

    log events.Reactivated(who=msg.sender)


@external
def exit():
    """
    @notice Ends the caller's part: the whole stake becomes claimable.
    @dev Participants without an unsettled seat, between draws.
    """
    assert self._load_clock().phase != DRAW, "task: drawing"
    standing: packing.Standing = self._load_standing(msg.sender)
    assert standing.registered, "task: not registered"
    assert standing.unsettled == 0, "task: unsettled seat"

    standing.registered = False
    standing.missed = 0
    self._store_standing(msg.sender, standing)
    committee.leave(msg.sender)
    amount: uint256 = stakes.release(msg.sender)

    log events.Exited(who=msg.sender, amount=amount)


# anyone


@external
def claim():
    """
    @notice Sends the caller all that it may claim. Always possible.
    """
    amount: uint256 = stakes.take(msg.sender)

    log events.Claimed(who=msg.sender, amount=amount)
    stakes.push(msg.sender, amount)


@external
def fund(amount: uint256):
    """
    @notice Adds to the pool that the rounds still to be drawn share.
    @dev Anyone, while the task lives.
    """
    assert self._load_clock().phase < FINISHED, "task: over"
    assert amount > 0, "task: nothing to add"

    stakes.fund(amount)

    log events.Funded(who=msg.sender, amount=amount)
    stakes.pull(amount)


@external
def open_round():
    """
    @notice Asks for a committee: fixes the block whose hash will draw it, and freezes the list.
    @dev Anyone, in IDLE, with at least P + V active participants.
    """
    clock: packing.Clock = self._load_clock()
    assert clock.phase == IDLE, "task: wrong phase"
    assert committee.active >= TERMS.proposers + TERMS.voters, "task: too few participants"

    clock.draw_block = block.number + 1
    self._enter(clock, DRAW, 0)

    log events.RoundOpened(round=clock.round, draw_block=clock.draw_block)


@external
def draw():
    """
    @notice Draws the committee from the draw block's hash and allots the round's budget.
    @dev Anyone, in DRAW, from the block after the draw block on, while its hash can be read.
         entropy adds what last round's salts reveal, so that a block's author needs their help.
    """
    clock: packing.Clock = self._load_clock()
    assert clock.phase == DRAW, "task: wrong phase"
    assert block.number > clock.draw_block, "task: draw block not mined"
    assert block.number <= clock.draw_block + READABLE, "task: draw block forgotten"

    round: uint256 = clock.round
    seed: bytes32 = keccak256(
        abi_encode(chain.id, self, round, blockhash(clock.draw_block), self.entropy)
    )
    self.entropy = 0
    budget: uint256 = stakes.allot(TERMS.rounds - round + 1)
    self._rounds[round].seed = seed
    self._rounds[round].budget = budget
    self._rounds[round].close = clock.draw_block << 40  # all else 0: OPEN
    members: DynArray[address, MAX_SEATS] = committee.draw(
        round, seed, TERMS.proposers + TERMS.voters
    )
    for seat: uint256 in range(len(members), bound=MAX_SEATS):
        who: address = members[seat]
        self._records[self._key(round, seat)].mark = convert(who, uint256)  # DRAWN, all else 0
        self._seat_of[round][who] = seat + 1
        standing: packing.Standing = self._load_standing(who)
        standing.unsettled += 1
        standing.last_round = round
        self._store_standing(who, standing)
    clock.waiting = TERMS.proposers
    clock.done = 0
    clock.revealed = 0

    log events.CommitteeDrawn(
        round=round, seed=seed, draw_block=clock.draw_block, budget=budget, members=members
    )
    self._enter(clock, TRAIN, TERMS.train_seconds)


@external
def advance():
    """
    @notice Ends a phase whose deadline has passed; in DRAW, replaces a forgotten draw block.
    @dev Anyone. A late draw is no new chance: whoever could keep everybody from drawing for 256
         blocks could as well keep a round from opening.
    """
    clock: packing.Clock = self._load_clock()
    if clock.phase == DRAW:
        assert block.number > clock.draw_block + READABLE, "task: too early"
        clock.draw_block = block.number + 1
        self._store_clock(clock)
        log events.RoundOpened(round=clock.round, draw_block=clock.draw_block)
    else:
        assert clock.deadline > 0, "task: nothing to advance"
        assert block.timestamp >= clock.deadline, "task: too early"
        self._leave(clock)


@external
def tally(limit: uint256):
    """
    @notice Judges up to `limit` more items in seat order; after the last one the round goes on.
    @dev Anyone, in TALLY. With limit ≥ P one call does it, in 2.3 M gas at P = 16, V = 63.
    """
    clock: packing.Clock = self._load_clock()
    assert clock.phase == TALLY, "task: wrong phase"
    assert limit > 0, "task: nothing to do"

    words: DynArray[uint256, MAX_VOTERS] = self._revealed_words(clock.round)
    for _: uint256 in range(min(limit, clock.waiting), bound=MAX_PROPOSERS):
        if self._judge(clock.round, TERMS.proposers - clock.waiting, words):
            clock.done += 1
        clock.waiting -= 1

    if clock.waiting > 0:
        self._store_clock(clock)
    else:
        self._leave(clock)


@external
def settle(round: uint256, who: address):
    """
    @notice Pays or slashes one seat of a closed round, once.
    @dev Anyone, except between open_round and draw: a slash may take `who` off the list. The order
         of settlements does not matter: what a seat gets depends on its round alone, and a slash
         is cut only where several together exceed the stake.
    @param round The closed round.
    @param who Whose seat.
    """
    clock: packing.Clock = self._load_clock()
    assert clock.phase != DRAW, "task: drawing"
    place: uint256 = self._seat_of[round][who]
    assert place > 0, "task: no such seat"
    assert round < clock.round, "task: round not closed"
    seat: uint256 = place - 1
    mark: packing.Mark = self._load_mark(round, seat)
    assert not mark.settled, "task: settled already"

    due: uint256 = 0  # what leaves the allotted
    paid: uint256 = 0  # of it, to the seat
    bps: uint256 = 0  # of the bond, slashed
    if seat < TERMS.proposers:
        paid, bps = self._proposer_dues(round, mark)
        due = paid
    else:
        due, paid, bps = self._voter_dues(round, seat, mark)
    slashed: uint256 = min(TERMS.bond * min(bps, BPS) // BPS, stakes.stake[who])
    keeper_paid: uint256 = 0
    if msg.sender != who:
        keeper_paid = slashed * TERMS.keeper_share // BPS

    mark.settled = True
    self._store_mark(round, seat, mark)
    standing: packing.Standing = self._load_standing(who)
    standing.unsettled -= 1
    self._store_standing(who, standing)
    if paid > 0:
        stakes.pay(who, paid)
    if due > paid:
        stakes.give_back(due - paid)
    if slashed > 0:
        stakes.slash(who, slashed, msg.sender, keeper_paid)
        if stakes.stake[who] < TERMS.bond:
            committee.leave(who)

    log events.SeatSettled(
        round=round,
        who=who,
        keeper=msg.sender,
        paid=paid,
        slashed=slashed,
        keeper_paid=keeper_paid,
        returned=due - paid + slashed - keeper_paid,
    )


# proposers


@external
def commit_update(round: uint256, commitment: bytes32):
    """
    @notice Binds the caller to an update that nobody can see yet.
    @dev Drawn proposers, in TRAIN.
    @param round The running round, so that a call mined late never counts for another.
    @param commitment keccak256(abi_encode(chain id, task, round, caller, digest, salt)).
    """
    clock: packing.Clock = self._running(round, TRAIN)
    seat: uint256 = self._proposer(round)
    mark: packing.Mark = self._load_mark(round, seat)
    assert mark.duty == DRAWN, "task: done already"

    mark.duty = COMMITTED
    self._store_mark(round, seat, mark)
    self._records[self._key(round, seat)].commitment = commitment
    self._showed(msg.sender)

    log events.UpdateCommitted(round=round, proposer=msg.sender, commitment=commitment)
    self._acted(clock, 1)


@external
def abstain(round: uint256):
    """
    @notice Says that the caller's training gave no improvement: no pay, no penalty.
    @dev Drawn proposers, in TRAIN.
    """
    clock: packing.Clock = self._running(round, TRAIN)
    seat: uint256 = self._proposer(round)
    mark: packing.Mark = self._load_mark(round, seat)
    assert mark.duty == DRAWN, "task: done already"

    mark.duty = ABSTAINED
    self._store_mark(round, seat, mark)
    self._showed(msg.sender)

    log events.Abstained(round=round, proposer=msg.sender)
    self._acted(clock, 0)


@external
def publish_update(round: uint256, digest: bytes32, size: uint256, salt: bytes32):
    """
    @notice Opens the caller's commitment: its update is in the store under `digest`.
    @dev Committed proposers, in PUBLISH. A digest counts once in a task.
    @param size Bytes of the update; with the digest it gives the content identifier.
    @param salt What the commitment was made with; adds to the entropy of the next draw.
    """
    clock: packing.Clock = self._running(round, PUBLISH)
    seat: uint256 = self._proposer(round)
    mark: packing.Mark = self._load_mark(round, seat)
    assert mark.duty == COMMITTED, "task: no open commitment"
    assert digest != empty(bytes32), "task: no digest"
    assert size <= MAX_SIZE, "task: size too large"
    assert not self._published[digest], "task: digest seen before"
    self._check_opening(round, seat, digest, salt)

    mark.duty = DONE
    mark.size = size
    self._store_mark(round, seat, mark)
    self._records[self._key(round, seat)].digest = digest
    self._published[digest] = True
    self.entropy ^= convert(salt, uint256)

    log events.UpdatePublished(
        round=round, proposer=msg.sender, digest=digest, size=size, salt=salt
    )
    self._acted(clock, 1)


# voters


@external
def commit_vote(round: uint256, commitment: bytes32):
    """
    @notice Binds the caller to scores that nobody can see yet.
    @dev Drawn voters, in EVALUATE.
    @param commitment keccak256(abi_encode(chain id, task, round, caller, scores, salt)).
    """
    clock: packing.Clock = self._running(round, EVALUATE)
    seat: uint256 = self._voter(round)
    mark: packing.Mark = self._load_mark(round, seat)
    assert mark.duty == DRAWN, "task: done already"

    mark.duty = COMMITTED
    self._store_mark(round, seat, mark)
    self._records[self._key(round, seat)].commitment = commitment
    self._showed(msg.sender)

    log events.VoteCommitted(round=round, voter=msg.sender, commitment=commitment)
    self._acted(clock, 1)


@external
def reveal_vote(round: uint256, scores: uint256, salt: bytes32):
    """
    @notice Opens the caller's commitment: its scores count.
    @dev Committed voters, in REVEAL.
    @param scores One int16 per proposer seat, see verdicts.vy.
    @param salt What the commitment was made with; adds to the entropy of the next draw.
    """
    clock: packing.Clock = self._running(round, REVEAL)
    seat: uint256 = self._voter(round)
    mark: packing.Mark = self._load_mark(round, seat)
    assert mark.duty == COMMITTED, "task: no open commitment"
    self._check_opening(round, seat, convert(scores, bytes32), salt)

    mark.duty = DONE
    self._store_mark(round, seat, mark)
    self._records[self._key(round, seat)].scores = scores
    self.entropy ^= convert(salt, uint256)

    log events.VoteRevealed(round=round, voter=msg.sender, scores=scores, salt=salt)
    self._acted(clock, 1)


@external
def attest(round: uint256, digest: bytes32):
    """
    @notice Says what the accepted updates aggregate to; the current adapter's digest says that the
            aggregate is no improvement.
    @dev Voters that revealed, in ATTEST, once. K equal digests close the round.
    """
    clock: packing.Clock = self._running(round, ATTEST)
    seat: uint256 = self._voter(round)
    mark: packing.Mark = self._load_mark(round, seat)
    assert mark.duty == DONE, "task: not revealed"
    key: uint256 = self._key(round, seat)
    assert self._records[key].digest == empty(bytes32), "task: done already"
    assert digest != empty(bytes32), "task: no digest"

    self._records[key].digest = digest
    support: uint256 = self._support[round][digest] + 1
    self._support[round][digest] = support
    if support >= MAJORITY:
        self._adapters[round] = digest  # at most one digest has so many

    log events.Attested(round=round, voter=msg.sender, digest=digest)
    if support >= MOST:
        self._close(clock, False)
    else:
        self._acted(clock, 1)


# the creator


@external
def cancel():
    """
    @notice Ends a task that finds too few participants; stakes stay theirs.
    @dev The creator, in IDLE, after idle_timeout, with fewer than P + V active participants.
    """
    clock: packing.Clock = self._load_clock()
    assert msg.sender == creator, "task: not the creator"
    assert clock.phase == IDLE, "task: wrong phase"
    assert committee.active < TERMS.proposers + TERMS.voters, "task: enough participants"
    assert block.timestamp >= clock.since + TERMS.idle_timeout, "task: too early"

    log events.Cancelled(round=clock.round)
    self._enter(clock, CANCELLED, 0)


@external
def withdraw_rest():
    """
    @notice Makes what is in the pool claimable by the creator.
    @dev The creator, once the task is over; again as late settlements return more.
    """
    assert msg.sender == creator, "task: not the creator"
    assert self._load_clock().phase >= FINISHED, "task: not over"

    amount: uint256 = stakes.drain(msg.sender)
    assert amount > 0, "task: nothing to withdraw"

    log events.RestWithdrawn(amount=amount)


# views


@external
@view
def terms() -> rules.Terms:
    """
    @notice What the creator fixed.
    """
    return TERMS


@external
@view
def look(who: address) -> (State, DynArray[Seat, MAX_SEATS], Participant):
    """
    @notice Everything that a node needs to decide what to do, in one call.
    @return The task, the seats of the running round (none in IDLE and DRAW), and `who`.
    """
    clock: packing.Clock = self._load_clock()
    state: State = State(
        round=clock.round,
        phase=clock.phase,
        since=clock.since,
        deadline=clock.deadline,
        draw_block=clock.draw_block,
        adapter=self._adapters[clock.round - 1],
        pool=stakes.pool,
        allotted=stakes.allotted,
        active=committee.active,
    )
    return state, self._seats(clock.round), self._participant(who)


@external
@view
def seats(round: uint256) -> DynArray[Seat, MAX_SEATS]:
    """
    @notice The seats of a round, proposers first; none before its draw.
    """
    return self._seats(round)


@external
@view
def participants(who: address) -> Participant:
    """
    @notice What is known of `who`.
    """
    return self._participant(who)


@external
@view
def active_member(index: uint256) -> address:
    """
    @notice The active participant at `index`, from 0: the list that seats are drawn from.
    """
    return committee.members[index]


@external
@view
def round_result(
    round: uint256,
) -> (uint256, bytes32, uint256, uint256, bytes32, bytes32, uint256, bool, bool):
    """
    @notice What is left of a round; while it is open only what its draw fixed, and adapter_before.
    @return outcome, seed, draw_block, budget, adapter_before, adapter_after, support,
            attest_timed_out, evaluated (the round reached EVALUATE)
    """
    close: packing.Close = self._load_close(round)
    before: bytes32 = empty(bytes32)
    if round > 0:
        before = self._adapters[round - 1]
    after: bytes32 = empty(bytes32)
    if close.outcome != OPEN:
        after = self._adapters[round]
    return (
        close.outcome,
        self._rounds[round].seed,
        close.draw_block,
        self._rounds[round].budget,
        before,
        after,
        close.support,
        close.timed_out,
        close.last_phase >= EVALUATE,
    )


# a round's way


def _running(round: uint256, phase: uint256) -> packing.Clock:
    """
    @notice The clock, if `round` runs, is in `phase` and before its deadline; else reverts.
    """
    clock: packing.Clock = self._load_clock()
    assert clock.round == round, "task: wrong round"
    assert clock.phase == phase, "task: wrong phase"
    assert block.timestamp < clock.deadline, "task: late"
    return clock


def _acted(clock: packing.Clock, done: uint256):
    """
    @notice Counts a seat's act; the last one ends the phase.
    @param done 1 if the phase's work was done, 0 if declined.
    """
    after: packing.Clock = clock
    after.waiting -= 1
    after.done += done
    if after.waiting > 0:
        self._store_clock(after)
    else:
        self._leave(after)


def _enter(clock: packing.Clock, phase: uint256, length: uint256):
    """
    @notice Starts a phase of at most `length` seconds; 0 if time does not end it.
    """
    after: packing.Clock = clock
    after.phase = phase
    after.since = block.timestamp
    after.deadline = 0
    if length > 0:
        after.deadline = block.timestamp + length
    self._store_clock(after)

    log events.PhaseEntered(round=after.round, phase=phase, deadline=after.deadline)


def _leave(clock: packing.Clock):
    """
    @notice Ends the phase: starts the next one, or closes the round.
    @dev Reached when all have acted (waiting = 0) or when the deadline has passed.
    """
    next: packing.Clock = clock
    done: uint256 = clock.done
    next.done = 0
    next.waiting = done
    if clock.phase == TRAIN:
        self._count_no_shows(clock, 0, TERMS.proposers)
        if done > 0:
            self._enter(next, PUBLISH, TERMS.publish_seconds)
        else:
            self._close(clock, True)
    elif clock.phase == PUBLISH:
        next.waiting = TERMS.voters
        if done > 0:
            self._enter(next, EVALUATE, TERMS.evaluate_seconds)
        else:
            self._close(clock, True)
    elif clock.phase == EVALUATE:
        self._count_no_shows(clock, TERMS.proposers, TERMS.proposers + TERMS.voters)
        if done >= MAJORITY:
            self._enter(next, REVEAL, TERMS.reveal_seconds)
        else:
            self._close(clock, True)
    elif clock.phase == REVEAL:
        next.waiting = TERMS.proposers
        next.revealed = done
        if done >= MAJORITY:
            self._enter(next, TALLY, 0)
        else:
            self._close(clock, True)
    elif clock.phase == TALLY:
        next.waiting = clock.revealed
        if done > 0:
            self._enter(next, ATTEST, TERMS.attest_seconds)
        else:
            self._close(clock, False)
    else:
        self._close(clock, False)


def _count_no_shows(clock: packing.Clock, start: uint256, stop: uint256):
    """
    @notice Counts a no-show for each seat in [start, stop) that did nothing; the third retires.
    """
    if clock.waiting == 0:
        return
    for seat: uint256 in range(start, stop, bound=MAX_SEATS):
        mark: packing.Mark = self._load_mark(clock.round, seat)
        if mark.duty == DRAWN:
            standing: packing.Standing = self._load_standing(mark.who)
            standing.missed += 1
            self._store_standing(mark.who, standing)
            if standing.missed == RETIRED:
                committee.leave(mark.who)
                log events.Retired(who=mark.who, round=clock.round)


def _close(clock: packing.Clock, void: bool):
    """
    @notice Ends the round: fixes its outcome, returns to the pool what no seat can get.
    @dev A void round returns all. ATTEST timed out if seats still wait and no digest has K.
    """
    round: uint256 = clock.round
    before: bytes32 = self._adapters[round - 1]
    winner: bytes32 = self._adapters[round]
    budget: uint256 = self._rounds[round].budget
    close: packing.Close = self._load_close(round)
    close.last_phase = clock.phase
    close.revealed = clock.revealed
    close.outcome = VOID if void else KEPT
    if winner == empty(bytes32):
        self._adapters[round] = before
    else:
        close.support = self._support[round][winner]
        if winner != before:
            close.outcome = ADOPTED
    close.timed_out = clock.phase == ATTEST and close.support < MOST and clock.waiting > 0
    self._store_close(round, close)
    returned: uint256 = budget
    if not void:
        returned -= TERMS.voters * self._voter_unit(budget)
        for seat: uint256 in range(TERMS.proposers, bound=MAX_PROPOSERS):
            weight: uint256 = self._load_mark(round, seat).weight
            returned -= self._proposer_pay(budget, weight, close.weights)
    if returned > 0:
        stakes.give_back(returned)

    log events.RoundClosed(
        round=round, outcome=close.outcome, adapter=self._adapters[round], returned=returned
    )
    next: packing.Clock = clock
    next.round = round + 1
    next.waiting = 0
    next.done = 0
    next.revealed = 0
    self._enter(next, IDLE if round < TERMS.rounds else FINISHED, 0)


# judging and paying


def _judge(round: uint256, item: uint256, words: DynArray[uint256, MAX_VOTERS]) -> bool:
    """
    @notice Judges one item by all revealed scores and keeps the counts that settlement needs.
    @return Whether it is accepted.
    """
    mark: packing.Mark = self._load_mark(round, item)
    if mark.duty != DONE:
        return False
    item_scores: DynArray[uint256, MAX_VOTERS] = []
    for word: uint256 in words:
        item_scores.append(verdicts.biased(word, item))
    counts: verdicts.Counts = verdicts.count(
        item_scores, TERMS.accept_margin, TERMS.strong_margin
    )
    mark.verdict = verdicts.verdict(counts, MOST, MAJORITY)
    accepted: bool = mark.verdict == verdicts.ACCEPTED
    if accepted:
        mark.weight = verdicts.weight(item_scores, TERMS.score_cap)
        close: packing.Close = self._load_close(round)
        close.weights += mark.weight
        self._store_close(round, close)
    self._store_mark(round, item, mark)
    self._rounds[round].good_low |= (counts.good | (counts.low << 8)) << (16 * item)
    self._rounds[round].high |= counts.high << (16 * item)

    log events.UpdateJudged(
        round=round, proposer=mark.who, verdict=mark.verdict, weight=mark.weight
    )
    return accepted


@view
def _revealed_words(round: uint256) -> DynArray[uint256, MAX_VOTERS]:
    """
    @notice The packed scores of all voters that revealed.
    """
    words: DynArray[uint256, MAX_VOTERS] = []
    for seat: uint256 in range(
        TERMS.proposers, TERMS.proposers + TERMS.voters, bound=MAX_VOTERS
    ):
        if self._load_mark(round, seat).duty == DONE:
            words.append(self._records[self._key(round, seat)].scores)
    return words


@view
def _proposer_pot(budget: uint256) -> uint256:
    """
    @notice The proposers' part of a budget.
    """
    return budget * TERMS.proposer_share // BPS


@view
def _proposer_pay(budget: uint256, weight: uint256, weights: uint256) -> uint256:
    """
    @notice A proposer's pay: by weight, at most twice an equal part.
    """
    if weights == 0:
        return 0
    pot: uint256 = self._proposer_pot(budget)
    return min(pot * weight // weights, 2 * pot // TERMS.proposers)


@view
def _voter_unit(budget: uint256) -> uint256:
    """
    @notice The most that one voter can get.
    """
    return (budget - self._proposer_pot(budget)) // TERMS.voters


@view
def _proposer_dues(round: uint256, mark: packing.Mark) -> (uint256, uint256):
    """
    @notice What a proposer seat of a closed round gets, and loses in bps of the bond.
    @dev In a void round no item has a verdict or a weight.
    """
    if mark.duty == DRAWN:
        return 0, TERMS.slash_no_show
    if mark.duty == COMMITTED:
        return 0, TERMS.slash_silent
    if mark.verdict == verdicts.INVALID:
        return 0, TERMS.slash_invalid
    if mark.verdict == verdicts.HARMFUL:
        return 0, TERMS.slash_harmful
    weights: uint256 = self._load_close(round).weights
    return self._proposer_pay(self._rounds[round].budget, mark.weight, weights), 0


@view
def _voter_dues(round: uint256, seat: uint256, mark: packing.Mark) -> (uint256, uint256, uint256):
    """
    @notice What leaves the allotted for a voter seat of a closed round, what of it the voter gets,
            and what it loses in bps of the bond.
    @dev Nobody is slashed for a phase that the round never reached: a voter that committed in a
         round void for lack of votes had no chance to reveal.
    """
    close: packing.Close = self._load_close(round)
    due: uint256 = 0
    if close.outcome != VOID:
        due = self._voter_unit(self._rounds[round].budget)
    if mark.duty == DRAWN:
        return due, 0, TERMS.slash_no_show if close.last_phase >= EVALUATE else 0
    if mark.duty == COMMITTED:
        return due, 0, TERMS.slash_silent if close.last_phase >= REVEAL else 0
    if close.outcome == VOID:
        return 0, 0, 0

    decided: uint256 = 0
    right: uint256 = 0
    contradictions: uint256 = 0
    decided, right, contradictions = self._compare(round, seat, close.revealed)
    attested: bytes32 = self._records[self._key(round, seat)].digest
    astray: bool = (
        close.outcome == ADOPTED
        and close.support >= MOST
        and attested not in [empty(bytes32), self._adapters[round], self._adapters[round - 1]]
    )
    if contradictions > 0 or astray:
        bps: uint256 = min(contradictions * TERMS.slash_contradiction, TERMS.slash_contradictions)
        if astray:
            bps += TERMS.slash_attestation
        return due, 0, bps
    if close.timed_out and attested == empty(bytes32):
        return due, 0, 0
    if decided == 0:
        return due, due // 2, 0
    return due, due * right // decided, 0


@view
def _compare(round: uint256, seat: uint256, revealed: uint256) -> (uint256, uint256, uint256):
    """
    @notice Holds a voter's scores against those of the others, item by item.
    @dev decided: more than half of the other drawn voters are on one side of the accept margin;
         right: so is this voter. A contradiction: it is strongly on one side, at least K others on
         the other; its own score is not in the count of that other side.
    @return How many items are decided, on how many it is right, how many it contradicts.
    """
    word: uint256 = self._records[self._key(round, seat)].scores
    good_low: uint256 = self._rounds[round].good_low
    highs: uint256 = self._rounds[round].high
    decided: uint256 = 0
    right: uint256 = 0
    contradictions: uint256 = 0
    for item: uint256 in range(TERMS.proposers, bound=MAX_PROPOSERS):
        if self._load_mark(round, item).duty != DONE:
            continue
        own: uint256 = verdicts.biased(word, item)
        own_good: bool = own >= verdicts.BIAS + TERMS.accept_margin
        good: uint256 = (good_low >> (16 * item)) & 255
        bad: uint256 = revealed - good
        if own_good:
            good -= 1
        else:
            bad -= 1
        if 2 * good > TERMS.voters - 1:
            decided += 1
            if own_good:
                right += 1
        elif 2 * bad > TERMS.voters - 1:
            decided += 1
            if not own_good:
                right += 1
        low: uint256 = (good_low >> (16 * item + 8)) & 255
        high: uint256 = (highs >> (16 * item)) & 255
        if own >= verdicts.BIAS + TERMS.strong_margin and low >= MOST:
            contradictions += 1
        elif own <= verdicts.BIAS - TERMS.strong_margin and high >= MOST:
            contradictions += 1
    return decided, right, contradictions


# seats


@view
def _proposer(round: uint256) -> uint256:
    """
    @notice The caller's proposer seat in `round`, or reverts.
    """
    place: uint256 = self._seat_of[round][msg.sender]
    assert 1 <= place and place <= TERMS.proposers, "task: not a proposer"
    return place - 1


@view
def _voter(round: uint256) -> uint256:
    """
    @notice The caller's voter seat in `round`, or reverts.
    """
    place: uint256 = self._seat_of[round][msg.sender]
    assert place > TERMS.proposers, "task: not a voter"
    return place - 1


@view
def _check_opening(round: uint256, seat: uint256, content: bytes32, salt: bytes32):
    """
    @notice Reverts unless the caller's commitment is to `content` with `salt`, here and now.
    @dev The six words exclude replays on other chains, in other tasks and rounds, by other senders.
    """
    opened: bytes32 = keccak256(abi_encode(chain.id, self, round, msg.sender, content, salt))
    assert self._records[self._key(round, seat)].commitment == opened, "task: wrong opening"


def _showed(who: address):
    """
    @notice Ends a row of no-shows.
    """
    standing: packing.Standing = self._load_standing(who)
    if standing.missed > 0:
        standing.missed = 0
        self._store_standing(who, standing)


@view
def _seats(round: uint256) -> DynArray[Seat, MAX_SEATS]:
    """
    @notice The seats of a round, unpacked; none before its draw.
    """
    result: DynArray[Seat, MAX_SEATS] = []
    for seat: uint256 in range(TERMS.proposers + TERMS.voters, bound=MAX_SEATS):
        mark: packing.Mark = self._load_mark(round, seat)
        if mark.who == empty(address):
            break
        record: Record = self._records[self._key(round, seat)]
        result.append(Seat(
            who=mark.who,
            voter=seat >= TERMS.proposers,
            duty=mark.duty,
            commitment=record.commitment,
            digest=record.digest,
            size=mark.size,
            scores=record.scores,
            verdict=mark.verdict,
            weight=mark.weight,
            settled=mark.settled,
        ))
    return result


@view
def _participant(who: address) -> Participant:
    """
    @notice What is known of `who`, unpacked.
    """
    standing: packing.Standing = self._load_standing(who)
    return Participant(
        registered=standing.registered,
        stake=stakes.stake[who],
        deposited=stakes.deposited[who],
        claimable=stakes.claimable[who],
        index=committee.place[who],
        missed=standing.missed,
        unsettled=standing.unsettled,
        last_round=standing.last_round,
    )


# storage of packed words, see packing.vy


@pure
def _key(round: uint256, seat: uint256) -> uint256:
    """
    @notice Where a seat's record is: seats take 7 bits.
    """
    return (round << 7) | seat


@view
def _load_clock() -> packing.Clock:
    """
    @notice The running round.
    """
    return packing.unpack_clock(self._clock)


def _store_clock(clock: packing.Clock):
    """
    @notice Keeps the running round.
    """
    self._clock = packing.pack_clock(clock)


@view
def _load_mark(round: uint256, seat: uint256) -> packing.Mark:
    """
    @notice A seat of a round.
    """
    return packing.unpack_mark(self._records[self._key(round, seat)].mark)


def _store_mark(round: uint256, seat: uint256, mark: packing.Mark):
    """
    @notice Keeps a seat of a round.
    """
    self._records[self._key(round, seat)].mark = packing.pack_mark(mark)


@view
def _load_close(round: uint256) -> packing.Close:
    """
    @notice How a round ended, as far as it has.
    """
    return packing.unpack_close(self._rounds[round].close)


def _store_close(round: uint256, close: packing.Close):
    """
    @notice Keeps how a round ended.
    """
    self._rounds[round].close = packing.pack_close(close)


@view
def _load_standing(who: address) -> packing.Standing:
    """
    @notice A participant's standing.
    """
    return packing.unpack_standing(self._standings[who])


def _store_standing(who: address, standing: packing.Standing):
    """
    @notice Keeps a participant's standing.
    """
    self._standings[who] = packing.pack_standing(standing)
