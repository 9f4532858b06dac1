"""Malformed and hostile input, all of it, and what becomes of it: a named table.

    python -m benchmarks.badinput [--only KIND] [--json FILE] [--seed N]

Every case is refused with its documented error, or it counts as a failure: `accepted`, `crashes`, or `unclear` where
the answer is not the documented one, or is nothing that a person can read. The kinds, and where they come to:

    update                                      the gate, in a process of its own
    job file, agent file, federation file       the command lines that read them
    request, bundle                             `fedpipe enroll`, `fedpipe-agent join`
    packet, topic, profile, report, offer       a coordinator at work, from an agent with real certificates
    order                                       an agent at work, from whoever holds the coordinator's keys

After each group of packets a whole round of a good agent must come to its end, and after the orders a task; no log may
tell of a defect, and the coordinator's record must hold a line for every packet that it refused. `rss_growth_mib` is
the most that any of the processes grew (resident set size, its peak over what it held before). Nothing depends on
chance; `--seed` is taken for the sake of uniformity.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

from benchmarks import (
    badinput_bundles,
    badinput_files,
    badinput_kept,
    badinput_orders,
    badinput_packets,
    badinput_requests,
    badinput_rounds,
    badinput_topics,
    badinput_words,
)
from benchmarks.badinput_cases import Case, CrashedError, Result, count, judge
from benchmarks.badinput_commands import Commands
from benchmarks.badinput_tyrant import open_court
from benchmarks.badinput_yard import Growth, Log, Yard, open_fleet, open_yard

MIB = 1 << 20
MAX_GROWTH_MIB = 64.0
MIN_CASES = 120
SHOWN = 110
COMMANDS: tuple[tuple[str, ModuleType], ...] = (
    ("settings files", badinput_files),
    ("requests", badinput_requests),
    ("bundles", badinput_bundles),
)
LIVE = (badinput_packets, badinput_topics, badinput_words, badinput_rounds)
UPDATE, ORDER = "update", "order"
OF_COMMANDS = frozenset({"job file", "agent file", "federation file", "request", "bundle"})
OF_YARD = frozenset({"packet", "topic", "profile", "report", "offer"})
KINDS = (UPDATE, *sorted(OF_COMMANDS), *sorted(OF_YARD), ORDER)


@dataclass
class Table:
    """What became of the cases of the kinds that are wanted.

    Attributes:
        wanted: Kinds.
        say: Takes a line as soon as there is one.
        growth_bytes: Of each process, or group of short ones.
    """

    wanted: frozenset[str]
    say: Callable[[str], None] = print
    results: list[Result] = field(default_factory=list)
    growth_bytes: dict[str, int] = field(default_factory=dict)

    def wants(self, kinds: Iterable[str]) -> bool:
        """Whether one of these kinds is wanted."""
        return not self.wanted.isdisjoint(kinds)

    def judge_all(self, cases: Iterable[Case]) -> None:
        """Hand over those that are wanted."""
        for case in cases:
            if case.kind in self.wanted:
                self.add(judge(case))

    def add(self, result: Result) -> None:
        """Take a result, and show it."""
        self.results.append(result)
        answer = " ".join(result.answer.split())
        shown = answer if result.verdict != "refused" else answer.partition(" (exit code")[0][-SHOWN:]
        self.say(f"{result.verdict:9} {result.case.kind:16} {result.case.name:46} {shown}")

    def must(self, kind: str, what: str, check: Callable[[], None]) -> None:
        """Something that holds whatever was sent; a crash where it does not."""
        try:
            check()
        except Exception as error:  # noqa: BLE001 - whatever it is, nobody is served
            self.add(Result(Case(kind, what, str, ""), "crashed", f"{type(error).__name__}: {error}"))

    def figures(self, seed: int) -> dict[str, Any]:
        """What goes into the file."""
        kinds = sorted({result.case.kind for result in self.results})
        growth = {name: round(size / MIB, 1) for name, size in self.growth_bytes.items()}
        return {
            "cases": len(self.results),
            "accepted": count(self.results, "accepted"),
            "crashes": count(self.results, "crashed"),
            "unclear": count(self.results, "unclear"),
            "rss_growth_mib": max(growth.values(), default=0.0),
            "rss_growth_mib_of": growth,
            "kinds": {kind: _counts(result for result in self.results if result.case.kind == kind) for kind in kinds},
            "table": [
                {"kind": result.case.kind, "name": result.case.name, "verdict": result.verdict, "answer": result.answer}
                for result in self.results
            ],
            "seed": seed,
        }


def _counts(results: Iterable[Result]) -> dict[str, int]:
    found = list(results)
    return {"cases": len(found), "refused": count(found, "refused")}


def try_updates(table: Table, folder: Path) -> None:
    """The gate, in a process of its own."""
    command = [sys.executable, "-m", "benchmarks.badinput_updates", str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=True)
    found = json.loads(done.stdout)
    for each in found["results"]:
        case = Case(each["case"]["kind"], each["case"]["name"], str, "")
        table.add(Result(case, each["verdict"], each["answer"]))
    table.growth_bytes["the gate"] = found["rss_growth_bytes"]


def try_commands(table: Table, folder: Path) -> None:
    """Files by the command lines that read them."""
    for name, module in COMMANDS:
        if module is not badinput_files and not table.wants({module.KIND}):
            continue
        place = folder / name.replace(" ", "-")
        place.mkdir()
        groups: dict[str, list[Case]] = {}
        commands = Commands(place)
        for case in module.cases(commands):
            groups.setdefault(case.kind, []).append(case)
        for kind, cases in groups.items():
            commands.peaks.clear()
            table.judge_all(cases)
            if commands.peaks:
                table.growth_bytes[f"commands of {kind}"] = commands.growth_bytes()


def try_yard(table: Table, folder: Path) -> None:
    """A coordinator at work."""
    with open_fleet(folder) as fleet:
        yard = open_yard(fleet)
        coordinator, agent = Growth(fleet.pid("coordinator")), Growth(fleet.pid("agent-1"))
        for module in LIVE:
            table.judge_all(module.cases(yard))
            table.must("packet", f"serving after {module.__name__.rpartition('_')[2]}", yard.check_serving)
        table.must("packet", "a line for every refused packet", lambda: check_recorded(yard))
        table.growth_bytes |= {"coordinator": coordinator.peak_bytes(), "good agent": agent.peak_bytes()}
        table.judge_all(badinput_kept.coordinator_cases(yard))
        table.must("packet", "serving after a restart", yard.check_serving)
        yard.mallory.leave()
        table.must("packet", "the logs", lambda: check_logs(folder))


def try_orders(table: Table, folder: Path) -> None:
    """An agent at work."""
    with open_fleet(folder) as fleet, open_court(fleet) as court:
        agent = Growth(fleet.pid("agent-1"))
        table.judge_all(badinput_orders.cases(court))
        table.must(ORDER, "serving after orders", court.check_serving)
        table.growth_bytes["ordered agent"] = agent.peak_bytes()
        table.judge_all(badinput_kept.agent_cases(court))
        table.must(ORDER, "serving after a restart", court.check_serving)
        table.must(ORDER, "the logs", lambda: check_logs(folder))


def check_recorded(yard: Yard, limit_s: float = 10.0) -> None:
    """The federation's record has a line for every packet that was refused.

    Raises:
        CrashedError: if it has not within `limit_s`.
    """
    refused = yard.refused()
    deadline = time.monotonic() + limit_s
    while True:
        lines = map(json.loads, (yard.fleet.home / "audit.jsonl").read_text().splitlines())
        told = [line["data"]["fault"] for line in lines if line["kind"] == "refused"]
        if {fault: told.count(fault) for fault in refused} == refused:
            return
        if time.monotonic() > deadline:
            raise CrashedError(f"refused: {refused}, recorded: {len(told)} lines")
        time.sleep(0.1)


def check_logs(folder: Path) -> None:
    """No log tells of a defect, and none holds what a terminal obeys.

    Raises:
        CrashedError: if one does.
    """
    for path in (folder / "logs").glob("*.log"):
        text = path.read_text(errors="replace")
        Yard.check_sane(Log(path).news())
        odd = {char for char in text if not char.isprintable() and char not in "\n\t"}
        if odd:
            raise CrashedError(f"{path.name} holds {sorted(map(ascii, odd))}")


def main() -> int:
    """Print the table."""
    parser = argparse.ArgumentParser(description="malformed and hostile input, and what becomes of it")
    parser.add_argument("--only", choices=KINDS, action="append", help="only this kind; repeatable")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path, help="also write the figures to this file")
    given = parser.parse_args()
    table = Table(frozenset(given.only or KINDS))
    parts: tuple[tuple[frozenset[str], Callable[[Table, Path], None]], ...] = (
        (frozenset({UPDATE}), try_updates),
        (OF_COMMANDS, try_commands),
        (OF_YARD, try_yard),
        (frozenset({ORDER}), try_orders),
    )
    with tempfile.TemporaryDirectory(prefix="fedpipe-badinput-") as name:
        for number, (kinds, part) in enumerate(parts):
            if table.wants(kinds):
                folder = Path(name) / str(number)
                folder.mkdir()
                part(table, folder)
    figures = table.figures(given.seed)
    print()
    for key, value in figures.items():
        if key != "table":
            print(f"{key:18} {value}")
    if given.json:
        given.json.write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")
    failed = figures["accepted"] or figures["crashes"] or figures["unclear"]
    enough = given.only or figures["cases"] >= MIN_CASES
    return 0 if not failed and enough and figures["rss_growth_mib"] < MAX_GROWTH_MIB else 1


if __name__ == "__main__":
    sys.exit(main())
