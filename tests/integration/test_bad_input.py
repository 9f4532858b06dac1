"""What a person gets wrong: a message that says what to do, the documented exit code, never a traceback."""

import json
import os
import re
import socket
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
from federation import SECRET, Ended, Federation, Finished, Shared, call, fedpipe, fedpipe_agent, wait_for
from mosquitto_support import mosquitto_or_skip

from fedpipe_agent.exit_codes import ExitCode as AgentExitCode
from fedpipe_agent.state_folder import StateFolder
from fedpipe_coordinator.broker.managed import ManagedBroker
from fedpipe_coordinator.exit_codes import ExitCode

REFERENCE = Path(__file__).parents[2] / "docs" / "reference" / "exit-codes.md"


def check(ended: Ended, code: ExitCode | AgentExitCode, *says: str) -> None:
    """The code is documented, the message has all of its parts, and nothing looks like a crash."""
    assert ended.code == code, ended
    assert re.search(rf"^### {code.value} {code.name}$", REFERENCE.read_text(), re.MULTILINE)
    for part in says:
        assert part in ended.said, f"{part!r} is not in: {ended.said}"
    for sign in ("Traceback", 'File "', "Error:"):
        assert sign not in ended.out + ended.err


@dataclass(frozen=True, slots=True)
class Place:
    """A folder with one of each: good and bad files, a federation, and a port that somebody listens on."""

    folder: Path
    port: int

    def fill(self, text: str) -> str:
        """A text with its @ put in: the taken port, this process, or else the folder."""
        return text.replace("@port", str(self.port)).replace("@pid", str(os.getpid())).replace("@", f"{self.folder}/")


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    folder = tmp_path_factory.mktemp("place")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        place = Place(folder, taken.getsockname()[1])
        for name in ("empty", "full", "home", "misspelt"):
            (folder / name).mkdir()
        (folder / "full" / "thesis.txt").write_text("mine")
        (folder / "data.csv").write_text("text,label\nonly one row,a\n")
        (folder / "home" / "federation.toml").write_text(
            f'federation = "f"\n[broker]\nport = {place.port}\ninsecure = true\n'
        )
        (folder / "misspelt" / "federation.toml").write_text('federaton = "f"\n[broker]\nport = "1883"\n')
        (folder / "job.toml").write_text(JOB)
        (folder / "misspelt.toml").write_text(
            JOB.replace("model", "modle").replace("number = 2", 'number = "2"\nlearning_rate = 0.1')
        )
        (folder / "agent.toml").write_text(AGENT)
        yield place


JOB = """\
[job]
name = "j"
model = "m"
task = "causal-lm"

[data]
dataset = "d"

[rounds]
number = 2
"""

AGENT = """\
name = "Saint Mary"
federation = "f"

[broker]
hots = "127.0.0.1"

[limits]
memory_mb = 100
threads = 0
"""

PLAIN = 'name = "a"\nfederation = "f"\n[broker]\nhost = "127.0.0.1"\ninsecure = true\n'
COMMANDS: dict[str, tuple[list[str], ExitCode, list[str]]] = {
    "all problems of a job in one report": (
        ["run", "@misspelt.toml", "--home", "@home", "-s", "adapter.rank=4"],
        ExitCode.BAD_SETTINGS,
        [
            "misspelt.toml: 5 problems",
            "job.modle",
            "did you mean job.model?",
            "job.model: missing",
            'rounds.number = "2": should be',
            "rounds.learning_rate",
            "it belongs to train.learning_rate",
            "adapter.rank = 4 (set by an override): unknown key",
        ],
    ),
    "no such job": (["run", "@no.toml", "--home", "@home"], ExitCode.BAD_SETTINGS, ["no.toml", "no such file"]),
    "misspelt federation.toml": (
        ["up", "@misspelt"],
        ExitCode.BAD_SETTINGS,
        ["did you mean federation?", 'broker.port = "1883"'],
    ),
    "not a federation's folder": (["status", "--home", "@empty"], ExitCode.BAD_SETTINGS, ["@empty", "fedpipe init"]),
    "up in no federation's folder": (["up", "@empty"], ExitCode.BAD_SETTINGS, ["federation.toml", "--home"]),
    "a federation is made twice": (["init", "@home"], ExitCode.BAD_SETTINGS, ["exists already", "another folder"]),
    "a name that no topic can have": (
        ["init", "@new", "--name", "St. Mary/1"],
        ExitCode.BAD_SETTINGS,
        ["federation name", "St. Mary/1", "use 1 to 64 lower-case letters"],
    ),
    "the broker's port is taken": (
        ["up", "@home"],
        ExitCode.BROKER_CANNOT_START,
        ["port @port on 127.0.0.1 is in use", "(process @pid)", "choose another port"],
    ),
    "status without a coordinator": (["status", "--home", "@home"], ExitCode.COORDINATOR_NOT_RUNNING, ["fedpipe up"]),
    "run without a coordinator": (
        ["run", "@job.toml", "--home", "@home"],
        ExitCode.COORDINATOR_NOT_RUNNING,
        ["fedpipe up"],
    ),
    "the demo's folder has something in it": (
        ["demo", "--out", "@full"],
        ExitCode.USAGE,
        ["@full", "not empty", "--out"],
    ),
    "the demo's data are not there": (
        ["demo", "--out", "@demo-1", "--data", "@nowhere.csv"],
        ExitCode.DATA_UNUSABLE,
        ["nowhere.csv", "no such file"],
    ),
    "the demo's data are too few": (
        ["demo", "--out", "@demo-2", "--data", "@data.csv"],
        ExitCode.DATA_UNUSABLE,
        ["cannot be split"],
    ),
    "export of a run that is not there": (
        ["export", "r", "--to", "@out", "--home", "@home"],
        ExitCode.EXPORT_FAILED,
        ["no adapter", "only a run that is done"],
    ),
    "an unknown verb": (["tarin"], ExitCode.USAGE, ["tarin"]),
}


@pytest.mark.parametrize("name", COMMANDS)
def test_a_command_says_what_to_do(name: str, place: Place) -> None:
    arguments, code, says = COMMANDS[name]
    check(fedpipe(*map(place.fill, arguments)), code, *map(place.fill, says))


@pytest.mark.parametrize("verb", ["run", "probe"])
def test_all_problems_of_agent_toml_are_in_one_report(verb: str, place: Place) -> None:
    check(
        fedpipe_agent(verb, "--config", place.folder / "agent.toml"),
        AgentExitCode.BAD_AGENT_FILE,
        "agent.toml: 4 problems",
        'name = "Saint Mary"',
        "did you mean broker.host?",
        "did you mean limits.memory_mib?",
        "limits.threads = 0",
    )


def test_an_agent_whose_data_are_not_there_does_not_start(tmp_path: Path) -> None:
    broker = '[broker]\nhost = "127.0.0.1"\ninsecure = true\n'
    settings = f'name = "a"\nfederation = "f"\n{broker}[datasets.claims]\npath = "claims.jsonl"\n'
    (tmp_path / "agent.toml").write_text(settings)
    ended = fedpipe_agent("run", "--config", tmp_path / "agent.toml")
    check(ended, AgentExitCode.DATASET_UNUSABLE, f"datasets.claims.path = {tmp_path / 'claims.jsonl'}", "Put the data")


def test_without_mosquitto_the_message_names_the_package(place: Place) -> None:
    program = "from fedpipe_coordinator import cli; from fedpipe_coordinator.broker import managed; "
    program += "managed._SEARCH = ('/nowhere',); cli.main()"
    ended = call("-c", program, "up", place.folder / "home", environment={"PATH": str(place.folder / "empty")})
    check(ended, ExitCode.BROKER_CANNOT_START, "mosquitto is not installed", "apt-get install mosquitto")


def test_a_state_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "state").write_text("a file, where a folder should be")
    (tmp_path / "agent.toml").write_text(
        'name = "a"\nfederation = "f"\n[broker]\nhost = "127.0.0.1"\ninsecure = true\n'
    )
    ended = fedpipe_agent("run", "--config", tmp_path / "agent.toml")
    check(ended, AgentExitCode.STATE_FOLDER_UNUSABLE, str(tmp_path / "state"), "set 'state' in agent.toml")


def _leftover(state: Path) -> None:
    (state / "blobs" / "x.new").mkdir(parents=True)


def _counter(state: Path) -> None:
    state.mkdir()
    (state / "counter").write_text("-50")


def _clock(state: Path) -> None:
    with StateFolder(state) as folder:
        folder.next_counter()
    with closing(sqlite3.connect(state / "journal.db")) as journal:
        journal.execute("INSERT INTO memory (one, boot, monotonic_s, wall_s, body) VALUES (1, 'b', 'noon', 1, '{}')")
        journal.commit()


STATES: dict[str, tuple[Callable[[Path], None], tuple[str, ...]]] = {
    "a folder for a leftover": (_leftover, ("x.new: Is a directory", "remove it by hand")),
    "a counter below zero": (_counter, ("counter does not hold a number from 0", "'-50'", "restore the file")),
    "text for a clock": (_clock, ("journal.db is damaged", "'noon'", "move journal.db")),
}


@pytest.mark.parametrize("state", STATES)
def test_an_agent_whose_state_is_damaged_says_what_to_do(state: str, tmp_path: Path) -> None:
    damage, told = STATES[state]
    damage(tmp_path / "state")
    (tmp_path / "agent.toml").write_text(
        'name = "a"\nfederation = "f"\n[broker]\nhost = "127.0.0.1"\ninsecure = true\n'
    )
    check(fedpipe_agent("run", "--config", tmp_path / "agent.toml"), AgentExitCode.STATE_FOLDER_UNUSABLE, *told)


def test_a_broker_that_is_not_there_is_said_once_and_waited_for(tmp_path: Path) -> None:
    mosquitto_or_skip()
    with Federation(tmp_path) as federation:
        federation.init("--no-managed")
        logs = [federation.up().log, federation.start_agent("a", {}).log]
        told = f"cannot reach the broker at 127.0.0.1:{federation.port}"
        wait_for("both miss it", lambda: all(told in log.read_text() for log in logs), federation.children.values())
        second = fedpipe_agent("run", "--config", tmp_path / "a" / "agent.toml")
        check(second, AgentExitCode.IDENTITY_IN_USE, str(tmp_path / "a" / "state"), "stop it")
        with _broker(tmp_path / "broker", federation.port):
            federation.wait_for_agents("a")
            for text in (log.read_text() for log in logs):
                assert text.count(told) == 1
                assert "connected to the broker" in text
                assert "Traceback" not in text


@contextmanager
def _broker(folder: Path, port: int) -> Iterator[None]:
    broker = ManagedBroker(folder, port=port)
    broker.start()
    try:
        yield
    finally:
        broker.stop()


@pytest.mark.slow
@pytest.mark.timeout(600)
class TestInAFederation:
    """Mistakes that show when a run is asked for, or in it."""

    def test_a_second_coordinator_in_the_folder(self, shared: Shared) -> None:
        ended = fedpipe("up", shared.federation.home)
        check(ended, ExitCode.ALREADY_RUNNING, "is running", "stop it first")

    def test_an_unknown_run(self, shared: Shared) -> None:
        ask = shared.federation.ask
        check(ask("stop", "nightly"), ExitCode.USAGE, "no run 'nightly'", "fedpipe status")
        out = shared.federation.folder / "out"
        check(ask("export", "nightly", "--to", out), ExitCode.EXPORT_FAILED, "nightly has no adapter")
        assert not out.exists()

    def test_an_export_over_something_else(self, shared: Shared, first_run: Finished) -> None:
        ended = shared.federation.ask("export", first_run.name, "--to", shared.federation.folder)
        check(ended, ExitCode.USAGE, "is there already", "--to")

    @pytest.mark.parametrize(
        ("dataset", "north", "south"),
        [
            ("bad-1", "there is no such file or folder; correct `path`", "the file has no rows; put data in it"),
            (
                "bad-2",
                "line 3: not JSON",
                "no column is obviously the text; there are body_of_letter, label; say which with fields.text",
            ),
        ],
    )
    def test_data_that_cannot_be_read(self, shared: Shared, dataset: str, north: str, south: str) -> None:
        finished = shared.watch(f"data.dataset={dataset}")
        check(finished.watch, ExitCode.RUN_FAILED, f"north: {north}", f"south: {south}", f"map dataset '{dataset}'")
        assert finished.summary["phase"] == "failed"
        files = [path for path in finished.folder.rglob("*") if path.is_file()]
        left_the_silo = [finished.watch.said, *(path.read_text() for path in files)]
        left_the_silo.append(shared.federation.children["coordinator"].log.read_text())
        assert not [text for text in left_the_silo if SECRET in text or "patient4711" in text]

    def test_a_model_without_weights(self, shared: Shared, weightless: Path) -> None:
        finished = shared.watch("data.dataset=single", "rounds.min_agents=1", f"job.model={weightless}")
        check(finished.watch, ExitCode.RUN_FAILED, "north failed (model)", "holds no weights", "model.safetensors")

    def test_a_silo_with_a_label_of_its_own_is_left_out_by_name(self, shared: Shared) -> None:
        labels = 'data.labels=["class0","class1","class2"]'
        overrides = ("data.dataset=labels", "rounds.min_agents=1", "rounds.number=1", "export.merged=false", labels)
        finished = shared.watch(*overrides)
        assert finished.watch.code == 0, finished.watch
        (excluded,) = shared.federation.audit(finished.name, "excluded")
        assert excluded["agent"] == "south"
        for part in ("south has labels", "'class3'", "'class0', 'class1', 'class2'", "data.labels"):
            assert part in excluded["text"]
        assert finished.rounds_of("north")[1]["status"] == "accepted"
        assert finished.rounds_of("south")[1]["status"] == "refused"

    def test_a_memory_limit_below_the_libraries_own_need(self, shared: Shared, hard_run: Finished) -> None:
        failed = shared.federation.audit(hard_run.name, "failed", "small")
        assert [line["data"]["kind"] for line in failed] == ["out-of-memory"]
        assert re.search(r"limit of 100 MiB is below the \d+ MiB .* raise limits.memory_mib", failed[0]["text"])
        assert hard_run.summary["phase"] == "done"

    def test_an_agent_that_ran_out_of_memory_is_planned_smaller(self, shared: Shared, hard_run: Finished) -> None:
        (failed,) = shared.federation.audit(hard_run.name, "failed", "north")
        assert failed["data"]["kind"] == "out-of-memory"
        assert "most likely for memory" in failed["text"]
        assert "planned smaller next round" in failed["text"]
        first, second = (hard_run.rounds_of("north")[number] for number in (1, 2))
        assert first["status"] == "failed"
        assert second["status"] == "accepted"
        assert second["predicted_peak_bytes"] <= 0.8 * first["predicted_peak_bytes"]
        assert hard_run.rounds_of("south")[2]["predicted_peak_bytes"] > second["predicted_peak_bytes"]

    def test_no_process_crashed(self, shared: Shared, hard_run: Finished) -> None:
        del hard_run
        for child in shared.federation.children.values():
            assert "Traceback" not in child.log.read_text(), child.name
        reply = shared.federation.ask("status", "--format", "json").json()
        assert json.dumps(reply).count('"phase"') >= 3
