"""Real agents over TLS with a real broker: renewed while they run, revoked, and cloned."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from agent_support import survey_task
from sealed_desk import AgentProcess, SealedDesk, agent_process, sealed_desk
from sealed_support import SealedFederation, TlsBroker, tls_broker
from typer.testing import CliRunner

from fedpipe_agent.audit_reading import lines_of, verify
from fedpipe_agent.cli import app
from fedpipe_wire.agent_messages import Profile, Refused
from fedpipe_wire.enrolment import Request, decode, encode

FED = SealedFederation()


@pytest.fixture(scope="module")
def broker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TlsBroker]:
    with tls_broker(tmp_path_factory.mktemp("sealed") / "broker", FED) as running:
        yield running


@pytest.fixture
def desk(tmp_path: Path, broker: TlsBroker) -> Iterator[SealedDesk]:
    with sealed_desk(tmp_path / "desk", FED, broker) as made:
        yield made


def count(desk: SealedDesk, kind: type) -> int:
    return sum(isinstance(message, kind) for message in desk.heard)


def ask(agent: AgentProcess, desk: SealedDesk, run: str) -> None:
    """A task that the agent answers at once: it has no such dataset."""
    before = count(desk, Refused)
    desk.say(survey_task(run))
    agent.until(desk, f"an answer to {run}", lambda: count(desk, Refused) > before)


def run(agent: AgentProcess, *arguments: str) -> None:
    result = CliRunner().invoke(app, [*arguments, "--config", str(agent.config)])
    assert result.exit_code == 0, (result.output, result.exception)


def test_keys_are_renewed_while_it_runs_and_a_revoked_agent_says_so_and_waits(
    tmp_path: Path, broker: TlsBroker, desk: SealedDesk
) -> None:
    FED.enroll(tmp_path / "state", "a", port=broker.port)
    old = desk.knows(tmp_path / "state")
    with agent_process(tmp_path) as agent:
        agent.until(desk, "it is let in", lambda: count(desk, Profile))
        ask(agent, desk, "before")
        assert {outside.key for outside in desk.outsides} == {old}
        run(agent, "renew")
        request = decode(Request, (tmp_path / "request.json").read_bytes())
        former = FED.issued["a"]
        (tmp_path / "bundle.json").write_bytes(encode(FED.bundle(request, port=broker.port)))
        run(agent, "join", str(tmp_path / "bundle.json"))
        new = desk.knows(tmp_path / "state")
        agent.until(desk, "it has seen them", lambda: "new keys and certificates are used" in agent.said)
        agent.until(desk, "what the broker keeps is sealed anew", lambda: count(desk, Profile) == 2)
        assert desk.outsides[-1].key == new
        ask(agent, desk, "after")
        assert desk.outsides[-1].key == new != old
        # the next connection logs in with the new certificate: the former is revoked by now
        FED.issued["former"] = former
        broker.revoke("former")
        broker.stop()
        broker.start()
        seen = len(desk.presences)
        agent.until(desk, "it is back", lambda: len(desk.presences) > seen)
        ask(agent, desk, "back")
        assert desk.outsides[-1].key == new
        assert not desk.refused
        broker.revoke("former", "a")
        broker.stop()
        broker.start()
        agent.until(desk, "it is told", lambda: "it was revoked. Ask the federation's owner" in agent.said)
        assert agent.said.count("it was revoked") == 1
        assert agent.process.poll() is None
    broker.revoke()
    broker.stop()
    broker.start()
    assert agent.process.returncode == 0
    found = verify(tmp_path / "state")
    assert not found.kills
    assert {line["id"] for line in lines_of(tmp_path / "state") if line["kind"] == "message"} >= {
        outside.message_id for outside in desk.outsides if not outside.message_id.startswith("will-")
    }


def test_a_clone_is_turned_away_and_named_and_the_agent_that_it_was_made_of_works_on(
    tmp_path: Path, broker: TlsBroker, desk: SealedDesk
) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    first.mkdir()
    FED.enroll(first / "state", "a", port=broker.port)
    desk.knows(first / "state")
    with agent_process(first) as original:
        original.until(desk, "it is let in", lambda: count(desk, Profile))
        ask(original, desk, "before")
        shutil.copytree(first / "state", second / "state", ignore=shutil.ignore_patterns("lock"))
        with agent_process(second) as clone:
            clone.until(desk, "it is turned away", lambda: "does not let this agent in" in clone.said)
            session = desk.presences[0].session[:8]
            assert f"agent a is here as session {session}, and session" in clone.said
            assert "stop one of the two" in clone.said
            ask(original, desk, "beside-the-clone")
            ask(original, desk, "and-again")
            mine = {outside.instance for outside in desk.outsides[:3]}
            assert {desk.outsides[-1].instance} == mine
            assert {outside.instance for outside in desk.outsides} > mine
            assert count(desk, Profile) == 1
        ask(original, desk, "without-it")
        # the end of the clone is not taken for that of the agent
        original.until(desk, "it says that it is there", lambda: desk.presences[-1].session[:8] == session)
    assert not desk.refused
    assert "does not let this agent in" not in original.said
