"""`flockllm deploy`: put the contracts on a chain."""

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import click

from flockllm.cli.options import key_option
from flockllm.logs import set_up_logging

if TYPE_CHECKING:
    from flockllm.chain.deploy import Cost

GWEI = 10**9


@click.command()
@click.option("--rpc", required=True, metavar="URL", help="The chain's node, http(s) or ws(s).")
@click.option("--chain-id", type=int, help="Refuse any other chain.")
@key_option
@click.option("--token", metavar="ADDRESS", help="ERC-20 for bonds and pay, without transfer fee.")
@click.option("--test-token", is_flag=True, help="Instead: deploy a token worth nothing.")
@click.option(
    "--store",
    required=True,
    metavar="LOCATION",
    help="Where the tasks' content is: a folder, ipfs://host:5001 or s3://bucket/prefix.",
)
@click.option(
    "--out",
    type=click.Path(dir_okay=False, path_type=Path),
    default=Path("network.toml"),
    show_default=True,
    help="Network file to write, for --network.",
)
@click.option(
    "--max-fee",
    type=click.IntRange(1),
    metavar="GWEI",
    help="The most to pay per gas, now and later.",
)
@click.option(
    "--confirmations",
    type=click.IntRange(1),
    default=1,
    show_default=True,
    help="Blocks to wait for, so that a reorganisation takes nothing back.",
)
@click.option("--dry-run", is_flag=True, help="Say what it would cost, and send nothing.")
@click.option("--yes", is_flag=True, help="Do not ask before sending.")
def deploy(
    rpc: str,
    chain_id: int | None,
    key_path: Path,
    token: str | None,
    test_token: bool,
    store: str,
    out: Path,
    max_fee: int | None,
    confirmations: int,
    dry_run: bool,
    yes: bool,
) -> None:
    """Put the task's code and its factory on a chain, and write a network file.

    Says first what it will cost. A deployment that was interrupted goes on with the same command
    where it was, as long as a transaction of it is pending.
    """
    if bool(token) == test_token:
        raise click.UsageError("pass either --token ADDRESS or --test-token")
    if out.exists() and not dry_run:
        raise click.UsageError(f"{out} exists: it names a deployment; pass another --out")
    set_up_logging()
    from flockllm.chain.deploy import deploy_factory, deploy_token, estimate
    from flockllm.chain.keys import find_password, key_address, load_key
    from flockllm.chain.rpc import connect
    from flockllm.chain.token import Token
    from flockllm.config import Network
    from flockllm.wiring import open_sender

    who = key_address(key_path)
    with connect(rpc, chain_id) as connection:
        symbol = Token(connection, token).symbol if token else "a new test token"
        cost = estimate(connection, who, test_token=test_token)
        click.echo(_shown(cost, who, connection.chain_id, symbol))
        if dry_run:
            return
        if not yes:
            click.confirm("Deploy?", abort=True)
        network = Network(
            rpc=rpc,
            store=store,
            chain_id=connection.chain_id,
            confirmations=confirmations,
            max_fee_gwei=max_fee or 0,
        )
        sender = open_sender(connection, load_key(key_path, find_password), network)
        factory = deploy_factory(sender)
        token = token or deploy_token(sender).address
        replace(network, factory=factory, token=token).write(out)
    click.echo(f"factory  {factory}\ntoken    {token}\nnetwork  {out}")


def _shown(cost: "Cost", who: str, chain_id: int, symbol: str) -> str:
    rows = [f"chain {chain_id}, token {symbol}, paid by {who}\n"]
    for step, gas in cost.gas.items():
        price = gas * cost.price / 1e18
        rows.append(f"  {step:<12}{gas:>12,} gas{price:>14.6f} ether")
    rows.append(
        f"  {'together':<12}{sum(cost.gas.values()):>12,} gas{cost.wei / 1e18:>14.6f} ether"
    )
    left = "enough" if cost.balance >= cost.wei else f"{(cost.wei - cost.balance) / 1e18:.6f} short"
    rows.append(
        f"\nat {cost.price / GWEI:.3g} gwei; it has {cost.balance / 1e18:.6f} ether, {left}"
    )
    return "\n".join(rows)
