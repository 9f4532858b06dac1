"""One federation for all tests that only look at what it did, or that leave it as it was."""

import json
import os
import random
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from federation import (
    SECRET,
    Federation,
    Finished,
    Shared,
    child_of,
    children_of,
    kill,
    wait_for,
    write_job,
)
from mosquitto_support import mosquitto_or_skip
from tiny_models import WORDS, make_tiny_model, write_classification

from fedpipe_coordinator.demo.processes import Child


@pytest.fixture(scope="session")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shared]:
    """North and east begin before the coordinator, south and the far too small one after it."""
    mosquitto_or_skip()
    folder = tmp_path_factory.mktemp("federation")
    model = make_tiny_model(folder / "model", "bert")
    silos = {
        "n": write_classification(folder / "n.jsonl", rows=520),
        "s": write_classification(folder / "s.jsonl", rows=260, seed=1),
    }
    long = _write_long(folder / "long.jsonl")
    other = write_classification(folder / "other.jsonl", rows=60, labels=4)
    with Federation(folder, secure=True) as federation:
        federation.init()
        north = {"words": silos["n"], "long": long, "labels": silos["n"], "single": silos["n"]}
        federation.start_agent("north", north | _broken(folder, "missing", "malformed"))
        federation.start_agent("east", {"long": long})
        early = dict(federation.children)
        logs = [child.log for child in early.values()]
        wait_for("both miss it", lambda: all("cannot reach" in log.read_text() for log in logs), early.values())
        federation.up()
        south = {"words": silos["s"], "long": long, "labels": other}
        federation.start_agent("south", south | _broken(folder, "empty", "nameless"))
        federation.start_agent("small", {"long": long}, {"memory_mib": 100})
        federation.wait_for_agents("north", "east", "south", "small")
        (folder / "missing.jsonl").unlink()
        yield Shared(federation, model, write_job(folder / "job.toml", model), silos)


@pytest.fixture(scope="session")
def first_run(shared: Shared) -> Finished:
    """A run in which nothing goes wrong."""
    finished = shared.watch()
    assert finished.watch.code == 0, finished.watch
    return finished


@pytest.fixture(scope="session")
def second_run(shared: Shared, first_run: Finished) -> Finished:
    """The same job with the same agents, once more, without the merged model."""
    del first_run
    finished = shared.watch("export.merged=false")
    assert finished.watch.code == 0, finished.watch
    return finished


@pytest.fixture(scope="session")
def hard_run(shared: Shared, second_run: Finished) -> Finished:
    """A run that loses east in the first round for good, and north's trainers, as the kernel kills one for memory."""
    del second_run  # it must have ended: east is gone afterwards
    federation = shared.federation
    overrides = ("data.dataset=long", "train.examples_per_round=1000", "train.batch_sizes=[2,8,32,64]")
    more = ("train.sequence_length=64", "export.merged=false", "rounds.min_agents=1")
    run = federation.submit(shared.job, *overrides, *more)
    blows: dict[str, Callable[[], None]] = {
        "north": lambda: _kill_two_trainers(federation.children["north"]),
        "east": lambda: kill(federation.children["east"]),
    }

    def struck() -> bool:
        for name in [name for name in blows if federation.audit(run, "evaluated", name)]:
            blows.pop(name)()
        return not blows

    wait_for("north and east train", struck, [federation.children["coordinator"]])
    federation.wait_for_audit(run, "run-done")
    status = federation.ask("status")
    return Finished(run, federation.run_folder(run), status)


def _kill_two_trainers(agent: Child) -> None:
    """The first death is not yet taken for a lack of memory: a fresh trainer gets the same task."""
    first = child_of(agent.process.pid)
    os.kill(first, 9)
    wait_for("a fresh trainer", lambda: set(children_of(agent.process.pid)) - {first}, [agent])
    os.kill(child_of(agent.process.pid), 9)


def _write_long(path: Path) -> Path:
    """Rows of 60 words, so that the batch decides on the memory; 1200 of them, so that a round takes a second."""
    draw = random.Random(1)
    rows = [{"text": " ".join(draw.choices(WORDS, k=60)), "label": f"class{i % 3}"} for i in range(1200)]
    path.write_text("\n".join(map(json.dumps, rows)))
    return path


def _broken(folder: Path, first: str, second: str) -> dict[str, Path]:
    """Two datasets, `bad-1` and `bad-2`, that cannot be used for the reasons named."""
    good = json.dumps({"text": SECRET, "label": "a"})
    texts = {
        "missing": good,  # an agent does not even start where it is missing; it goes away later
        "empty": "",
        "malformed": f'{good}\n{good}\n{{"text": "{SECRET}", "label"\n',
        "nameless": json.dumps({"body_of_letter": SECRET, "label": "a"}),
    }
    paths = {"bad-1": folder / f"{first}.jsonl", "bad-2": folder / f"{second}.jsonl"}
    for path in paths.values():
        path.write_text(texts[path.stem])
    return paths


@pytest.fixture(scope="session")
def weightless(shared: Shared, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model folder with everything but the weights."""
    folder = tmp_path_factory.mktemp("weightless")
    for path in shared.model.glob("*.json"):
        shutil.copy(path, folder)
    return folder
