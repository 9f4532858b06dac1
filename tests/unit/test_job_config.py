"""job.toml and federation.toml: the documented examples, defaults, and checks across keys."""

import json
import re
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from pydantic import TypeAdapter

from fedpipe_coordinator.config import Job, job_terms, load_job, make_run_id
from fedpipe_coordinator.federation_config import Federation, load_federation
from fedpipe_profiles.settings_file import SettingsError
from fedpipe_profiles.settings_report import known_keys
from fedpipe_profiles.values import Settings
from fedpipe_wire.message_values import RunId

DOCS = Path(__file__).parents[2] / "docs" / "reference"
NOW = datetime(2030, 4, 1, 9, 30, tzinfo=UTC)


def _example(name: str) -> str:
    found = re.search(r"```toml\n(.*?)```", (DOCS / f"{name}.md").read_text(), re.DOTALL)
    assert found is not None
    return found[1]


def _load(tmp_path: Path, *overrides: str) -> Job:
    path = tmp_path / "job.toml"
    path.write_text(_example("job.toml"))
    return load_job(path, overrides)


def _problems(tmp_path: Path, *overrides: str) -> list[str]:
    with pytest.raises(SettingsError) as caught:
        _load(tmp_path, *overrides)
    return list(caught.value.problems)


def _defaults(name: str) -> dict[str, str]:
    rows = re.findall(r"^\| `(\w+)` \| (.*?) \|", (DOCS / f"{name}.md").read_text(), re.MULTILINE)
    return {key: default.strip("`") for key, default in rows}


@pytest.mark.parametrize(("name", "model"), [("job.toml", Job), ("federation.toml", Federation)])
def test_every_key_is_documented_and_no_other(name: str, model: type[Settings]) -> None:
    keys = list(known_keys(model))
    assert set(_defaults(name)) == {key[-1] for key in keys if not any(other[:-1] == key for other in keys)}


def test_the_documented_defaults_are_the_real_ones(tmp_path: Path) -> None:
    job = _load(tmp_path)
    documented = _defaults("job.toml")
    for section in (job.job, job.data, job.rounds, job.train, job.aggregation):
        for key, value in section.model_dump(mode="json").items():
            if documented[key] != "required" and value is not None:
                told = json.dumps(value) if isinstance(value, bool) else str(value)
                assert documented[key].strip('"') in (told, f"{value:g}" if isinstance(value, float) else "")
    assert job.adapter.rank_ladder == (4, 8, 16, 32)
    assert (job.adapter.global_rank, job.adapter.scale) == (32, 1.0)


def test_the_documented_federation_loads_with_the_defaults(tmp_path: Path) -> None:
    (tmp_path / "federation.toml").write_text(_example("federation.toml"))
    federation = load_federation(tmp_path / "federation.toml")
    assert federation == Federation(federation="clinics")
    assert federation.broker.managed


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        (
            "adapter.rank_ladder=[8, 4]",
            "adapter.rank_ladder = [8, 4] (set by an override): should rise without repeats",
        ),
        (
            "adapter.rank_ladder=[4, 4]",
            "adapter.rank_ladder = [4, 4] (set by an override): should rise without repeats",
        ),
        (
            "adapter.rank_ladder=[4, 64]",
            "adapter.rank_ladder = [4, 64] (set by an override): should not go beyond adapter.global_rank = 32",
        ),
        ("adapter.rank_ladder=[]", "adapter.rank_ladder = [] (set by an override): should have at least 1 item"),
        ("train.batch_sizes=[2, 1]", "train.batch_sizes = [2, 1] (set by an override): should rise without repeats"),
        ("rounds.fraction=1.5", "rounds.fraction = 1.5 (set by an override): should be less than or equal to 1"),
        (
            "rounds.deadline_s=soon",
            "rounds.deadline_s = \"soon\" (set by an override): should be 'auto' or a valid number",
        ),
        ("rounds.deadline_s=-1", "rounds.deadline_s = -1 (set by an override): should be 'auto' or greater than 0"),
        (
            "job.task=chat",
            "job.task = \"chat\" (set by an override): should be 'causal-lm' or 'sequence-classification'",
        ),
        ("job.name=My job", "job.name = \"My job\" (set by an override): job name 'My job' is not usable"),
        ('data.labels=["a","b"]', "data: labels are for job.task = "),
        ("aggregation.clip=0.5", "aggregation.clip = 0.5 (set by an override): should be 0, for off, or at least 1"),
        (
            "aggregation.rule=sum",
            "aggregation.rule = \"sum\" (set by an override): should be 'mean', 'median',",
        ),
        (
            "aggregation.rule=multi-krum",
            'aggregation: aggregation.rule = "multi-krum" with aggregation.attackers = 1 needs 5 agents, ',
        ),
        ("job.learning_rate=1", "job.learning_rate = 1 (set by an override): unknown key here; it belongs to train."),
    ],
)
def test_each_wrong_value_is_one_problem(tmp_path: Path, override: str, expected: str) -> None:
    (problem,) = _problems(tmp_path, override)
    assert problem.startswith(expected)


def test_checks_across_keys_come_in_the_same_report_as_all_others(tmp_path: Path) -> None:
    problems = _problems(
        tmp_path,
        "rounds.number=0",
        "adapter.rank_ladder=[64]",
        "train.batch_sizes=[4,2]",
        "job.sed=1",
        'data.labels=["a"]',
    )
    keys = {problem.split(" = ")[0] for problem in problems}
    assert keys == {"rounds.number", "adapter.rank_ladder", "train.batch_sizes", "job.sed", "data.labels"}


def test_a_wrong_global_rank_is_one_problem_not_two(tmp_path: Path) -> None:
    assert _problems(tmp_path, "adapter.global_rank=0") == [
        "adapter.global_rank = 0 (set by an override): should be greater than 0"
    ]


@pytest.mark.parametrize(("rank", "ladder"), [(2, (2,)), (4, (4,)), (20, (4, 8, 16)), (64, (4, 8, 16, 32))])
def test_the_default_ladder_fits_the_global_rank(tmp_path: Path, rank: int, ladder: tuple[int, ...]) -> None:
    assert _load(tmp_path, f"adapter.global_rank={rank}").adapter.rank_ladder == ladder


@pytest.mark.parametrize(("rule", "least"), [("mean", 1), ("median", 1), ("trimmed-mean", 7), ("multi-krum", 9)])
def test_a_rule_needs_as_many_agents_as_its_breakdown_point_asks_for(tmp_path: Path, rule: str, least: int) -> None:
    """Three attackers: 2 * 3 + 1, and 2 * 3 + 3."""
    given = (f"aggregation.rule={rule}", "aggregation.attackers=3")
    job = _load(tmp_path, *given, f"rounds.min_agents={least}")
    assert job.aggregation.agents_needed == least
    if least > 1:
        (problem,) = _problems(tmp_path, *given, f"rounds.min_agents={least - 1}")
        assert f"needs {least} agents, rounds.min_agents is {least - 1}" in problem


def test_labels_keep_their_order_and_may_not_repeat(tmp_path: Path) -> None:
    classify = "job.task=sequence-classification"
    assert _load(tmp_path, classify, 'data.labels=["no","yes","maybe"]').data.labels == ("no", "yes", "maybe")
    (problem,) = _problems(tmp_path, classify, 'data.labels=["no","yes","no"]')
    assert problem.endswith("names a label twice: no")


def test_terms_say_what_agents_must_know(tmp_path: Path) -> None:
    terms = job_terms(_load(tmp_path, "adapter.rank_ladder=[2, 12]", "train.batch_sizes=[1, 3]", "job.seed=7"))
    assert (terms.max_rank, terms.batch_sizes, terms.seed) == (12, (1, 3), 7)
    assert (terms.name, terms.model, terms.task, terms.dataset) == (
        "claims",
        "example/small-model",
        "causal-lm",
        "claims",
    )


def test_terms_can_be_made_of_the_longest_values_that_a_job_may_have(tmp_path: Path) -> None:
    job = _load(tmp_path, f"job.name={'n' * 64}", f"job.model={'m' * 1000}", f"data.dataset={'d' * 128}")
    assert len(job_terms(job).model) == 1000
    TypeAdapter(RunId).validate_python(make_run_id(job.job.name, NOW, b"\xff\xff"))


def test_run_ids_sort_by_time_and_differ_within_a_second() -> None:
    early = make_run_id("claims", NOW, b"\xff\xff")
    assert early == "claims-20300401-093000-ffff"
    assert early < make_run_id("claims", NOW + timedelta(seconds=1), b"\0\0")
    assert early != make_run_id("claims", NOW, b"\xff\xfe")
    with pytest.raises(ValueError, match="2 random bytes, got 1"):
        make_run_id("claims", NOW, b"x")
