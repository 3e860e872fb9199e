"""Participants as processes on a chain that reorganises again and again."""

import random
import time
from dataclasses import replace

import pytest
from network import network

from flockllm.audit import audit
from flockllm.rounds import Outcome, Phase
from flockllm.wiring import open_content


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(3))
def test_a_task_ends_the_same_through_random_reorganisations(tmp_path, seed):
    """Five blocks vanish every other second; all rounds are adopted, nobody is slashed.

    With six confirmations nobody ends before what it did is deeper than that.
    """
    random_ = random.Random(seed)
    with network(tmp_path, rounds=2) as net:
        replace(net.net.network, confirmations=6).write(net.net.network_file)
        for name in net.names:
            net.start(name)
        net.wait(lambda view: view.state.phase == Phase.TRAIN)
        end, fired = time.monotonic() + 240, 0
        while net.look().state.phase != Phase.FINISHED:
            assert time.monotonic() < end, net.logs()
            time.sleep(random_.uniform(0.2, 3))
            net.net.connection.call("anvil_reorg", 5, [])
            fired += 1
        net.wait(lambda view: view.state.phase == Phase.FINISHED and not view.state.allotted)
        for person in net.people.values():
            assert person.wait(60) == 0, net.logs()

        assert fired > 2
        assert [net.task.result(n).outcome for n in (1, 2)] == [Outcome.ADOPTED] * 2, net.logs()
        settled = net.events("SeatSettled")
        assert len(settled) == 2 * net.task.terms.committee
        assert sum(event["slashed"] for event in settled) == 0
        assert len(list(audit(net.task, open_content(net.net.network)))) > 10
