"""The report: one page, well-formed, that shows hostile names and texts as text."""

from html.parser import HTMLParser
from pathlib import Path
from typing import Any

from run_support import RUN, begin

from fedpipe_coordinator.records.report import MAX_TEXT, render, write_report
from fedpipe_coordinator.records.run_folder import RunFolder

HOSTILE = "<script>alert(1)</script><img src=x onerror='p()'>\"&\x00\x1b\u202e\u2028" + "y" * 10_000
VOID = {"meta"}


class Page(HTMLParser):
    """Which elements a page has, whether they close, and its text."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.text = ""
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += attrs
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += attrs

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


def _summary(text: str = "") -> dict[str, Any]:
    agent = {
        "agent": text or "a",
        "status": text or "accepted",
        "note": text,
        "bits": 8,
        "ranks": {"up": 2},
        "batch_size": 2,
        "examples": 10,
        "planned_examples": 12,
        "up_bytes": 1 << 20,
        "down_bytes": 1 << 21,
        "predicted_peak_bytes": 1 << 30,
        "measured_peak_bytes": None,
        "predicted_round_s": 20.0,
        "measured_round_s": 21.5,
        "reason": text,
    }
    rounds = [
        {
            "round": number,
            "wall_s": 30.0,
            "deadline_s": 100.0,
            "metric": None if number == 2 else {"loss": 1.0 / number, "accuracy": 0.5, "examples": 4},
            "truncation_tail": 0.015,
            "agents": [agent, {"agent": "b", "status": "gone", "note": text}],
        }
        for number in (1, 2, 3)
    ]
    return {
        "run": RUN,
        "task": "sequence-classification",
        "model": text or "tiny",
        "seed": 5,
        "phase": "done",
        "note": text,
        "initial_metric": {"loss": 2.0, "accuracy": 0.25, "examples": 4},
        "final_metric": None,
        "rounds": rounds,
        "exports": {"adapter": text or "out/adapter", "merged": None},
    }


def _decisions(text: str) -> list[dict[str, Any]]:
    return [{"time": "2030-01-01T12:00:00.000+00:00", "kind": "failed", "agent": text, "round": 1, "text": text}]


def test_the_page_is_well_formed_and_says_what_happened() -> None:
    page = Page(render(_summary(), _decisions("a went away")))
    assert page.open == []
    for part in (
        f"Run {RUN}",
        "Round 3",
        "8",
        "10/12",
        "1024 / - MiB",
        "20.0 / 21.5 s",
        "1.50% of the change",
        "a went away",
    ):
        assert part in page.text
    assert page.tags.count("svg") == 2
    assert page.tags.count("circle") == 6  # the start and two of three rounds, for loss and accuracy


def test_hostile_texts_become_neither_elements_nor_attributes() -> None:
    calm, hostile = Page(render(_summary(), _decisions("x"))), Page(render(_summary(HOSTILE), _decisions(HOSTILE)))
    assert hostile.open == []
    assert hostile.tags == calm.tags
    assert [name for name, _ in hostile.attributes] == [name for name, _ in calm.attributes]
    assert "<script>alert(1)</script>" in hostile.text
    assert not set("\x00\x1b\u202e\u2028") & set(hostile.text)
    assert "y" * (MAX_TEXT + 1) not in hostile.text


def test_nothing_is_fetched_from_elsewhere() -> None:
    page = Page(render(_summary(), []))
    assert not {"script", "link", "img", "iframe"} & set(page.tags)
    assert not [value for name, value in page.attributes if name in ("src", "href")]


def test_a_run_that_ended_before_its_first_round_has_a_report() -> None:
    page = Page(render(_summary() | {"rounds": [], "initial_metric": None, "exports": {}, "phase": "failed"}, []))
    assert page.open == []
    assert "nothing was exported" in page.text
    assert "svg" not in page.tags


def test_the_report_is_written_from_a_runs_folder_with_a_cut_audit(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    summary = folder.write_summary(begin(), {})
    (tmp_path / "audit.jsonl").write_bytes(
        b'{"number": 1, "time": "t", "kind": "k", "agent": null, "round": 0, "text": "whole \xe2\x80\xa8 line"}\n{"ki'
    )
    write_report(tmp_path / "report.html", summary, tmp_path / "audit.jsonl")
    assert "whole   line" in Page((tmp_path / "report.html").read_text()).text
