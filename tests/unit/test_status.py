"""`fedpipe status`: what agents wrote into a run's note is shown, and neither obeyed nor read as markup."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from fedpipe_coordinator.cli import status


@pytest.mark.parametrize("note", ["[/no] such [bold]tag", "\x1b]0;owned\x07", "two\nlines"])
def test_a_note_is_text(note: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    entry = {"run": "r", "phase": "failed", "round": 1, "rounds": 2, "initial_metric": None, "final_metric": None}
    reply = {"federation": "f", "agents_online": 0, "refused": {}, "runs": [entry | {"note": note}]}

    def answer(*_: object) -> Iterator[dict[str, Any]]:
        yield reply

    monkeypatch.setattr(status, "ask", answer)
    (tmp_path / "federation.toml").write_text('federation = "f"\n')
    status.status(home=tmp_path)
    out = capsys.readouterr().out
    assert note.encode("unicode_escape").decode() in out
    assert all(char.isprintable() or char == "\n" for char in out)
