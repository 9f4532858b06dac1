"""An agent that works, trainer and all, sends no packet to anybody but the broker, and asks no name server."""

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest
from agent_desk import AGENT
from agent_support import Found, train_task
from sealed_desk import AgentProcess, SealedDesk, agent_process, sealed_desk
from sealed_support import SealedFederation, tls_broker
from tiny_models import make_tiny_model, write_classification
from trainer_support import LABELS, adapter_tensors, load, make_plan, some_components, write_adapter
from watched_network import HERE, Watched, watched_network

from fedpipe_agent.audit_reading import lines_of
from fedpipe_agent.train.fingerprint import fingerprint
from fedpipe_wire.agent_messages import Failed, Scored, Survey, Trained
from fedpipe_wire.coordinator_messages import ScoreTask, SurveyTask, TrainTask
from fedpipe_wire.message_values import JobTerms

RUN = "run-1"


def _first(agent: AgentProcess, desk: SealedDesk, kind: type[Found]) -> Found:
    agent.until(desk, kind.__name__, lambda: [each for each in desk.heard if isinstance(each, (kind, Failed))])
    (found,) = [each for each in desk.heard if isinstance(each, (kind, Failed))]
    assert isinstance(found, kind), found
    return found


def _prove_that_it_sees(network: Watched) -> None:
    """What tries to reach a name server, another machine, or itself is seen."""
    attempt = (
        "import socket\n"
        "for host, port in (('198.51.100.7', 53), ('127.0.0.1', 53)):\n"
        "    socket.socket(socket.AF_INET, socket.SOCK_DGRAM).sendto(b'x', (host, port))\n"
        "s = socket.socket(); s.setblocking(False); s.connect_ex(('198.51.100.8', 443))\n"
    )
    subprocess.run([*network.inside, sys.executable, "-c", attempt], check=True)
    deadline = time.monotonic() + 10
    wanted = {"198.51.100.7", "127.0.0.1", "198.51.100.8"}
    while not wanted <= {each[4] for each in network.strangers(HERE, 1)}:
        assert time.monotonic() < deadline, network.packets()
        time.sleep(0.05)
    network.log.write_text("")


@pytest.mark.slow
def test_an_agent_reaches_the_broker_and_nobody_else(tmp_path: Path) -> None:
    federation = SealedFederation()
    model = make_tiny_model(tmp_path / "model", "bert")
    data = write_classification(tmp_path / "words.jsonl", rows=60)
    base = load(model, "sequence-classification", 32)
    adapter = write_adapter(tmp_path / "adapter", adapter_tensors(base))
    terms = JobTerms(
        name="tiny",
        model="example/tiny",
        task="sequence-classification",
        dataset="words",
        seed=5,
        sequence_length=32,
        evaluation_examples=8,
        max_rank=4,
        batch_sizes=(2,),
        model_sha256=fingerprint(model),
    )
    settings = f"[datasets]\nwords = {{ path = {json.dumps(str(data))} }}\n[limits]\nthreads = 1\n"
    settings += f'[models]\n"example/tiny" = {json.dumps(str(model))}\n'
    with (
        watched_network(tmp_path) as network,
        tls_broker(tmp_path / "broker", federation, HERE) as broker,
        sealed_desk(tmp_path / "desk", federation, broker) as desk,
    ):
        _prove_that_it_sees(network)
        (tmp_path / "silo").mkdir()
        federation.enroll(tmp_path / "silo" / "state", AGENT, host=HERE, port=broker.port)
        desk.knows(tmp_path / "silo" / "state")
        with agent_process(tmp_path / "silo", settings, network.inside) as agent:
            agent.until(desk, "it is let in", lambda: desk.presences)
            desk.say(SurveyTask(run=RUN, terms=terms))
            assert _first(agent, desk, Survey).labels == LABELS
            desk.say(ScoreTask(run=RUN, terms=terms, labels=LABELS, batches=1, deadline_s=60.0))
            assert _first(agent, desk, Scored).contribution.curves
            reference = desk.store.add_file(adapter)
            desk.sender.offer(reference)
            plan = make_plan(some_components(base), agent=AGENT, global_rank=6, batch_size=2)
            task = train_task(1, RUN).model_copy(update={"terms": terms, "adapter": reference, "plan": plan})
            assert isinstance(task, TrainTask)
            desk.say(task.model_copy(update={"labels": LABELS}))
            update = _first(agent, desk, Trained).update
            agent.until(desk, "its update came", lambda: desk.taken)
        assert agent.process.returncode == 0
        assert not desk.refused
        assert network.packets()
        assert network.strangers(HERE, broker.port)[:20] == []
    chunks = [line for line in lines_of(tmp_path / "silo" / "state", RUN) if line["kind"] == "chunk"]
    assert sum(line["bytes"] for line in chunks) == update.size
    assert {line["blob"] for line in chunks} == {update.sha256}
