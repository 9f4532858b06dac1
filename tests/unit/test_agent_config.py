"""agent.toml: the documented example, its checks, and the hours in which a machine is lent."""

import re
from datetime import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedpipe_agent.address import Address, address_of
from fedpipe_agent.config import AgentSettings, LimitSettings, load_agent_settings, parse_hours, within_hours
from fedpipe_agent.errors import ForeignBundleError
from fedpipe_profiles.device import Limits
from fedpipe_profiles.settings_file import SettingsError
from fedpipe_profiles.settings_report import known_keys
from fedpipe_wire.enrolment import Bundle

REFERENCE = Path(__file__).parents[2] / "docs" / "reference" / "agent.toml.md"
MINIMAL = 'name = "north"\nfederation = "clinics"\n[broker]\nhost = "b"\n'


def _load(tmp_path: Path, text: str) -> AgentSettings:
    path = tmp_path / "agent.toml"
    path.write_text(text)
    return load_agent_settings(path)


def _problems(tmp_path: Path, text: str) -> list[str]:
    with pytest.raises(SettingsError) as caught:
        _load(tmp_path, text)
    return list(caught.value.problems)


def test_the_documented_example_loads(tmp_path: Path) -> None:
    example = re.search(r"```toml\n(.*?)```", REFERENCE.read_text(), re.DOTALL)
    assert example is not None
    settings = _load(tmp_path, example[1])
    assert settings.federation is None
    assert settings.datasets["claims"].path == tmp_path / "data/claims.jsonl"
    assert settings.datasets["claims"].fields.label == "code"
    assert settings.model_location("example/small-model") == str(tmp_path / "models/small-model")
    assert settings.model_location("example/other") == "example/other"
    assert settings.to_limits() == Limits(memory_bytes=12_582_912_000, uplink_bps=20_000_000.0)


def test_every_key_is_documented() -> None:
    documented = set(re.findall(r"`(\w+)`", REFERENCE.read_text())) | {"broker", "datasets", "models", "limits"}
    assert {key[-1] for key in known_keys(AgentSettings)} - {"*", "training", "transfer", "audit"} <= documented


def test_nothing_but_the_name_is_needed(tmp_path: Path) -> None:
    settings = _load(tmp_path, 'name = "north"\n')
    assert settings.state == tmp_path / "state"
    assert (settings.federation, settings.broker.host, settings.broker.port) == (None, None, None)
    assert settings.to_limits() == Limits()
    assert settings.limits.downlink_bps is None
    assert within_hours(settings.limits, time(3, 0))


PROBLEMS = {
    "name": ('name = "north"', 'name = "North Wing"', "name = \"North Wing\": agent name 'North Wing' is not usable"),
    "federation": ('"clinics"', '"a/b"', "federation = \"a/b\": federation name 'a/b' is not usable"),
    "port": ('host = "b"', 'host = "b"\nport = 70000', "broker.port = 70000: should be less than or equal to 65535"),
    "host": ('host = "b"', 'host = ""', 'broker.host = "": should have at least 1 character'),
    "host with a terminal escape": ('host = "b"', 'host = "b\\u001b[2J"', 'broker.host = "b\\u001b[2J": should match'),
    "host of two lines": ('host = "b"', 'host = "b\\nx y"', 'broker.host = "b\\nx y": should match'),
    "window": ("[broker]", "[transfer]\nwindow = 2000\n[broker]", "transfer.window = 2000: should be less than"),
    "silence": ("[broker]", "[transfer]\nsilence_s = 1e10\n[broker]", "transfer.silence_s = 10000000000.0: should be"),
    "idle": ("[broker]", "[training]\nidle_s = 1e10\n[broker]", "training.idle_s = 10000000000.0: should be"),
    "zero byte": ('name = "north"', 'state = "a\\u0000b"\nname = "north"', 'state = "a\\u0000b": no path holds'),
    "limit": ("[broker]", "[limits]\nmemory_mib = 0\n[broker]", "limits.memory_mib = 0: should be greater than 0"),
    "hours": ("[broker]", '[limits]\nhours = "8-17"\n[broker]', 'limits.hours = "8-17": should be HH:MM-HH:MM'),
    "empty hours": (
        "[broker]",
        '[limits]\nhours = "08:00-08:00"\n[broker]',
        'limits.hours = "08:00-08:00": begins and ends at the same time',
    ),
    "format": (
        "[broker]",
        '[datasets.a]\npath = "x"\nformat = "xls"\n[broker]',
        "datasets.a.format = \"xls\": should be 'jsonl', 'csv' or 'parquet'",
    ),
    "field in the wrong place": (
        "[broker]",
        '[datasets.a]\npath = "x"\ntext = "note"\n[broker]',
        'datasets.a.text = "note": unknown key here; it belongs to datasets.a.fields.text',
    ),
    "limit in the wrong place": ("[broker]", "threads = 4\n[broker]", "threads = 4: unknown key here; it belongs to"),
}


@pytest.mark.parametrize(("old", "new", "expected"), PROBLEMS.values(), ids=PROBLEMS.keys())
def test_each_wrong_value_is_one_problem(tmp_path: Path, old: str, new: str, expected: str) -> None:
    (problem,) = _problems(tmp_path, MINIMAL.replace(old, new, 1))
    assert problem.startswith(expected)


def test_mebibytes_and_megabits(tmp_path: Path) -> None:
    settings = _load(
        tmp_path, MINIMAL + "[limits]\nmemory_mib = 1\nthreads = 3\nuplink_mbit = 2.5\ndownlink_mbit = 8\n"
    )
    assert settings.to_limits() == Limits(memory_bytes=1_048_576, threads=3, uplink_bps=2_500_000)
    assert settings.limits.downlink_bps == 8_000_000


@pytest.mark.parametrize(
    ("hours", "inside", "outside"),
    [
        ("09:00-17:30", ["09:00", "12:00", "17:29"], ["08:59", "17:30", "00:00", "23:59"]),
        ("20:00-06:00", ["20:00", "23:59", "00:00", "05:59"], ["06:00", "12:00", "19:59"]),
        ("18:00-24:00", ["18:00", "23:59"], ["00:00", "17:59"]),
        ("00:00-24:00", ["00:00", "12:00", "23:59"], []),
        ("23:59-00:00", ["23:59"], ["00:00", "23:58"]),
    ],
)
def test_hours_include_their_beginning_and_not_their_end(hours: str, inside: list[str], outside: list[str]) -> None:
    limits = LimitSettings(hours=hours)
    assert [clock for clock in inside + outside if within_hours(limits, time.fromisoformat(clock))] == inside


@pytest.mark.parametrize("text", ["", "20:00", "20-06", "24:00-06:00", "08:60-09:00", "8:00-9:00", "08:00-24:30", "x"])
def test_hours_of_another_form_are_refused(text: str) -> None:
    with pytest.raises(ValueError, match="HH:MM-HH:MM"):
        parse_hours(text)


@given(st.times(), st.times(), st.times())
def test_hours_and_their_complement_share_the_day(start: time, end: time, clock: time) -> None:
    first, second = f"{start:%H:%M}", f"{end:%H:%M}"
    if first != second:
        lent = within_hours(LimitSettings(hours=f"{first}-{second}"), clock)
        assert lent != within_hours(LimitSettings(hours=f"{second}-{first}"), clock)


INSECURE = 'name = "n"\nfederation = "f"\n[broker]\nhost = "127.0.0.1"\ninsecure = true\n'


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        ('federation = "f"\n', "", "insecure = true needs federation"),
        ('host = "127.0.0.1"\n', "", "needs broker.host"),
        ("127.0.0.1", "10.0.0.1", "is for a broker on"),
    ],
)
def test_without_keys_the_file_must_say_where_and_only_loopback_will_do(
    tmp_path: Path, old: str, new: str, expected: str
) -> None:
    assert _load(tmp_path, INSECURE).broker.insecure
    (problem,) = _problems(tmp_path, INSECURE.replace(old, new))
    assert expected in problem


BUNDLE = {"federation": "f", "agent": "n", "host": "b", "port": 8883} | dict.fromkeys(
    ("authority", "login", "signing", "coordinator"), "pem"
)


def test_where_to_connect_comes_from_the_bundle_unless_the_file_says_otherwise(tmp_path: Path) -> None:
    bundle = Bundle.model_validate(BUNDLE)
    assert address_of(_load(tmp_path, 'name = "n"'), bundle) == Address("f", "b", 8883)
    stated = _load(tmp_path, 'name = "n"\nfederation = "f"\n[broker]\nhost = "c"\nport = 9\n')
    assert address_of(stated, bundle) == Address("f", "c", 9)
    assert address_of(_load(tmp_path, INSECURE), None) == Address("f", "127.0.0.1", 1883)
    with pytest.raises(ForeignBundleError, match=r"joined federation 'f', .* says 'g'"):
        address_of(_load(tmp_path, 'name = "n"\nfederation = "g"\n'), bundle)
