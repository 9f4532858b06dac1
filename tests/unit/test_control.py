"""The control socket between real sockets and threads: one question, its answers, and what may go wrong."""

import os
import socket
import stat
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from queue import SimpleQueue
from typing import Any

import pytest

from fedpipe_coordinator import control
from fedpipe_coordinator.control import (
    MAX_REQUEST_BYTES,
    SOCKET_NAME,
    ControlBusyError,
    ControlError,
    ControlRequest,
    ControlServer,
    ControlSocketError,
    RequestTooLargeError,
    ask,
    refuse_second,
)
from fedpipe_coordinator.home_lock import AlreadyRunningError, lock_home
from fedpipe_coordinator.records.retelling import Event
from fedpipe_coordinator.watchers import Watchers


@contextmanager
def _serving(home: Path, post: Callable[[ControlRequest], None]) -> Iterator[ControlServer]:
    server = ControlServer(home, post)
    try:
        yield server
    finally:
        server.close()


def _echo(request: ControlRequest) -> None:
    request.answer({"echo": request.data})


def test_a_question_gets_its_answer(tmp_path: Path) -> None:
    with _serving(tmp_path, _echo):
        question = {"op": "status", "text": "ä\u2028\n\x00" * 1000}
        assert list(ask(tmp_path, question)) == [{"echo": question}]
        assert stat.S_IMODE((tmp_path / SOCKET_NAME).stat().st_mode) == 0o600
    assert not (tmp_path / SOCKET_NAME).exists()


def test_a_folder_with_a_longer_name_than_a_socket_may_have(tmp_path: Path) -> None:
    home = tmp_path / ("x" * 200)
    home.mkdir()
    with _serving(home, _echo):
        assert list(ask(home, {})) == [{"echo": {}}]


def test_many_answers_come_in_order_and_end(tmp_path: Path) -> None:
    watchers = Watchers()

    def follow(request: ControlRequest) -> None:
        watchers.follow("r", request.replies, [{"event": "one"}], over=False)
        following.set()

    following = threading.Event()
    with _serving(tmp_path, follow):
        answers = ask(tmp_path, {"op": "watch"})
        assert next(answers) == {"event": "one"}
        assert following.wait(10)
        watchers.say("r", {"event": "two"})
        watchers.end("r")
        assert list(answers) == [{"event": "two"}]


def test_a_question_without_answers_is_no_error(tmp_path: Path) -> None:
    with _serving(tmp_path, lambda request: request.replies.put(None)):
        assert list(ask(tmp_path, {})) == []


@pytest.mark.parametrize(
    "line", [b"not json\n", b"[1]\n", b"\xff\xfe\n", b"[" * 100_000 + b"\n", b"x" * (MAX_REQUEST_BYTES + 9)]
)
def test_what_is_no_question_is_asked_as_an_empty_one(tmp_path: Path, line: bytes) -> None:
    with _serving(tmp_path, _echo), socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(10)
        connection.connect(str(tmp_path / SOCKET_NAME))
        try:
            connection.sendall(line)
        except BrokenPipeError:
            return  # it was answered before all of it was read
        with connection.makefile("rb") as answers:
            assert answers.readline() == b'{"echo": {}}\n'


def test_without_a_coordinator_one_is_told_how_to_start_it(tmp_path: Path) -> None:
    with pytest.raises(ControlError, match=f"fedpipe up {tmp_path}"):
        next(ask(tmp_path, {}))


def test_a_socket_left_by_a_coordinator_that_was_killed_is_taken_over(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(tmp_path / SOCKET_NAME))
    refuse_second(tmp_path)
    with _serving(tmp_path, _echo):
        assert list(ask(tmp_path, {"a": 1})) == [{"echo": {"a": 1}}]


def test_a_second_coordinator_is_refused_and_the_first_is_not_bothered(tmp_path: Path) -> None:
    asked: list[dict[str, Any]] = []

    def note(request: ControlRequest) -> None:
        asked.append(request.data)
        _echo(request)

    with _serving(tmp_path, note):
        with pytest.raises(AlreadyRunningError, match="a coordinator is running in"):
            ControlServer(tmp_path, _echo)
        assert list(ask(tmp_path, {"n": 1})) == [{"echo": {"n": 1}}]
    assert asked == [{"n": 1}]


def test_a_coordinator_that_goes_away_without_an_answer_is_an_error(tmp_path: Path) -> None:
    came = threading.Event()
    server = ControlServer(tmp_path, lambda _: came.set())

    def close() -> None:
        assert came.wait(10)
        server.close()

    closer = threading.Thread(target=close)
    closer.start()
    with pytest.raises(ControlError, match="before it answered"):
        list(ask(tmp_path, {}))
    closer.join()


def test_a_client_that_goes_away_harms_nobody(tmp_path: Path) -> None:
    requests: SimpleQueue[ControlRequest] = SimpleQueue()
    with _serving(tmp_path, requests.put):
        with socket.socket(socket.AF_UNIX) as connection:
            connection.connect(str(tmp_path / SOCKET_NAME))
            connection.sendall(b"{}\n")
            request = requests.get(timeout=10)
        for _ in range(100):
            request.replies.put({"event": "x" * 10_000})
        request.replies.put(None)
        answers = ask(tmp_path, {"n": 2})
        threading.Thread(target=lambda: requests.get(timeout=10).answer({"n": 2}), daemon=True).start()
        assert list(answers) == [{"n": 2}]


# --- who listens ------------------------------------------------------------------------------------------------


def _heard(queue: SimpleQueue[Event | None]) -> list[Event | None]:
    return [queue.get_nowait() for _ in range(queue.qsize())]


def test_a_late_watcher_hears_what_was_said_and_then_what_is_said() -> None:
    watchers = Watchers()
    early: SimpleQueue[Event | None] = SimpleQueue()
    late: SimpleQueue[Event | None] = SimpleQueue()
    watchers.follow("r", early, [], over=False)
    watchers.say("r", {"event": "a"})
    watchers.say("other", {"event": "not for r"})
    watchers.follow("r", late, [{"event": "a"}], over=False)
    watchers.say("r", {"event": "b"})
    watchers.end("r")
    watchers.say("r", {"event": "nobody listens any more"})
    assert _heard(early) == _heard(late) == [{"event": "a"}, {"event": "b"}, None]


def test_who_watches_a_run_that_is_over_hears_its_end_at_once() -> None:
    after: SimpleQueue[Event | None] = SimpleQueue()
    Watchers().follow("r", after, [{"event": "run-done"}], over=True)
    assert _heard(after) == [{"event": "run-done"}, None]


def test_a_coordinator_that_is_stopped_is_said_to_be_there(tmp_path: Path) -> None:
    with _serving(tmp_path, lambda _: None), lock_home(tmp_path):
        with pytest.raises(
            ControlBusyError, match=rf"is there \(process {os.getpid()}\) and did not answer within 0.2 s"
        ):
            next(ask(tmp_path, {}, timeout_s=0.2))
        with pytest.raises(AlreadyRunningError, match=f"as process {os.getpid()}"):
            refuse_second(tmp_path)


def test_a_socket_whose_queue_is_full_is_somebodys(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(control, "LOOK_S", 0.2)
    with socket.socket(socket.AF_UNIX) as stopped, socket.socket(socket.AF_UNIX) as first:
        stopped.bind(str(tmp_path / SOCKET_NAME))
        stopped.listen(0)
        first.connect(str(tmp_path / SOCKET_NAME))
        with pytest.raises(AlreadyRunningError):
            refuse_second(tmp_path)


def test_a_coordinator_whose_socket_was_removed_is_said_to_be_there(tmp_path: Path) -> None:
    with _serving(tmp_path, _echo), lock_home(tmp_path):
        (tmp_path / SOCKET_NAME).unlink()
        with pytest.raises(ControlBusyError, match=f"cannot be asked over {SOCKET_NAME}"):
            next(ask(tmp_path, {}))


def test_a_question_that_is_too_large_is_not_sent(tmp_path: Path) -> None:
    asked: list[ControlRequest] = []
    said = f"takes at most {MAX_REQUEST_BYTES}: make the job smaller"
    with _serving(tmp_path, asked.append), pytest.raises(RequestTooLargeError, match=said):
        next(ask(tmp_path, {"job": "x" * MAX_REQUEST_BYTES}))
    assert asked == []


def test_a_socket_that_is_not_its_own_is_left_by_one_that_ends(tmp_path: Path) -> None:
    first = ControlServer(tmp_path, _echo)
    (tmp_path / SOCKET_NAME).unlink()
    with _serving(tmp_path, _echo):
        first.close()
        assert list(ask(tmp_path, {"n": 1})) == [{"echo": {"n": 1}}]


def test_a_folder_in_the_sockets_place_is_named(tmp_path: Path) -> None:
    (tmp_path / SOCKET_NAME).mkdir()
    with pytest.raises(ControlSocketError, match=f"{tmp_path / SOCKET_NAME} cannot be made: Is a directory"):
        ControlServer(tmp_path, _echo)


def test_a_client_that_asks_nothing_holds_no_thread(tmp_path: Path) -> None:
    before = threading.active_count()
    server = ControlServer(tmp_path, _echo, ask_s=0.2)
    with socket.socket(socket.AF_UNIX) as silent, socket.socket(socket.AF_UNIX) as halting:
        for client in (silent, halting):
            client.settimeout(20)
            client.connect(str(tmp_path / SOCKET_NAME))
        halting.sendall(b'{"op": ')
        assert silent.recv(1) == b""
        assert halting.recv(1) == b""
        assert list(ask(tmp_path, {"n": 1})) == [{"echo": {"n": 1}}]
    server.close()
    assert threading.active_count() <= before + 1


def test_a_client_that_takes_no_answers_is_let_go_and_its_answers_are_not_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(control, "TAKE_S", 0.2)
    asked: SimpleQueue[ControlRequest] = SimpleQueue()
    with _serving(tmp_path, asked.put), socket.socket(socket.AF_UNIX) as client:
        client.connect(str(tmp_path / SOCKET_NAME))
        client.sendall(b"{}\n")
        request = asked.get(timeout=20)
        for _ in range(2000):
            request.replies.put({"event": "x" * 1000})
        drained = threading.Event()

        def look() -> None:
            while not request.replies.empty():
                drained.wait(0.01)
            drained.set()

        looker = threading.Thread(target=look)
        looker.start()
        assert drained.wait(20)
        request.replies.put(None)
        looker.join()
