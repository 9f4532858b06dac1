"""The coordinator with seals: what it does not listen to, what it says of that, and what a kill must not undo."""

import contextlib
import hashlib
import json
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import given, settings
from hypothesis import strategies as st
from office import AGENT_KEY, TOPICS, Office
from run_support import device, job, scored, survey, trained

from fedpipe_coordinator import work
from fedpipe_coordinator.audit.federation_audit import FederationAudit
from fedpipe_coordinator.audit.refusals import LINES_A_MINUTE, LINES_IN_ALL, MINUTE_S, Refusals
from fedpipe_coordinator.audit.sources import AuditSources
from fedpipe_coordinator.exchange import TransferDone
from fedpipe_coordinator.home import Home
from fedpipe_coordinator.merging import WorkError
from fedpipe_coordinator.registry import NOBODY
from fedpipe_coordinator.runs.run_state import RunState
from fedpipe_coordinator.store import SqliteStore
from fedpipe_wire.agent_messages import AgentMessage, Failed, Presence, Profile
from fedpipe_wire.coordinator_messages import Welcome
from fedpipe_wire.database import Database
from fedpipe_wire.sealing import WILL, Sealer
from fedpipe_wire.transport import Received


def no_plans(*_: object) -> None:
    raise WorkError("no plans here")


@pytest.fixture
def office(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Office]:
    monkeypatch.setattr(work, "make_plans", no_plans)
    office = Office(tmp_path, sealed=True)
    office.say(Profile(profile=device("a")))
    office.say(Presence(state="online", session="1"))
    office.heard()
    yield office
    office.stop()


def recorded(office: Office, kind: str = "refused") -> list[dict[str, Any]]:
    office.service.chronicle.tick()
    return [line for line in FederationAudit(office.folder).lines() if line["kind"] == kind]


def by_key(key: Ed25519PrivateKey | None, name: str = "a") -> Callable[[Received], Received]:
    def change(event: Received) -> Received:
        sealer = Sealer(name, lambda: 99, key)
        return replace(event, properties=sealer.seal(event.topic, event.payload).properties())

    return change


FAULTS: dict[str, Callable[[Received], Received]] = {
    "forged": lambda event: replace(event, payload=event.payload.replace(b"30", b"31")),
    "unsigned": by_key(None),
    "unknown-key": by_key(Ed25519PrivateKey.generate()),
    "unknown-sender": lambda event: by_key(AGENT_KEY, "b")(replace(event, topic=event.topic.replace("/a/", "/b/"))),
    "retained": lambda event: replace(event, retained=True),
    "malformed": lambda event: by_key(AGENT_KEY)(replace(event, payload=b"{}")),
    "oversize": lambda event: replace(event, payload=bytes(1_000_001)),
    "wrong-topic": lambda event: replace(event, topic=event.topic.replace("/up/", "/down/")),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_what_is_not_listened_to_changes_nothing_and_is_recorded(office: Office, fault: str) -> None:
    run = office.service.submit(job(), None)
    honest = office.packet(survey().model_copy(update={"run": run}))
    before = office.service.runs[run]
    event = FAULTS[fault](honest)
    office.bring(event)
    assert office.service.runs[run] == before
    (line,) = recorded(office)
    assert line["who"] == {"unknown-sender": "b", "wrong-topic": ""}.get(fault, "a")
    assert line["data"] == {
        "fault": fault,
        "topic": event.topic,
        "bytes": len(event.payload),
        "sha256": hashlib.sha256(event.payload).hexdigest(),
    }
    assert office.ask(op="status")["refused"] == {fault: 1}
    assert fault in office.said[-1]
    office.bring(honest)
    assert office.service.runs[run].members["a"].survey is not None, "the honest one is let in afterwards"
    office.bring(honest)
    assert office.ask(op="status")["refused"] == {fault: 1, "replayed": 1}
    assert AuditSources(Home(office.folder)).verify_federation().findings == ()


def test_a_profile_of_another_and_a_report_of_no_run_are_recorded(office: Office) -> None:
    office.say(Profile(profile=device("b")))
    office.say(Failed(run="not-known-here", round=1, kind="internal", message="\x1b[31m"))
    assert [(line["who"], line["data"]["fault"]) for line in recorded(office)] == [
        ("a", "wrong-sender"),
        ("a", "stale"),
    ]
    assert "b" not in office.ask(op="agents")["agents"]


@pytest.mark.parametrize(
    "topic", ["\x1b[2J", "fedpipe/tests/agents/\u202ea/up/report", "x" * 60_000, "fedpipe/tests/agents/a/up/blob/\n/1"]
)
def test_hostile_topics_are_shown_harmlessly(office: Office, topic: str) -> None:
    office.bring(Received(topic, b"x", retained=False))
    (line,) = recorded(office)
    for text in (json.dumps(line["data"]), line["text"], office.said[-1]):
        assert text.isascii()
        assert text.isprintable()
        assert len(text) < 1500


def test_a_flood_is_counted_and_told_in_few_lines(office: Office) -> None:
    before = (office.folder / "audit.jsonl").stat().st_size
    for number in range(3000):
        office.bring(Received(TOPICS.up(f"agent{number % 600}", "report"), b"x", retained=False))
    lines = recorded(office)
    assert office.ask(op="status")["refused"] == {"malformed": 3000}
    assert len(lines) == LINES_IN_ALL
    office.stop()
    told = [line for line in FederationAudit(office.folder).lines() if line["kind"] == "refused"]
    assert sum(line["data"].get("count", 1) for line in told) == 3000
    assert (office.folder / "audit.jsonl").stat().st_size - before < 100_000
    office.start()


@settings(max_examples=60, deadline=None)
@given(
    st.lists(
        st.tuples(st.sampled_from("abcdefgh"), st.sampled_from(("forged", "replayed")), st.floats(0, 9)), max_size=150
    )
)
def test_of_any_flood_all_is_counted_and_no_minute_holds_more_than_its_lines(
    said: list[tuple[str, Any, float]],
) -> None:
    now, times = [0.0], list[tuple[float, str, str]]()
    refusals = Refusals(lambda: now[0])
    counted = 0
    for sender, fault, pause in said:
        now[0] += pause
        refusals.add(fault, sender, "t", b"", "why")
        for entry in refusals.take():
            counted += entry.data.get("count", 1)
            times += [(now[0], entry.who, entry.data["fault"])] if "count" not in entry.data else []
    counted += sum(entry.data.get("count", 1) for entry in refusals.take(last=True))
    assert counted == len(said) == sum(refusals.counts.values())
    for begin, who, fault in times:
        # Minutes are counted from the first refusal after the last one: any span of that length touches two at most.
        same = [at for at, *key in times if key == [who, fault] and begin <= at < begin + MINUTE_S]
        assert len(same) <= 2 * LINES_A_MINUTE


def test_what_is_sent_is_sealed_by_the_coordinator(office: Office) -> None:
    office.say(Presence(state="online", session="1"))
    (welcome,) = office.heard()
    assert isinstance(welcome, Welcome)


# --- wills ------------------------------------------------------------------------------------------------------


def will(office: Office, session: str) -> Received:
    message = Presence(state="offline", session=session)
    packet = office.packet(message)
    sealed = office.sealer.seal(packet.topic, packet.payload, retain=True, message_id=f"{WILL}{session}")
    return replace(packet, properties=sealed.properties())


def online(office: Office) -> bool:
    return bool(office.ask(op="agents")["agents"]["a"]["online"])


def test_the_will_of_an_old_session_makes_the_living_one_say_that_it_lives_and_no_more(office: Office) -> None:
    run = office.service.submit(job(), None)
    old = will(office, "1")
    office.say(Presence(state="offline", session="1"))
    office.say(Presence(state="online", session="2"))
    office.told()
    before = office.service.runs[run]
    for _ in range(3):
        office.bring(old)
        assert online(office)
        assert office.told() == [("turned-away", NOBODY)], "a word for nobody, which the living one answers"
    assert office.service.runs[run] == before


def test_the_will_of_a_session_that_is_not_known_yet_does_not_turn_it_away(office: Office) -> None:
    """A broker holds back that a session began, and brings the word of its end: the session lives, and must go on."""
    office.told()
    office.bring(will(office, "2"))
    assert office.told() == [("turned-away", NOBODY)]
    office.say(Presence(state="offline", session="1"))
    office.say(Presence(state="online", session="2"))
    assert office.told() == [("welcome", "2")]


def test_the_will_of_the_living_session_can_do_what_dropping_all_could(office: Office) -> None:
    """A broker that repeats it makes the agent seem gone; the agent's next word makes that good."""
    run = office.service.submit(job(), None)
    repeated = will(office, "1")
    office.bring(repeated)
    assert not online(office)
    office.say(survey().model_copy(update={"run": run}))
    assert office.service.runs[run].members["a"].survey is not None, "what it says still counts"
    office.say(Presence(state="online", session="1"))
    assert online(office)
    office.bring(repeated)
    office.bring(repeated)
    assert not online(office)
    assert office.service.runs[run].members["a"].survey is not None


def test_an_old_word_of_being_there_does_not_bring_a_session_back(office: Office) -> None:
    first = office.packet(Presence(state="online", session="1"))
    office.bring(first)
    office.say(Presence(state="offline", session="1"))
    office.bring(first)
    assert not online(office)
    assert recorded(office)[-1]["data"]["fault"] == "replayed"


# --- kills ------------------------------------------------------------------------------------------------------


class KilledError(BaseException):
    """Nothing handles it."""


class Killer:
    """Counts what is done to the store, and kills before the n-th of these things."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.left: int | None = None
        execute, transaction = Database.execute, Database.transaction

        def counted(db: Database, sql: str, values: Any = ()) -> Any:
            if not sql.startswith("SELECT"):
                self.pass_by()
            return execute(db, sql, values)

        @contextlib.contextmanager
        def watched(db: Database) -> Iterator[None]:
            with transaction(db):
                yield
                self.pass_by()
            self.pass_by()

        monkeypatch.setattr(Database, "execute", counted)
        monkeypatch.setattr(Database, "transaction", watched)

    def pass_by(self) -> None:
        if self.left is None:
            return
        self.left -= 1
        if self.left < 0:
            self.left = None
            raise KilledError


def _messages(run: str) -> list[AgentMessage]:
    return [
        survey().model_copy(update={"run": run}),
        scored().model_copy(update={"run": run}),
        Failed(run=run, round=1, kind="internal", message="it broke"),
        trained("a", 1).model_copy(update={"run": run}),
    ]


def _stored(office: Office) -> list[RunState]:
    with closing(SqliteStore(Home(office.folder).store)) as store:
        return store.runs()


def _killed(office: Office) -> list[RunState]:
    """Only what is on disk is left; the runs as they are there, before the next process takes them up."""
    office.service._actor.close()
    office.service._exchange.stop()
    office.store.close()
    stored = _stored(office)
    office.start()
    return stored


def test_no_message_that_had_an_effect_is_let_in_again_wherever_a_kill_comes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(work, "make_plans", no_plans)
    killer, kills, effects, lost = Killer(monkeypatch), 0, 0, 0
    for step in range(0, 200, 3):
        folder = tmp_path / str(step)
        folder.mkdir()
        office = Office(folder, sealed=True)
        office.say(Profile(profile=device("a")))
        office.say(Presence(state="online", session="1"))
        run = office.service.submit(job(), None)
        killer.left = step
        for message in _messages(run):
            packet, before = office.packet(message), _stored(office)
            try:
                office.bring(packet)
                office.settle()
                office.service.chronicle.tick()
            except KilledError:
                kills += 1
                after = _killed(office)
                refused = office.service.chronicle.refused()
                office.bring(packet)
                let_in = office.service.chronicle.refused() == refused
                if after != before:
                    effects += 1
                    assert not let_in, f"{message.type} at step {step}"
                lost += let_in
            else:
                left, killer.left = killer.left, None
                before_it = office.service.chronicle.refused().get("replayed", 0)
                office.bring(packet)
                assert office.service.chronicle.refused()["replayed"] == before_it + 1
                killer.left = left
        done = killer.left is not None
        killer.left = None
        office.stop()
        if done:
            break
    assert 3 * kills == step
    assert min(kills, effects, lost) > 3, "kills before and after the effect were stored"


def test_what_was_heard_and_led_to_nothing_is_kept_at_the_next_tick(office: Office) -> None:
    packet = office.packet(Failed(run="not-known-here", round=1, kind="internal", message=""))
    office.bring(packet)
    office.service.chronicle.tick()
    _killed(office)
    office.bring(packet)
    assert office.service.chronicle.refused() == {"replayed": 1}


# --- the record of starts, ends and runs ------------------------------------------------------------------------


def test_starts_ends_and_runs_are_recorded_once_each_also_after_a_kill(office: Office) -> None:
    run = office.service.submit(job(), None)
    _killed(office)
    office.ask(op="stop", run=run)
    office.settle()
    _killed(office)
    office.stop()
    office.start()
    lines = FederationAudit(office.folder).lines()
    kinds = [line["kind"] for line in lines]
    assert kinds.count("coordinator-started") == 4
    assert kinds.count("coordinator-stopped") == 1
    runs = [(line["kind"], line["data"]) for line in lines if line["kind"].startswith("run-")]
    assert runs == [("run-began", {"run": run}), ("run-ended", {"run": run, "phase": "stopped"})]
    assert AuditSources(Home(office.folder)).verify_federation().findings == ()


def test_a_record_that_takes_nothing_delays_its_lines_and_nothing_else(office: Office) -> None:
    path = office.folder / "audit.newest"
    path.rename(office.folder / "aside")
    path.mkdir()
    run = office.service.submit(job(), None)
    office.say(survey().model_copy(update={"run": run}))
    assert office.service.runs[run].members["a"].survey is not None
    office.service.chronicle.tick()
    said = [line for line in office.said if "record" in line and "cannot be used" in line]
    assert len(said) == 1
    path.rmdir()
    (office.folder / "aside").rename(path)
    assert [line["data"] for line in recorded(office, "run-began")] == [{"run": run}]
    assert AuditSources(Home(office.folder)).verify_federation().findings == ()


def test_an_update_s_decision_names_its_message_its_size_and_its_hash(office: Office) -> None:
    run = office.service.submit(job(), None)
    state = office.service.runs[run]
    office.say(survey().model_copy(update={"run": run}))
    offer = trained("a", 1).model_copy(update={"run": run})
    assert state.phase == "surveying"
    office.service._transfer_done(TransferDone("a", offer.update.sha256, None, "nothing"))
    office.settle()
    path = office.folder / "runs" / run / "audit.jsonl"
    surveyed = [json.loads(line) for line in path.read_bytes().splitlines() if b'"surveyed"' in line]
    assert surveyed[0]["data"]["message_id"] == f"m{office.counter}"
