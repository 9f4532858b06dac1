"""A database whose last commits are gone is whole: what tells is that the run's own records know more."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from office import Office
from run_support import device, job, survey

from fedpipe_wire.agent_messages import Presence, Profile
from fedpipe_wire.coordinator_messages import SurveyTask


@pytest.fixture
def office(tmp_path: Path) -> Iterator[Office]:
    office = Office(tmp_path)
    office.say(Profile(profile=device("a")))
    office.say(Presence(state="online", session="1"))
    yield office
    office.stop()


def _copy(folder: Path, to: str) -> None:
    for path in folder.glob("coordinator.db*"):
        shutil.copy(path, folder / path.name.replace("coordinator", to))


def test_a_store_that_lost_its_last_commits_is_told_of_by_the_runs_records(office: Office) -> None:
    run = office.service.submit(job(min_agents=2), None)
    office.settle()
    folder, epoch = office.folder, office.service.runs[run].epoch
    _copy(folder, "old")
    office.say(survey().model_copy(update={"run": run}))
    office.settle()
    office.stop()
    for path in folder.glob("coordinator.db*"):
        path.unlink()
    for path in folder.glob("old.db*"):
        path.rename(folder / path.name.replace("old", "coordinator"))
    office.heard()
    office.start()
    assert any("gone back in time" in line for line in office.said)
    office.settle()
    audit = office.service._folder_of(run).audit()
    assert [line["kind"] for line in audit].count("went-back") == 1
    numbers = [line["number"] for line in audit]
    assert numbers == sorted(set(numbers))
    office.say(Presence(state="online", session="1"))
    task, *_ = [message for message in office.heard() if isinstance(message, SurveyTask)]
    assert task.epoch > epoch


def test_a_store_that_was_restarted_is_not_said_to_have_gone_back(office: Office) -> None:
    run = office.service.submit(job(min_agents=2), None)
    office.say(survey().model_copy(update={"run": run}))
    for _ in range(2):
        office.settle()
        office.stop()
        office.start()
    assert not any("gone back" in line for line in office.said)
