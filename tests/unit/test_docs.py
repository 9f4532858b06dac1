"""The documentation names everything that a user or an operator can meet, and nothing in it is stale."""

import importlib.util
import re
from collections.abc import Iterator
from importlib.machinery import SourceFileLoader
from pathlib import Path
from types import ModuleType
from typing import get_args

import pytest
import typer
from pydantic import BaseModel

from fedpipe_agent.cli import app as agent_app
from fedpipe_agent.config import AgentSettings
from fedpipe_coordinator.cli import app as coordinator_app
from fedpipe_coordinator.config import Job
from fedpipe_coordinator.federation_config import Federation
from fedpipe_coordinator.records.run_folder import RunFolder, agent_record, round_record
from fedpipe_coordinator.runs.run_events import Note
from fedpipe_coordinator.runs.run_state import Member, RoundResult, RunState
from fedpipe_data.source import DatasetSource
from fedpipe_profiles.model import ModelShape, WeightShape
from fedpipe_profiles.plan import Plan, Prediction
from fedpipe_profiles.values import Value
from fedpipe_wire.message_values import Metrics
from fedpipe_wire.messages import AGENT_CHANNELS, COORDINATOR_CHANNELS
from fedpipe_wire.sealing import Fault as SealFault

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
PAGES = sorted([*DOCS.rglob("*.md"), *ROOT.glob("*.md")])
SHAPE = ModelShape(
    model_type="llama",
    layers=1,
    hidden_size=4,
    intermediate_size=8,
    heads=1,
    vocabulary_size=16,
    weights=(WeightShape(name="w", d_out=4, d_in=4),),
    other_parameters=0,
    fingerprint="f",
)
JOB = Job.model_validate(
    {
        "job": {"name": "j", "model": "m", "task": "causal-lm"},
        "data": {"dataset": "d"},
        "rounds": {"number": 1},
    }
)


def reference(name: str) -> str:
    return (DOCS / "reference" / name).read_text(encoding="utf-8")


def undocumented(names: set[str], page: str) -> set[str]:
    return {name for name in names if f"`{name}`" not in page}


# --- messages ---------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def script() -> ModuleType:
    loader = SourceFileLoader("describe_messages", str(ROOT / "scripts" / "describe-messages"))
    spec = importlib.util.spec_from_loader(loader.name, loader)
    assert spec is not None
    module = importlib.util.module_from_spec(spec)
    loader.exec_module(module)
    return module


def test_the_tables_of_the_messages_are_those_of_the_types(script: ModuleType) -> None:
    page = reference("messages.md")
    assert script.place(page, script.describe()) == page, "run scripts/describe-messages --write"


@pytest.mark.parametrize("kind", [*AGENT_CHANNELS, *COORDINATOR_CHANNELS], ids=lambda kind: kind.__name__)
def test_every_message_has_a_section_with_all_its_fields(kind: type[Value]) -> None:
    name = kind.model_fields["type"].default
    section = reference("messages.md").split(f"\n### {name}\n")[1].split("\n### ")[0]
    assert undocumented(set(kind.model_fields) - {"type"}, section) == set()


def test_tables_are_not_put_into_a_page_without_a_place(script: ModuleType) -> None:
    with pytest.raises(ValueError, match="no place"):
        script.place("# Messages\n", "tables")


# --- commands ---------------------------------------------------------------------------------------------------


def options() -> Iterator[tuple[str, str]]:
    for program, app in (("fedpipe", coordinator_app), ("fedpipe-agent", agent_app)):
        group = typer.main.get_command(app)
        for verb, command in group.commands.items():  # type: ignore[attr-defined]  # typer's command is a group here
            below = getattr(command, "commands", {}).values()  # their options stand in the section of their group
            for parameter in (each for one in (command, *below) for each in one.params):
                flags = [*parameter.opts, *parameter.secondary_opts]
                yield from ((f"{program} {verb}", flag) for flag in flags if flag.startswith("-") and flag != "--help")


def test_every_command_has_a_section() -> None:
    for command in {command for command, _ in options()} | {"fedpipe up"}:
        assert re.search(rf"^### {command}( |$)", reference("cli.md"), re.MULTILINE), command


def test_every_option_stands_in_its_commands_section() -> None:
    sections = re.split(r"^### ", reference("cli.md"), flags=re.MULTILINE)[1:]
    for command, flag in options():
        section = next(text for text in sections if text.splitlines()[0].split(" [")[0].startswith(command))
        assert f"`{flag}`" in section, (command, flag)


def test_no_section_is_about_a_command_that_is_gone() -> None:
    known = {command for command, _ in options()} | {"fedpipe up"}
    titles = re.findall(r"^### (fedpipe(?:-agent)? [a-z]+)", reference("cli.md"), re.MULTILINE)
    assert set(titles) == known


# --- settings ---------------------------------------------------------------------------------------------------


def keys(model: type[BaseModel]) -> Iterator[str]:
    """Names of all keys of a settings file; those of tables below it too."""
    for name, field in model.model_fields.items():
        inner = field.annotation
        if isinstance(inner, type) and issubclass(inner, BaseModel):
            yield from keys(inner)
        else:
            yield name


@pytest.mark.parametrize(
    ("model", "page"), [(Job, "job.toml.md"), (AgentSettings, "agent.toml.md"), (Federation, "federation.toml.md")]
)
def test_every_key_is_documented(model: type[BaseModel], page: str) -> None:
    tables = {"datasets", "models"}  # their names are the user's; they have sections
    assert undocumented(set(keys(model)) - tables, reference(page)) == set()
    assert all(f"[{table}" in reference(page) for table in tables & set(model.model_fields))


def test_every_key_of_a_dataset_is_documented() -> None:
    assert undocumented(set(keys(DatasetSource)), reference("agent.toml.md")) == set()


# --- files ------------------------------------------------------------------------------------------------------


def planned_member() -> Member:
    plan = Plan(
        agent="a",
        round=1,
        bits=8,
        batch_size=2,
        gradient_checkpointing=False,
        sequence_length=8,
        learning_rate=0.1,
        seed=0,
        examples=2,
        deadline_s=1.0,
        scale=1.0,
        global_rank=2,
        components={"w": (0, 1)},
        predicted=Prediction(peak_bytes=1, round_s=1.0, compute_s=1.0, up_bytes=1, down_bytes=1),
        bound="nothing",
        reason="nothing",
    )
    return Member(name="a", plan=plan)


def test_every_key_of_a_round_is_documented() -> None:
    page = reference("run-folder.md")
    result = RoundResult(round=1, wall_s=1.0, deadline_s=1.0, truncation_tail=0.0, members=(planned_member(),))
    record = round_record(result, Metrics(loss=1.0, examples=1), SHAPE, 1)
    assert undocumented(set(record), page) == set()
    assert undocumented(set(agent_record(planned_member(), 1, SHAPE, 1)), page) == set()


def test_every_key_of_a_summary_and_of_an_audit_line_is_documented(tmp_path: Path) -> None:
    page = reference("run-folder.md")
    summary = RunFolder(tmp_path).write_summary(RunState(run="r", job=JOB, phase="done", members={}), {})
    assert undocumented(set(summary), page) == set()
    assert {file.name for file in tmp_path.iterdir()} == {"summary.json"}
    for field in ("kind", "text", "agent", "round", "data"):
        assert field in Note.__dataclass_fields__
        assert f"`{field}`" in page


def test_every_kind_of_audit_line_is_documented() -> None:
    sources = "\n".join(file.read_text() for file in (ROOT / "coordinator" / "fedpipe_coordinator").rglob("*.py"))
    written = re.compile(r'(?:\.note\(\s*|\bNote\(\s*|\.close\("[a-z]+", )"([a-z-]+)"')
    kinds = set(written.findall(sources))
    assert {"planned", "run-failed", "aggregated"} <= kinds
    assert undocumented(kinds, reference("run-folder.md").split("### audit.jsonl")[1]) == set()


# --- the pages themselves ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#\s]*)(?:#[^)]*)?\)", page.read_text(encoding="utf-8")):
        if target and "://" not in target:
            assert (page.parent / target).exists(), target


def test_every_page_and_every_decision_is_in_its_index() -> None:
    index, decisions = (DOCS / "README.md").read_text(), (DOCS / "adr" / "README.md").read_text()
    for page in DOCS.rglob("*.md"):
        if page.parent.name == "adr" and page.name != "README.md":
            assert f"({page.name})" in decisions
        elif page != DOCS / "README.md":
            assert f"({page.relative_to(DOCS)})" in index


def test_every_kind_and_fault_of_the_federation_s_record_is_documented() -> None:
    page = reference("audit.md")
    assert (
        undocumented(set(get_args(SealFault)) | {"wrong-topic", "oversize", "wrong-sender", "stale", "flood"}, page)
        == set()
    )
    sources = "\n".join(file.read_text() for file in (ROOT / "coordinator" / "fedpipe_coordinator").rglob("*.py"))
    kinds = set(re.findall(r'(?:\bEntry\(|audit\w*\.append\()\s*"([a-z-]+)"', sources))
    assert {"refused", "coordinator-started"} <= kinds
    assert undocumented(kinds | {"run-began", "run-ended"}, page) == set()
