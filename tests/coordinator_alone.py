"""A federation with a coordinator and no agent, for tests of what it does with its folder, its broker and its store."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from federation import Federation
from mosquitto_support import mosquitto_or_skip

JOB = """\
[job]
name = "words"
model = "m"
task = "causal-lm"

[data]
dataset = "words"

[rounds]
number = 2
"""


@contextmanager
def coordinator_alone(folder: Path) -> Iterator[Federation]:
    """A federation that is made and not started, with `job.toml` beside it."""
    mosquitto_or_skip()
    (folder / "job.toml").write_text(JOB)
    with Federation(folder) as federation:
        federation.init()
        yield federation
