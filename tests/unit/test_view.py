"""What a person sees in the terminal, also of names and texts that somebody chose to do harm."""

import io
from typing import Any

import pytest
from rich.console import Console
from run_support import PEAK, device, plan

from fedpipe_coordinator.view import RunView, agents_table, describe_ranks, plain, plan_table, round_table

HOSTILE = "[/bold][red]x[/nope] \x1b[31m\x00\u202e\u2028<b>&\n" + "y" * 10_000


def _text(renderable: Any, width: int = 200) -> str:
    out = io.StringIO()
    Console(file=out, width=width, force_terminal=False).print(renderable)
    return out.getvalue()


def _shown(*events: dict[str, Any]) -> str:
    out = io.StringIO()
    view = RunView(Console(file=out, width=200, force_terminal=True, color_system=None))
    for event in events:
        view.show(event)
    return out.getvalue()


def _record(agent: str = "a", note: str = "") -> dict[str, Any]:
    figures = {
        "bits": 32,
        "batch_size": 2,
        "ranks": {"up": 2, "out": 1},
        "examples": 10,
        "planned_examples": 12,
        "up_bytes": 1 << 20,
        "down_bytes": 1 << 21,
        "predicted_peak_bytes": PEAK,
        "measured_peak_bytes": None,
        "predicted_round_s": 20.0,
        "measured_round_s": 25.0,
        "reason": note,
    }
    return {
        "round": 2,
        "wall_s": 30.0,
        "deadline_s": 100.0,
        "metric": {"loss": 0.51234, "examples": 4},
        "truncation_tail": 0.01,
        "agents": [
            {"agent": agent, "status": "accepted", "note": note} | figures,
            {"agent": "b", "status": "idle", "note": note},
        ],
    }


def _plans(agent: str, reason: str) -> dict[str, Any]:
    made = plan("a", 1).model_dump(mode="json", exclude={"components"}) | {"ranks": {"up": 2}, "reason": reason}
    return {"deadline_s": 100.0, "plans": {agent: made}, "none": {"z": {"reason": reason}}}


def test_texts_of_agents_are_shown_as_plain_text() -> None:
    profile = device("a").model_copy(update={"datasets": (HOSTILE,)}).model_dump(mode="json")
    profile["host"]["cpu"] = HOSTILE
    for output in (
        _text(plan_table(_plans(HOSTILE, HOSTILE))),
        _text(round_table(_record(HOSTILE, HOSTILE))),
        _text(agents_table({HOSTILE: {"online": True, "profile": profile}})),
        _shown({"event": "failed", "text": HOSTILE, "agent": HOSTILE, "round": 1}),
        _shown({"event": "progress", "agent": HOSTILE, "stage": "training", "done": 1, "of": 2}),
        _shown({"event": "planned", "text": HOSTILE, "data": _plans(HOSTILE, HOSTILE)}),
    ):
        assert not set("\x1b\x00\u202e\u2028") & set(output)
        assert "[/bold]" in output.replace("\n", "") or "[/" in output
        assert output.count("y") < 10_000


def test_who_was_turned_away_stands_below_the_agents() -> None:
    profile = device("a").model_dump(mode="json")
    output = _text(agents_table({"a": {"online": True, "profile": profile, "turned_away": [f"session 1 {HOSTILE}"]}}))
    assert "turned away: session 1" in output
    assert not set("\x1b\x00\u202e\u2028") & set(output)


def test_plain_bounds_and_cleans() -> None:
    assert plain("a\tb\r\nc\x7f") == "a b  c "
    assert plain("x" * 601) == "x" * 600 + "..."
    assert plain("x" * 600) == "x" * 600
    assert plain(None) == "None"


def test_a_round_is_shown_with_predicted_beside_measured() -> None:
    output = _text(round_table(_record()))
    assert "round 2: held-out loss 0.512; 30 s of 100 s" in output
    for cell in ("1 x 2, 1 x 1", "10/12", "1.00 MiB", "100/- MiB", "20/25 s", "accepted", "idle"):
        assert cell in output


def test_a_plan_is_shown_with_its_reason_and_who_gets_none() -> None:
    output = _text(plan_table(_plans("a", "the link is slow")))
    assert "a: the link is slow" in output
    assert "z: no plan: the link is slow" in output


def test_progress_is_shown_at_each_quarter_only() -> None:
    events = [
        {"event": "progress", "agent": "a", "round": 1, "stage": "training", "done": done, "of": 100, "loss": 0.5}
        for done in range(101)
    ]
    lines = _shown(*events).strip().splitlines()
    assert [line.split(",")[0] for line in lines] == [
        f"[ROUND 1] a training {done}/100" for done in (0, 25, 50, 75, 100)
    ]


@pytest.mark.parametrize(
    ("ranks", "said"), [({}, "none"), ({"a": 4, "b": 16, "c": 4}, "1 x 16, 2 x 4"), ({"a": 1}, "1 x 1")]
)
def test_ranks_in_words(ranks: dict[str, int], said: str) -> None:
    assert describe_ranks(ranks) == said
