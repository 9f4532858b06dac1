"""Reading settings files: what is accepted, and how each problem is worded."""

import os
import tomllib
from pathlib import Path
from typing import Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import Field, PositiveFloat, PositiveInt, ValidationInfo, field_validator

from fedpipe_profiles.settings_file import MAX_FILE_BYTES, SettingsError, load_settings
from fedpipe_profiles.values import Settings


class _Engine(Settings):
    fuel: Literal["petrol", "diesel"] = "petrol"
    power_kw: PositiveInt
    gears: tuple[PositiveInt, ...] = (1, 2, 3)
    service_s: Literal["auto"] | PositiveFloat = "auto"
    top_gear: int = Field(default_factory=lambda data: len(data["gears"]))

    @field_validator("gears")
    @classmethod
    def _fits(cls, gears: tuple[int, ...], info: ValidationInfo) -> tuple[int, ...]:
        if info.data.get("fuel") == "diesel" and len(gears) > 5:
            raise ValueError("a diesel has at most 5 gears")
        return gears


class _Door(Settings):
    colour: str
    handle: Path | None = None


class _Car(Settings):
    name: str
    manual: Path = Path("manual.pdf")
    engine: _Engine
    doors: dict[str, _Door] = Field(default_factory=dict)
    keys: dict[str, Path] = Field(default_factory=dict)


VALID = 'name = "Ada"\n[engine]\npower_kw = 50\n[doors.left]\ncolour = "red"\n'

PROBLEMS = {
    "missing key": ("[engine]\npower_kw = 1", ["name: missing; it has no default"]),
    "missing table": ('name = "A"', ["engine: missing; it has no default"]),
    "missing nested": ('name = "A"\n[engine]', ["engine.power_kw: missing; it has no default"]),
    "misspelt key": (
        VALID.replace("power_kw", "power"),
        [
            "engine.power_kw: missing; it has no default",
            "engine.power = 50: unknown key; did you mean engine.power_kw?",
        ],
    ),
    "misspelt in a named table": (
        VALID.replace("colour", "color"),
        [
            "doors.left.colour: missing; it has no default",
            'doors.left.color = "red": unknown key; did you mean doors.left.colour?',
        ],
    ),
    "misspelt table": (
        VALID + "[wheels]\nx = 1",
        ["wheels: unknown key; known here: name, manual, engine, doors, keys"],
    ),
    "nearly a table": (VALID + "[door.left]\nx = 1", ["door: unknown key; did you mean doors?"]),
    "key of another table": (
        VALID.replace("[engine]", 'fuel = "diesel"\n[engine]'),
        ['fuel = "diesel": unknown key here; it belongs to engine.fuel'],
    ),
    "key of a named table": (
        VALID.replace("power_kw = 50", 'power_kw = 50\nhandle = "h"'),
        ['engine.handle = "h": unknown key here; it belongs to doors.NAME.handle'],
    ),
    "misspelt key of another table": (
        VALID.replace("[engine]", "power_kv = 7\n[engine]"),
        ["power_kv = 7: unknown key; did you mean engine.power_kw?"],
    ),
    "like nothing": (VALID + "zzz = 1", ["doors.left.zzz = 1: unknown key; known here: colour, handle"]),
    "text for a number": (VALID.replace("50", '"50"'), ['engine.power_kw = "50": should be a valid integer']),
    "bool for a number": (VALID.replace("50", "true"), ["engine.power_kw = true: should be a valid integer"]),
    "out of range": (VALID.replace("50", "-3"), ["engine.power_kw = -3: should be greater than 0"]),
    "not a choice": (
        VALID.replace("50", '50\nfuel = "hay"'),
        ["engine.fuel = \"hay\": should be 'petrol' or 'diesel'"],
    ),
    "two alternatives": (
        VALID.replace("50", '50\nservice_s = "soon"'),
        ["engine.service_s = \"soon\": should be 'auto' or a valid number"],
    ),
    "not finite": (
        VALID.replace("50", "50\nservice_s = nan"),
        ["engine.service_s = NaN: should be 'auto' or a finite number"],
    ),
    "one entry of a list": (
        VALID.replace("50", '50\ngears = [1, "two"]'),
        ['engine.gears.1 = "two": should be a valid integer'],
    ),
    "no list": (VALID.replace("50", "50\ngears = 4"), ["engine.gears = 4: should be a list"]),
    "no table": ('name = "A"\nengine = 4', ["engine = 4: should be a table"]),
    "number for text": (VALID.replace('"Ada"', "3"), ["name = 3: should be text in quotes"]),
    "across keys": (
        VALID.replace("50", '50\nfuel = "diesel"\ngears = [1, 2, 3, 4, 5, 6]'),
        ["engine.gears = [1, 2, 3, 4, 5, 6]: a diesel has at most 5 gears"],
    ),
    "home folder": (
        VALID + '[keys]\nspare = "~/spare"',
        ['keys.spare = "~/spare": ~ is not expanded; write the whole path'],
    ),
    "quoted name": (VALID + '[doors."back left"]', ['doors."back left".colour: missing; it has no default']),
    "long value": (
        VALID.replace("50", f'50\nfuel = "{"x" * 200}"'),
        [f"engine.fuel = \"{'x' * 79}...: should be 'petrol' or 'diesel'"],
    ),
    "all at once": (
        'name = 3\n[engine]\nfuel = "hay"\npower_kw = -1\n[doors.left]\n',
        [
            "name = 3: should be text in quotes",
            "engine.fuel = \"hay\": should be 'petrol' or 'diesel'",
            "engine.power_kw = -1: should be greater than 0",
            "doors.left.colour: missing; it has no default",
        ],
    ),
}


def _problems(tmp_path: Path, text: str | bytes, *overrides: str) -> tuple[str, ...]:
    path = tmp_path / "car.toml"
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    with pytest.raises(SettingsError) as caught:
        load_settings(path, _Car, overrides)
    assert str(path) in str(caught.value)
    assert all(problem in str(caught.value) for problem in caught.value.problems)
    return caught.value.problems


@pytest.mark.parametrize(("text", "expected"), PROBLEMS.values(), ids=PROBLEMS.keys())
def test_problems_are_worded_with_key_value_and_what_is_allowed(tmp_path: Path, text: str, expected: list[str]) -> None:
    assert list(_problems(tmp_path, text)) == expected


def test_the_report_has_one_line_for_each_problem(tmp_path: Path) -> None:
    path = tmp_path / "car.toml"
    path.write_text('name = 3\nengine = "V8"')
    with pytest.raises(SettingsError) as caught:
        load_settings(path, _Car)
    assert str(caught.value).splitlines() == [
        f"{path}: 2 problems",
        "  name = 3: should be text in quotes",
        '  engine = "V8": should be a table',
    ]


def test_relative_paths_are_under_the_files_folder_defaults_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "garage"
    folder.mkdir()
    (folder / "car.toml").write_text(VALID + 'handle = "parts/h"\n[keys]\na = "/abs/k"\nb = "k"\n')
    monkeypatch.chdir(tmp_path)
    car = load_settings(Path("garage/car.toml"), _Car)
    assert car.manual == folder / "manual.pdf"
    assert car.doors["left"].handle == folder / "parts/h"
    assert car.keys == {"a": Path("/abs/k"), "b": folder / "k"}
    assert car.engine == _Engine(power_kw=50)


def test_a_missing_file_a_folder_and_an_unreadable_file_are_told_apart(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="no such file"):
        load_settings(tmp_path / "nothing.toml", _Car)
    with pytest.raises(SettingsError, match="is a folder"):
        load_settings(tmp_path, _Car)


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads every file")
def test_a_file_of_somebody_else_is_reported(tmp_path: Path) -> None:
    path = tmp_path / "car.toml"
    path.write_text(VALID)
    path.chmod(0)
    with pytest.raises(SettingsError, match="cannot be read: Permission denied"):
        load_settings(path, _Car)


def test_a_name_below_a_file_cannot_be_read(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(SettingsError, match="cannot be read: Not a directory"):
        load_settings(tmp_path / "file" / "car.toml", _Car)


def test_what_is_not_toml_is_reported_with_line_and_column(tmp_path: Path) -> None:
    (problem,) = _problems(tmp_path, 'name = "A"\n[engine]\npower_kw = = 3')
    assert problem.startswith("not TOML: ")
    assert "at line 3, column 12" in problem


def test_what_is_not_utf8_is_reported_with_its_line(tmp_path: Path) -> None:
    assert _problems(tmp_path, b'name = "A"\n# caf\xe9') == ("not UTF-8: byte 0xe9 on line 2; save the file as UTF-8",)


def test_a_byte_order_mark_does_no_harm(tmp_path: Path) -> None:
    path = tmp_path / "car.toml"
    path.write_bytes(b"\xef\xbb\xbf" + VALID.encode())
    assert load_settings(path, _Car).name == "Ada"


def test_a_huge_file_and_deep_nesting_are_refused(tmp_path: Path) -> None:
    assert "larger than" in _problems(tmp_path, "#" * (MAX_FILE_BYTES + 1))[0]
    assert "nested too deeply" in _problems(tmp_path, "a = " + "[" * 100_000)[0]


@pytest.mark.parametrize(
    "text",
    [
        "a." * 100_000 + "a = 1",
        "[" + "a . " * 50_000 + "a]",
        "x = {" + '"a".' * 50_000 + "a = 1}",
        "[" + "a." * 15 + "a]\n" + "b." * 15 + "b = 1",
        "x = " + "[" * 30 + "]" * 30,
        "x = " + "{a = " * 30 + "1" + "}" * 30,
    ],
)
def test_what_is_nested_deeply_is_refused_before_it_costs_anything(tmp_path: Path, text: str) -> None:
    (problem,) = _problems(tmp_path, text)
    assert "nested too deeply" in problem


@pytest.mark.parametrize("text", ["k" * 200_000 + " = 1", 'name = "' + "a." * 15 + '"', "a-b." * 14 + "a = 1"])
def test_long_words_and_dots_in_texts_are_no_nesting(tmp_path: Path, text: str) -> None:
    assert "nested" not in "".join(_problems(tmp_path, text))


def test_too_many_values_are_refused_in_one_line(tmp_path: Path) -> None:
    (problem,) = _problems(tmp_path, "".join(f"k{number} = 1\n" for number in range(20_001)))
    assert "more than 20000 values" in problem


def test_a_report_is_never_endless(tmp_path: Path) -> None:
    path = tmp_path / "car.toml"
    path.write_text("".join(f"k{number} = 1\n" for number in range(10_000)) + "k" * 100_000 + " = 1\n")
    with pytest.raises(SettingsError) as caught:
        load_settings(path, _Car)
    report = str(caught.value).splitlines()
    assert len(report) == 52
    assert report[-1].endswith(" more")
    assert max(map(len, report)) < 1100
    path.write_text("k" * 100_000 + " = 1\n")
    with pytest.raises(SettingsError, match=r"  k{80}\.\.\.[^\n]*: unknown key"):
        load_settings(path, _Car)


@pytest.mark.parametrize(
    "text", ['"\\u009b2J\\u001b[2J" = 1', 'name = 1\nx = "\\u007f\\u202e"', 'engine.fuel = "\\u009b"']
)
def test_a_report_holds_nothing_that_a_terminal_obeys(tmp_path: Path, text: str) -> None:
    assert all(line.isprintable() for line in _problems(tmp_path, text))


def test_a_pipe_and_a_device_are_refused_and_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "car.toml")
    for path in (tmp_path / "car.toml", Path("/dev/zero")):
        with pytest.raises(SettingsError, match="is no file"):
            load_settings(path, _Car)


@pytest.mark.parametrize(
    ("override", "value"),
    [
        ("engine.power_kw=99", 99),
        (" engine.power_kw = 99", 99),
        ('engine . "power_kw" = 0x63', 99),
        ("engine.service_s=2.5", 2.5),
        ("engine.service_s=auto", "auto"),
        ("engine.fuel=diesel", "diesel"),
        ('engine.fuel="diesel"', "diesel"),
        ("engine.gears=[5, 6]", (5, 6)),
    ],
)
def test_overrides_are_read_as_toml_or_else_as_text(tmp_path: Path, override: str, value: object) -> None:
    path = tmp_path / "car.toml"
    path.write_text(VALID)
    engine = load_settings(path, _Car, [override]).engine
    assert value in (engine.power_kw, engine.service_s, engine.fuel, engine.gears)


def test_overrides_make_tables_and_reach_into_named_ones(tmp_path: Path) -> None:
    path = tmp_path / "car.toml"
    path.write_text('name = "A"')
    car = load_settings(path, _Car, ["engine.power_kw=1", 'doors."back left".colour=blue', "name=x=y"])
    assert car.engine.power_kw == 1
    assert car.doors["back left"].colour == "blue"
    assert car.name == "x=y"


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("engine.powr_kw=3", "engine.powr_kw = 3 (set by an override): unknown key; did you mean engine.power_kw?"),
        ("engine.power_kw=many", 'engine.power_kw = "many" (set by an override): should be a valid integer'),
        ("engine.gears=[0]", "engine.gears.0 = 0 (set by an override): should be greater than 0"),
        ("engine", "override 'engine': should be KEY=VALUE, as in rounds.number=10"),
        ("=3", "override '=3': should be KEY=VALUE, as in rounds.number=10"),
        ("a b=3", "override 'a b=3': should be KEY=VALUE, as in rounds.number=10"),
        ("name=1\n[engine]\npower_kw=2", 'name = "1\\n[engine]\\npower_kw=2" (set by an override)'),
        ("name.first=3", "override 'name.first=3': name is a value, not a table"),
    ],
)
def test_problems_of_overrides_come_with_those_of_the_file(tmp_path: Path, override: str, expected: str) -> None:
    problems = _problems(tmp_path, VALID.replace('"red"', "3"), override)
    if expected.startswith("name ="):  # text is a fine name, whatever is in it: it sets no other key
        assert problems == ("doors.left.colour = 3: should be text in quotes",)
    else:
        assert set(problems) == {expected, "doors.left.colour = 3: should be text in quotes"}


@given(st.text())
def test_any_text_either_loads_or_is_reported(tmp_path_factory: pytest.TempPathFactory, text: str) -> None:
    path = tmp_path_factory.getbasetemp() / "any.toml"
    path.write_text(text, encoding="utf-8", errors="ignore", newline="")
    with pytest.raises(SettingsError) as caught:  # no text this short happens to be a whole car
        load_settings(path, _Car)
    assert caught.value.problems


@given(st.text(st.characters(exclude_categories=["Cs", "Cc"]), max_size=30))
def test_an_override_sets_exactly_what_toml_or_text_says(tmp_path_factory: pytest.TempPathFactory, text: str) -> None:
    path = tmp_path_factory.getbasetemp() / "override.toml"
    path.write_text(VALID)
    try:
        expected = tomllib.loads(f"v = {text}")["v"]
    except tomllib.TOMLDecodeError:
        expected = text
    if isinstance(expected, str):
        assert load_settings(path, _Car, [f"name={text}"]).name == expected
    elif isinstance(expected, bool | int | float | list | dict):
        with pytest.raises(SettingsError):
            load_settings(path, _Car, [f"name={text}"])
