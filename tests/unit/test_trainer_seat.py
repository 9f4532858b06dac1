"""What is heard of trainer processes: of the present one only, and whether the kernel killed it for memory."""

import os
import signal
import sys
from pathlib import Path
from queue import SimpleQueue

import pytest
from agent_in_process import use_stub_trainer
from agent_support import survey_task

from fedpipe_agent import trainer_process
from fedpipe_agent.agent_events import TrainerEnded, TrainerReplied
from fedpipe_agent.cgroups import read_oom_kills
from fedpipe_agent.errors import StateFolderError
from fedpipe_agent.trainer_protocol import Opened, OpenRequest, Surveyed, SurveyRequest
from fedpipe_agent.trainer_seat import FromTrainer, TrainerSeat
from fedpipe_data.source import DatasetSource

OPEN = OpenRequest(
    run="r",
    terms=survey_task().terms,
    model="m",
    dataset=DatasetSource(path=Path("d.csv")),
    device="cpu",
    supported_bits=(32,),
    memory_limit_bytes=1 << 30,
    threads=1,
)


@pytest.mark.parametrize(
    ("kills", "number", "for_memory"),
    [((3, 4), signal.SIGKILL, True), ((3, 3), signal.SIGKILL, False), ((3, 4), signal.SIGTERM, False)],
)
def test_a_killed_trainer_is_told_with_what_the_kernel_counted_meanwhile(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kills: tuple[int, int], number: int, *, for_memory: bool
) -> None:
    use_stub_trainer(tmp_path, monkeypatch)
    counts, heard = iter(kills), SimpleQueue[FromTrainer]()
    seat = TrainerSeat(tmp_path / "log", heard.put, lambda: next(counts, kills[1]))
    children = Path(f"/proc/self/task/{os.getpid()}/children")
    others = set(children.read_text().split())
    seat.ask(OPEN)
    seat.ask(SurveyRequest())
    replies = [seat.heard(heard.get(timeout=30)) for _ in range(2)]
    assert [type(event.reply) for event in replies if isinstance(event, TrainerReplied)] == [Opened, Surveyed]
    (child,) = set(children.read_text().split()) - others
    os.kill(int(child), number)
    assert seat.heard(heard.get(timeout=30)) == TrainerEnded(-number, for_memory)
    seat.end()


def test_what_a_trainer_said_before_another_took_its_place_is_not_heard(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    use_stub_trainer(tmp_path, monkeypatch)
    heard = SimpleQueue[FromTrainer]()
    seat = TrainerSeat(tmp_path / "log", heard.put, lambda: 0)
    seat.ask(OPEN)
    late = heard.get(timeout=30)
    seat.ask(OPEN)
    assert seat.heard(late) is None
    assert seat.heard(heard.get(timeout=30)) == TrainerReplied(Opened(context_bytes=1))
    seat.end()
    assert seat.heard(late) is None


def test_a_trainer_that_cannot_be_started_is_told_with_the_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trainer_process, "TRAINER_COMMAND", (f"{sys.executable}-none",))
    seat = TrainerSeat(tmp_path / "log", lambda _: None, lambda: 0)
    with pytest.raises(StateFolderError, match="no trainer can be started with its log in"):
        seat.ask(OPEN)


@pytest.mark.parametrize(
    ("files", "count"),
    [
        ({"proc/self/cgroup": "0::/a/b\n", "root/a/b/memory.events": "low 0\noom 3\noom_kill 2\n"}, 2),
        ({"proc/self/cgroup": "4:memory:/a\n0::/\n", "root/memory/a/memory.oom_control": "under_oom 0\noom_kill 5"}, 5),
        ({"proc/self/cgroup": "0::/\n", "proc/vmstat": "nr_free_pages 1\noom_kill 7\n"}, 7),
        ({"proc/self/cgroup": "0::/a\n", "root/a/memory.events": "low 0\n", "proc/vmstat": "oom_kill 8\n"}, 8),
        ({}, 0),
    ],
)
def test_the_kernels_count_is_of_the_own_group_where_it_tells(
    tmp_path: Path, files: dict[str, str], count: int
) -> None:
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    assert read_oom_kills(tmp_path / "proc", tmp_path / "root") == count
