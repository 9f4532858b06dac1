"""Hooks: their names come from the code that is running, and an order is carried out once, at the passing it names."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.chaos_trials import Atlas, Kill, Trial, of_session, totals
from benchmarks.hooks import Hooks, Order, OrderFile, site_of
from benchmarks.patches import statement_name
from benchmarks.witness import said

HOOK = "agent:fsync@wire.blob_files.add_file:before"


def _call(module: str, source: str, **names: Any) -> dict[str, Any]:
    space = {"__name__": module, **names}
    exec(compile(source, module, "exec"), space)
    return space


def test_an_order_is_carried_out_at_the_nth_passing_and_never_again(tmp_path: Path) -> None:
    with OrderFile(tmp_path / "o") as giver, OrderFile(tmp_path / "o") as taker:
        giver.give(Order(HOOK, 3, victim=77, wipe="/a/db"))
        assert [taker.passed(HOOK) for _ in range(2)] == [None, None]
        assert taker.passed("another") is None
        assert not giver.fired
        assert taker.passed(HOOK) == Order(HOOK, 0, victim=77, wipe="/a/db")
        assert giver.fired
        assert taker.passed(HOOK) is None


@given(st.integers(1, 5), st.lists(st.booleans(), max_size=12))
def test_the_count_outlives_the_process(nth: int, restarts: list[bool]) -> None:
    path = Path(f"/dev/shm/fedpipe-test-orders-{os.getpid()}")
    try:
        with OrderFile(path) as giver:
            giver.give(Order(HOOK, nth))
            process, fired = OrderFile(path), []
            for restart in restarts:
                if restart:
                    process.close()
                    process = OrderFile(path)
                fired.append(process.passed(HOOK) is not None)
            process.close()
            assert [at for at, each in enumerate(fired, start=1) if each] == ([nth] if nth <= len(restarts) else [])
    finally:
        path.unlink(missing_ok=True)


def test_the_process_that_passes_an_armed_hook_is_killed_before_it_goes_on(tmp_path: Path) -> None:
    code = f"""
import sys
from pathlib import Path
from benchmarks.hooks import Hooks, OrderFile
from benchmarks import patches
folder = Path({str(tmp_path)!r})
patches.install(Hooks("agent", OrderFile(folder / "o"), folder / "hits"))
from fedpipe_wire.blob_files import BlobStore
store = BlobStore(folder / "blobs")
store.add_bytes(b"one")
(folder / "one").touch()
store.add_bytes(b"two")
(folder / "two").touch()
"""
    hook = "agent:replace@wire.blob_files._add<add_bytes:before"
    with OrderFile(tmp_path / "o") as orders:
        orders.give(Order(hook, 2))
        ended = subprocess.run([sys.executable, "-c", code], check=False, capture_output=True, text=True)
        assert (ended.returncode, ended.stderr) == (-9, "")
        assert orders.fired
    assert (tmp_path / "one").exists()
    assert not (tmp_path / "two").exists()
    hits = (tmp_path / "hits").read_text().splitlines()
    assert hits[-1] == hook
    for operation in ("write", "fsync", "replace"):
        assert any(hit.startswith(f"agent:{operation}@wire.blob_files._add<add_bytes") for hit in hits), operation


def test_another_process_can_be_the_victim_and_loses_its_database(tmp_path: Path) -> None:
    database = tmp_path / "db"
    database.touch()
    other = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    with OrderFile(tmp_path / "o") as orders:
        orders.give(Order("agent:x@y:before", 1, victim=other.pid, wipe=str(database)))
        Hooks("agent", orders, tmp_path / "hits").reach("x", "y", "before")
    assert other.wait(10) == -9
    assert not database.exists()


def test_a_site_is_the_function_of_ours_and_its_public_caller() -> None:
    def look() -> str | None:
        return site_of(sys._getframe(1))

    space = _call(
        "fedpipe_wire.sample",
        "def _inner(): return look()\ndef outer(): return _inner()\ndef sync_folder(): return look()\n"
        "def finish(): return sync_folder()",
        look=look,
    )
    assert space["outer"]() == "wire.sample._inner<outer"
    assert space["finish"]() == "wire.sample.sync_folder<finish"
    foreign = _call("paho.mqtt.client", "def loop(): return look()\ndef run(inner): return inner()", look=look)
    assert foreign["loop"]() is None
    assert _call("pathlib", "def replace(): return look()", look=look)["replace"]() is None


@pytest.mark.parametrize(
    ("sql", "name"),
    [
        ("SELECT state FROM runs", None),
        ("PRAGMA journal_mode=WAL", None),
        ("PRAGMA user_version", None),
        ("PRAGMA user_version=3", "sql-pragma"),
        ("INSERT INTO runs (run) VALUES (?)", "sql-insert-runs"),
        ("\nCREATE TABLE IF NOT EXISTS runs (run TEXT)", "sql-create-runs"),
        ("DELETE FROM updates WHERE run = ?", "sql-delete-updates"),
        ("UPDATE counters SET value = 1", "sql-update-counters"),
        ("COMMIT", "sql-commit"),
    ],
)
def test_a_statement_that_writes_has_a_name(sql: str, name: str | None) -> None:
    assert statement_name(sql) == name


def test_what_is_said_of_a_message_is_what_the_checks_need() -> None:
    topic, properties = "fedpipe/f/agents/bank/down/ack", {"v": "1", "id": "x", "n": "4"}
    payload = b'{"type":"ack","run":"r","round":2,"sha256":"ab","accepted":true,"reason":""}'
    line = said(topic, payload, properties)
    assert line is not None
    assert (line["sender"], line["agent"], line["n"], line["accepted"]) == ("coordinator", "bank", 4, True)
    up = said("fedpipe/f/agents/bank/up/report", b'{"type":"failed"}', properties)
    assert up is not None
    assert up["sender"] == "bank"
    assert said("fedpipe/f/broadcast/blob/ab/0", b"bytes", {}) is None


RUN = {
    "coordinator-coordinator": {"coordinator:sql-insert-runs@s:before": 9, "coordinator:publish-ack@s:after": 4},
    "agent-a": {"agent:received-ack@session:before": 2, "agent:fsync@f:before": 7},
    "agent-b": {"agent:received-ack@session:before": 2},
    "trainer-a": {"trainer:write@w:before": 3},
}
START = {"agent-b": {"agent:mkdir@m:before": 1}}


def test_the_walk_names_every_hook_once_and_the_broker_at_every_hook_of_a_session() -> None:
    trials = Atlas(RUN, START).walk(1)
    names = [trial.name for trial in trials]
    assert len(set(names)) == len(names) == len(totals(RUN)) + 1 + 2
    assert {trial.name for trial in trials if trial.kills[-1].broker} == {
        "broker@agent:received-ack@session:before",
        "broker@coordinator:publish-ack@s:after (emptied)",
    }
    for trial in trials:
        kill = trial.kills[-1]
        assert len(trial.kills) == (2 if "mkdir" in kill.hook else 1)
        if kill.label in RUN and kill.hook in RUN[kill.label]:
            assert 1 <= kill.nth <= RUN[kill.label][kill.hook]


def test_the_same_seed_gives_the_same_trials_and_every_victim_its_share() -> None:
    first, second = (Atlas(RUN, START).at_random(5, 200) for _ in range(2))
    assert first == second
    assert first != Atlas(RUN, START).at_random(6, 200)
    victims = ["broker" if t.kills[0].broker else t.kills[0].hook.split(":")[0] for t in first]
    assert all(victims.count(kind) > 20 for kind in ("agent", "broker", "coordinator", "trainer"))


def test_a_hook_that_is_passed_after_a_kill_only_is_reached_by_way_of_that_kill() -> None:
    atlas = Atlas(RUN, START)
    before = atlas.walk(1)[0]
    (found,) = atlas.discovered(before, {"agent-a": {"agent:rollback@x:before": 1, "agent:fsync@f:before": 3}})
    assert found == Trial((*before.kills, Kill("agent-a", "agent:rollback@x:before")), 1)
    assert atlas.discovered(before, {"agent-a": {"agent:rollback@x:before": 1}}) == []


def test_sessions_hooks_are_told_from_the_disks() -> None:
    assert of_session("agent:publish-trained@agent.daemon._say<run:before")
    assert not of_session("coordinator:fsync@wire.blob_partial.finish:after")
