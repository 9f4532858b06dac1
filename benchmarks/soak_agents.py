"""Many agents in one process, each the product's own `fedpipe-agent run` in a thread, with the echo as its trainer.

    python -m benchmarks.soak_agents --folder FOLDER --seed N --stay-s 60 --away-s 15 NAME...

Started by `soak.py`. Owns when an agent comes and goes; each stays and stays away for times drawn by the seed. FOLDER
has a folder with `agent.toml` for every name. Ends when its parent does.
"""

import argparse
import random
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from benchmarks.echo_trainer import Echo
from benchmarks.launch import fixed_profile, replace
from fedpipe_agent import daemon, trainer_process
from fedpipe_agent.agent_events import TrainerEnded, TrainerReplied
from fedpipe_agent.cli import run
from fedpipe_agent.train.serve import serve
from fedpipe_agent.trainer_protocol import Reply, Request

_here = threading.local()


class EchoInThread:
    """In place of a trainer process: answers at once, in the thread that asks."""

    def __init__(
        self, _log: Path, _threads: int, _memory_bytes: int, post: Callable[[TrainerReplied | TrainerEnded], None]
    ) -> None:
        self._post = post
        self._requests: list[bytes] = []
        self._open = b""

    def ask(self, request: Request) -> None:
        """Answer a request; the echo keeps nothing between requests but what it was opened with."""
        line = request.model_dump_json().encode()
        opened, lines = self._open, [line]
        if request.op == "open":
            self._open = line
        else:
            lines = [opened, line]
        replies: list[Reply] = []
        serve(lines, replies.append, Echo)
        for reply in replies if request.op == "open" else replies[1:]:
            self._post(TrainerReplied(reply))

    def end(self) -> None:
        """Nothing runs."""


class Leaving(daemon.Daemon):
    """A daemon that its thread can be asked to stop."""

    def __init__(self, *args: Any, **more: Any) -> None:
        super().__init__(*args, **more)
        _here.timer = threading.Timer(_here.stay_s, self.request_stop)
        _here.timer.daemon = True
        _here.timer.start()


def prepare() -> None:
    """Replace what an agent in a thread cannot have: signals, a trainer process, a measurement of seconds."""
    replace(run, "signal", SimpleNamespace(signal=lambda *_: None, SIGTERM=15, SIGINT=2))
    replace(run, "probe_device", fixed_profile((32,), 1))
    replace(run, "Daemon", Leaving)
    original = trainer_process.TrainerProcess
    for name, module in list(sys.modules.items()):
        if name.startswith("fedpipe_agent") and getattr(module, "TrainerProcess", None) is original:
            replace(module, "TrainerProcess", EchoInThread)


def live(folder: Path, seed: int, stay_s: float, away_s: float) -> None:
    """One agent's life: come, stay, leave, come again."""
    draw = random.Random(f"{seed}/{folder.name}")
    time.sleep(draw.uniform(0.0, away_s))
    while True:
        _here.stay_s = draw.expovariate(1.0 / stay_s)
        try:
            run.run(folder / "agent.toml")
        except Exception as error:  # noqa: BLE001 - said, and tried again, as systemd would
            sys.stderr.write(f"{folder.name}: {error!r}\n")
        timer = getattr(_here, "timer", None)
        if timer is not None:
            timer.cancel()
        time.sleep(draw.expovariate(1.0 / away_s))


def main() -> None:
    """Run the agents until ended."""
    parser = argparse.ArgumentParser(description="many agents in one process")
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--stay-s", type=float, default=60.0, help="mean time that an agent stays")
    parser.add_argument("--away-s", type=float, default=15.0, help="mean time that it stays away")
    parser.add_argument("names", nargs="+")
    given = parser.parse_args()
    prepare()
    for name in given.names:
        arguments = (given.folder / name, given.seed, given.stay_s, given.away_s)
        threading.Thread(target=live, args=arguments, name=name, daemon=True).start()
    threading.Event().wait()


if __name__ == "__main__":
    main()
