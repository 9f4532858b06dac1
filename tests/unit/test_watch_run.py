"""What `fedpipe run --watch` says when the run ends, and when the coordinator goes away before it does."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from fedpipe_coordinator.control import ControlRequest, ControlServer
from fedpipe_coordinator.errors import CliError
from fedpipe_coordinator.exit_codes import ExitCode
from fedpipe_coordinator.home import Home
from fedpipe_coordinator.watch import watch_run


@pytest.fixture
def home(tmp_path: Path) -> Iterator[Home]:
    """A folder with a coordinator that ends every watching at once."""

    def end_at_once(request: ControlRequest) -> None:
        request.replies.put(None)

    server = ControlServer(tmp_path, end_at_once)
    yield Home(tmp_path)
    server.close()


def write_summary(home: Home, **summary: Any) -> None:
    home.run("r").mkdir(parents=True)
    (home.run("r") / "summary.json").write_text(json.dumps(summary))


def test_the_summary_of_a_run_that_is_done_comes_back(home: Home) -> None:
    write_summary(home, phase="done", note="")
    assert watch_run(home, "r")["phase"] == "done"


def test_a_run_that_failed_is_an_error_with_its_reason(home: Home) -> None:
    write_summary(home, phase="failed", note="too few agents")
    with pytest.raises(CliError, match="too few agents") as caught:
        watch_run(home, "r")
    assert caught.value.code == ExitCode.RUN_FAILED


@pytest.mark.parametrize("phase", [None, "training"])
def test_a_coordinator_that_goes_away_is_told_with_what_to_do(home: Home, phase: str | None) -> None:
    if phase is not None:
        write_summary(home, phase=phase, note="")
    with pytest.raises(CliError, match="fedpipe up") as caught:
        watch_run(home, "r")
    assert caught.value.code == ExitCode.COORDINATOR_NOT_RUNNING


@pytest.mark.parametrize(
    ("phase", "failure", "code", "says"),
    [
        ("done", "", ExitCode.STORE_UNUSABLE, "its records are not written yet: no space"),
        ("failed", "failed", ExitCode.RUN_FAILED, "failed: no space"),
        ("failed", "not-enough-agents", ExitCode.NOT_ENOUGH_AGENTS, "failed: no space"),
        ("training", "", ExitCode.COORDINATOR_NOT_RUNNING, "went away"),
    ],
)
def test_a_run_that_is_over_and_has_no_summary_is_told_by_the_coordinator_that_lives(
    tmp_path: Path, phase: str, failure: str, code: ExitCode, says: str
) -> None:
    def answer(request: ControlRequest) -> None:
        if request.data["op"] == "watch":
            request.replies.put(None)
        else:
            request.answer({"runs": [{"run": "r", "phase": phase, "failure": failure, "note": "no space"}]})

    server = ControlServer(tmp_path, answer)
    with pytest.raises(CliError, match=says) as caught:
        watch_run(Home(tmp_path), "r")
    server.close()
    assert caught.value.code == code
