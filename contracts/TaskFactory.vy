# pragma version 0.4.3
# pragma evm-version cancun
# pragma nonreentrancy on
"""
@title Where tasks come from
@license Apache-2.0
@notice Makes tasks from one audited code and lists them in the order of creation.
@dev Holds no tokens between calls and has no owner.
"""

from ethereum.ercs import IERC20

import terms as rules


interface Task:
    def fund(amount: uint256): nonpayable


event TaskCreated:
    task: indexed(address)
    creator: indexed(address)
    spec_digest: indexed(bytes32)
    index: uint256


blueprint: public(immutable(address))
task_count: public(uint256)
tasks: public(HashMap[uint256, address])


@deploy
def __init__(blueprint_: address):
    """
    @param blueprint_ Task's code as an EIP-5202 blueprint.
    """
    assert slice(blueprint_.code, 0, 3) == x"fe7100", "factory: no blueprint"
    blueprint = blueprint_


@external
def create_task(
    terms: rules.Terms, token: address, spec_digest: bytes32, adapter: bytes32, pool: uint256
) -> address:
    """
    @notice Makes a task with the caller as its creator, and moves its first pool there.
    @dev Anyone, with terms within their limits. The task refuses a token that delivers too little.
    @param terms See terms.vy.
    @param token An ERC-20 without transfer fee, for bonds and pay.
    @param spec_digest Digest of the task definition.
    @param adapter Digest of the initial global adapter.
    @param pool Tokens to take from the caller, who has approved them to this factory; may be 0.
    @return The task's address.
    """
    rules.check(terms)
    assert token.is_contract, "factory: token is no contract"
    assert adapter != empty(bytes32), "factory: no adapter"

    task: address = create_from_blueprint(
        blueprint, terms, token, spec_digest, adapter, msg.sender
    )
    index: uint256 = self.task_count
    self.tasks[index] = task
    self.task_count = index + 1

    log TaskCreated(task=task, creator=msg.sender, spec_digest=spec_digest, index=index)
    if pool > 0:
        assert extcall IERC20(token).transferFrom(
            msg.sender, self, pool, default_return_value=True
        ), "factory: token refused"
        assert extcall IERC20(token).approve(
            task, pool, default_return_value=True
        ), "factory: token refused"
        extcall Task(task).fund(pool)
    return task
