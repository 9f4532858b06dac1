"""Real agents that are killed, restarted, doubled, or have the wrong time: the run ends as if nothing had happened."""

import hashlib
import json
import os
import re
import shutil
import signal
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import pytest
from federation import Federation, children_of, kill, wait_for, write_job
from mosquitto_support import mosquitto_or_skip
from tiny_models import make_tiny_model, write_classification

from fedpipe_agent.exit_codes import ExitCode
from fedpipe_coordinator.demo.processes import Child

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]
TESTS = Path(__file__).parents[1]
JOB = ("rounds.min_agents=1", "export.merged=false", "rounds.number=2")


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    mosquitto_or_skip()
    folder = tmp_path_factory.mktemp("survives")
    write_job(folder / "job.toml", make_tiny_model(folder / "model", "bert"))
    write_classification(folder / "a.jsonl", rows=300)
    return folder


def _adapter(federation: Federation, run: str) -> str:
    """The bytes of the last adapter, as a name."""
    path = federation.run_folder(run) / "adapter" / "adapter_model.safetensors"
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _run(federation: Federation, place: Path, meanwhile: Callable[[str], None] = lambda _: None) -> str:
    run = federation.submit(place / "job.toml", *JOB)
    meanwhile(run)
    federation.wait_for_audit(run, "run-done")
    return _adapter(federation, run)


def _federation(place: Path, name: str) -> Federation:
    folder = place / name
    folder.mkdir()
    federation = Federation(folder)
    federation.init()
    federation.up()
    return federation


@pytest.fixture(scope="module")
def calm(place: Path) -> str:
    """What the job ends in where nothing happens."""
    with _federation(place, "calm") as federation:
        federation.start_agent("a", {"words": place / "a.jsonl"})
        federation.wait_for_agents("a")
        return _run(federation, place)


def test_an_agent_with_the_wrong_time_ends_in_the_same_bytes(
    place: Path, calm: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPATH", str(TESTS), prepend=os.pathsep)
    with _federation(place, "skewed") as federation:
        config = federation.write_agent("a", {"words": place / "a.jsonl"})
        agent = federation.start_module("a", "skewed_agent", "400", "run", "--config", config)
        federation.wait_for_agents("a")
        assert _run(federation, place) == calm
        years = {int(line[:4]) for line in agent.log.read_text().splitlines() if line[:4].isdigit()}
        assert min(years) > datetime.now(UTC).year


def _trainers(agent: Child) -> list[int]:
    """Not the short processes in which it measures the machine."""
    return [child for child in children_of(agent.process.pid) if b"fedpipe_agent.train" in _command(child).split(b"\0")]


def _command(pid: int) -> bytes:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return b""


def test_an_agent_and_its_trainer_that_are_killed_end_in_the_same_bytes(place: Path, calm: str) -> None:
    with _federation(place, "killed") as federation:
        federation.start_agent("a", {"words": place / "a.jsonl"})
        federation.wait_for_agents("a")

        def blows(run: str) -> None:
            federation.wait_for_audit(run, "scored", "a")
            federation.wait_for_audit(run, "evaluated", "a")
            kill(federation.children["a"])
            again = federation.start_agent("a", {"words": place / "a.jsonl"})
            wait_for("a trainer again", lambda: _trainers(again), [again])
            for trainer in _trainers(again):
                os.kill(trainer, signal.SIGKILL)

        assert _run(federation, place, blows) == calm
        log = federation.children["a"].log.read_text()
        assert "Traceback" not in log
        for audit in federation.audit(next((federation.home / "runs").iterdir()).name, "failed"):
            pytest.fail(json.dumps(audit))


def test_of_two_agents_of_one_name_the_older_works_on_and_the_newer_ends_with_its_code(place: Path, calm: str) -> None:
    with _federation(place, "doubled") as federation:
        older = federation.start_agent("a", {"words": place / "a.jsonl"})
        federation.wait_for_agents("a")
        other = place / "doubled" / "elsewhere"
        other.mkdir()
        shutil.copy(place / "doubled" / "a" / "agent.toml", other)
        newer = federation.start_module("a again", "fedpipe_agent", "run", "--config", other / "agent.toml")
        wait_for("the newer is turned away", lambda: "does not let" in newer.log.read_text(), [newer, older])
        assert _run(federation, place) == calm, "the newer one asks all the time, and changes nothing"
        assert newer.process.wait(120) == ExitCode.IDENTITY_IN_USE
        said = " ".join(newer.log.read_text().split())
        assert "another agent of the name 'a' works for this federation" in said
        assert said.count("does not let this agent in") == 1
        assert "Traceback" not in said
        assert older.process.poll() is None
        _coordinator_tells_of_the_newer(federation)


def _coordinator_tells_of_the_newer(federation: Federation) -> None:
    """In its log, once, and where people look who is there."""
    told = re.compile(r"turned away: agent a is here as session \w+, and session \w+ asks for the same name: stop one")
    log = " ".join(federation.children["coordinator"].log.read_text().split())
    assert len(told.findall(log)) == 1
    assert told.search(federation.ask("agents").said)
    agent = federation.ask("agents", "--format", "json").json()["agents"]["a"]
    assert (agent["online"], len(agent["turned_away"])) == (True, 1)
