"""`fedpipe plan` as a user types it: what it answers, and what it says to input that has no answer."""

import json
import os
import stat
import subprocess
import sys
import time
import xml.etree.ElementTree as ET
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fedpipe_coordinator.cli import main
from fedpipe_coordinator.exit_codes import ExitCode
from fedpipe_coordinator.whatif.changes import twice_as_fast
from fedpipe_profiles.catalog.device_catalogue import catalogued_device
from fedpipe_profiles.device import DequantizationRate, OptimizerRate

JOB = """
[job]
name = "claims"
model = "{model}"
task = "{task}"
[data]
dataset = "claims"
[rounds]
number = 10
deadline_s = {deadline}
[train]
sequence_length = 128
batch_sizes = [1, 4, 16]
[adapter]
global_rank = 8
"""
LLAMA: dict[str, Any] = {
    "model_type": "llama",
    "hidden_size": 256,
    "intermediate_size": 688,
    "num_hidden_layers": 4,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "vocab_size": 4096,
    "tie_word_embeddings": False,
}
Said = tuple[int, str, str]
Plan = Callable[..., Said]


@pytest.fixture(autouse=True)
def alone(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No hub, no cache and no federation of this machine."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.delenv("FEDPIPE_HOME", raising=False)
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def plan(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Plan:
    """Runs the command line in this process: exit code, stdout and stderr."""

    def run(*arguments: str | Path) -> Said:
        monkeypatch.setattr(sys, "argv", ["fedpipe", "plan", *map(str, arguments)])
        with pytest.raises(SystemExit) as caught:
            main()
        said = capsys.readouterr()
        code = caught.value.code
        return (code if isinstance(code, int) else 0), said.out, said.err

    return run


def job(folder: Path, *, model: str = "model", task: str = "causal-lm", deadline: str = '"auto"') -> Path:
    path = folder / "job.toml"
    path.write_text(JOB.format(model=model, task=task, deadline=deadline))
    return path


@pytest.fixture
def small(tmp_path: Path) -> Path:
    """A job on a small Llama, whose folder holds a config.json and nothing else."""
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text(json.dumps(LLAMA))
    return job(tmp_path)


def answer(plan: Plan, *arguments: str | Path) -> dict[str, Any]:
    code, out, err = plan(*arguments, "--format", "json")
    assert code == 0, err
    found: dict[str, Any] = json.loads(out)
    return found


# --- answers ----------------------------------------------------------------------------------------------------


def test_it_tells_what_each_device_gets(plan: Plan, small: Path) -> None:
    found = answer(plan, small, "--device", "catalog:t4x3", "--device", "catalog:laptop", "--uplink", "5")
    t4, laptop = found["devices"]
    assert (t4["device"], t4["count"], t4["fits"]) == ("t4", 3, True)
    assert t4["bits"] in (4, 8, 32)
    assert t4["needed_bytes"] <= t4["lent_bytes"] == 14848 << 20
    whole = t4["download_s"] + t4["compute_s"] + t4["upload_s"]
    assert whole == pytest.approx(t4["round_s"], abs=2e-3)
    assert t4["round_s"] <= found["deadline_s"]
    assert t4["upload_s"] == pytest.approx(0.1 + 8 * t4["up_bytes"] / 5e6, rel=0.01)
    present = [device for device in (t4, laptop) if device["fits"]]
    assert found["up_bytes"] == sum(device["count"] * device["up_bytes"] for device in present)
    assert found["contributions"] == "assumed"


def test_the_breakdown_adds_up_to_what_must_be_lent(plan: Plan, small: Path) -> None:
    (device,) = answer(plan, small, "--device", "catalog:rtx-3060")["devices"]
    terms = device["memory"]
    assert sum(terms.values()) == pytest.approx(device["needed_bytes"], abs=1)
    assert device["peak_phase"] in ("forward", "loss", "backward", "optimizer")
    assert terms["runtime_context"] + terms["safety_margin"] + device["predicted_peak_bytes"] == pytest.approx(
        device["needed_bytes"], rel=0.01
    )


def test_more_of_a_resource_is_never_worth_less_and_the_one_that_binds_is_worth_something(
    plan: Plan, small: Path
) -> None:
    arguments = (small, "--device", "catalog:laptop", "--uplink", "0.05", "--deadline", "20")
    changes = answer(plan, *arguments)["what_if"]
    assert {each["change"] for each in changes} == {"+1 GiB", "+10 Mbit/s", "2x compute"}
    for each in changes:
        assert each["after"]["progress"] >= each["before"]["progress"] * (1 - 0.01)
    (fleet,) = [each for each in changes if each["device"] is None and each["change"] == "+10 Mbit/s"]
    assert fleet["after"]["progress"] > 1.2 * fleet["before"]["progress"]


def test_what_a_change_promises_is_what_a_plan_of_the_changed_device_gives(plan: Plan, small: Path) -> None:
    fixed = ("--deadline", "20")
    changes = answer(plan, small, "--device", "catalog:laptop", "--uplink", "0.05", "--downlink", "50", *fixed)[
        "what_if"
    ]
    promised = next(each for each in changes if each["change"] == "+10 Mbit/s" and each["device"] == "laptop")
    (given,) = answer(plan, small, "--device", "catalog:laptop", "--uplink", "10.05", "--downlink", "60", *fixed)[
        "devices"
    ]
    assert given["progress"] == pytest.approx(promised["after"]["progress"], rel=0.01)


def test_what_a_change_starts_from_is_what_the_heading_says(plan: Plan, tmp_path: Path) -> None:
    path = job(tmp_path, model="meta-llama/Llama-3.1-8B")
    found = answer(plan, path, "--device", "catalog:t4x3", "--device", "catalog:rtx-4090", "--uplink", "2")
    fleet = [each for each in found["what_if"] if each["device"] is None]
    assert len(fleet) == 3
    for each in fleet:
        assert each["before"]["progress"] == found["progress"]
        assert each["before"]["round_s"] == pytest.approx(found["deadline_s"], abs=1e-3)


def test_twice_the_compute_halves_every_measured_time() -> None:
    one = {"repeats": 3, "relative_spread": 0.1}
    plain = DequantizationRate(bits=4, shape=(512, 512), values_per_s=1e9, **one)
    step = OptimizerRate(parameters=1 << 20, parameters_per_s=1e8, **one)
    profile = catalogued_device("l4").profile("d").model_copy(update={"dequantization": (plain,), "optimizer": step})
    before, after = profile.model_dump(), twice_as_fast(profile).model_dump()
    rates = ("flops_per_s", "bytes_per_s", "values_per_s", "parameters_per_s")

    def found(data: Any) -> list[float]:
        if isinstance(data, dict):
            own = [value for key, value in data.items() if key in rates]
            return own + [each for value in data.values() for each in found(value)]
        return [each for part in data for each in found(part)] if isinstance(data, tuple | list) else []

    assert len(found(before)) == len(profile.matmul) + 3
    assert found(after) == [2 * value for value in found(before)]


def test_alike_devices_weigh_as_if_they_were_named_one_by_one(plan: Plan, small: Path) -> None:
    three = answer(plan, small, "--device", "catalog:t4x3", "--device", "catalog:laptop")
    each = answer(plan, small, *["--device", "catalog:t4"] * 3, "--device", "catalog:laptop")
    assert three["deadline_s"] == each["deadline_s"]
    assert three["progress"] == pytest.approx(each["progress"])
    assert [device["device"] for device in each["devices"]] == ["t4", "t4#2", "t4#3", "laptop"]


def test_a_measured_profile_is_planned_with(plan: Plan, small: Path, tmp_path: Path) -> None:
    path = tmp_path / "silo.json"
    path.write_text(catalogued_device("l4").profile("clinic").model_dump_json(exclude_none=True))
    (measured,) = answer(plan, small, "--device", f"{path}x2", "--memory-limit", "2048")["devices"]
    assert (measured["device"], measured["count"], measured["origin"]) == ("clinic", 2, "profile")
    assert measured["lent_bytes"] == 2048 << 20


def test_without_a_device_a_choice_of_the_catalogue_is_planned_for(plan: Plan, small: Path) -> None:
    assert {device["origin"] for device in answer(plan, small)["devices"]} == {"catalogue"}


def test_recorded_contributions_decide_which_weights_are_trained(plan: Plan, small: Path, tmp_path: Path) -> None:
    names = list(answer(plan, small, "--device", "catalog:h100")["devices"][0]["ranks"])
    curves = {name: [1.0, 1.0] if "q_proj" in name else [0.0, 0.0] for name in names}
    line = {"number": 1, "time": "t", "kind": "contributions", "round": 0, "agent": None, "text": "x"}
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "audit.jsonl").write_text(json.dumps(line | {"data": {"curves": curves}}) + "\n")
    found = answer(plan, small, "--device", "catalog:h100", "--contributions", tmp_path / "run")
    assert found["contributions"] == "recorded"
    assert found["devices"][0]["ranks"]
    assert all("q_proj" in name for name in found["devices"][0]["ranks"])


def test_the_hubs_cache_is_read_without_its_library(plan: Plan, tmp_path: Path) -> None:
    snapshot = tmp_path / "hub" / "models--somebody--small" / "snapshots" / "0123abcd"
    snapshot.mkdir(parents=True)
    (snapshot / "config.json").write_text(json.dumps(LLAMA))
    refs = snapshot.parents[1] / "refs"
    refs.mkdir()
    (refs / "main").write_text("0123abcd")
    found = answer(plan, job(tmp_path, model="somebody/small"), "--device", "catalog:l4")
    assert "cache" in found["model_origin"]


def test_a_well_known_model_needs_neither_hub_nor_cache(plan: Plan, tmp_path: Path) -> None:
    code, out, _ = plan(job(tmp_path, model="openai-community/gpt2"), "--device", "catalog:rtx-3060", "--breakdown")
    assert code == 0
    assert "124.44 million parameters" in out
    assert "expect a factor of about two" in out
    assert "runtime context" in out


# --- the plot ---------------------------------------------------------------------------------------------------


def test_the_plot_shows_the_chosen_point_and_every_device_with_names_escaped(
    plan: Plan, small: Path, tmp_path: Path
) -> None:
    profile = catalogued_device("l4").profile("<b>&'\"")
    (tmp_path / "p.json").write_text(profile.model_dump_json(exclude_none=True))
    svg = tmp_path / "out.svg"
    svg.write_text("old")
    assert plan(small, "--device", "p.json", "--device", "catalog:laptop", "--plot", svg)[0] == 0
    tree = ET.parse(svg)
    place = "{http://www.w3.org/2000/svg}"
    words = [element.text for element in tree.iter(f"{place}text")]
    assert "<b>&'\"" in words
    assert "laptop" in words
    assert any(word and word.startswith("chosen: ") for word in words)
    assert len(list(tree.iter(f"{place}circle"))) == 1
    assert not list(tree.iter(f"{place}script"))
    assert stat.S_IMODE(svg.stat().st_mode) & 0o444
    assert {path.name for path in tmp_path.iterdir()} >= {"out.svg"}
    assert not list(tmp_path.glob(".plot-*"))


@pytest.mark.parametrize("through_a_link", [False, True])
def test_what_is_no_file_is_not_replaced_by_the_plot(
    plan: Plan, small: Path, tmp_path: Path, *, through_a_link: bool
) -> None:
    pipe, link = tmp_path / "pipe", tmp_path / "link"
    os.mkfifo(pipe)
    link.symlink_to(pipe)
    code, _, err = plan(small, "--device", "catalog:l4", "--plot", link if through_a_link else pipe)
    assert code == ExitCode.OUTPUT_UNWRITABLE
    assert "a device, a pipe or a socket" in err
    assert stat.S_ISFIFO(pipe.stat().st_mode)
    assert link.is_symlink()


def test_a_link_stays_and_the_file_that_it_names_has_the_plot(plan: Plan, small: Path, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    svg, link = tmp_path / "elsewhere" / "real.svg", tmp_path / "out.svg"
    link.symlink_to(svg)  # to what is not there yet
    assert plan(small, "--device", "catalog:l4", "--plot", link)[0] == 0
    assert link.is_symlink()
    first = svg.read_text()
    assert plan(small, "--device", "catalog:t4", "--plot", link)[0] == 0
    assert link.is_symlink()
    assert svg.read_text() != first


def test_a_link_to_itself_is_told(plan: Plan, small: Path, tmp_path: Path) -> None:
    (tmp_path / "loop.svg").symlink_to(tmp_path / "loop.svg")
    code, _, err = plan(small, "--device", "catalog:l4", "--plot", "loop.svg")
    harmless(code, err)
    assert code == ExitCode.OUTPUT_UNWRITABLE


def test_the_curve_has_the_chosen_point_as_its_best(plan: Plan, small: Path) -> None:
    found = answer(plan, small, "--device", "catalog:t4", "--device", "catalog:laptop")
    (chosen,) = [point for point in found["curve"] if point["deadline_s"] == found["deadline_s"]]
    assert chosen["progress_per_hour"] == max(point["progress_per_hour"] for point in found["curve"])
    for point in found["curve"]:
        assert all(0.0 <= rate <= 1.0 for rate in point["under_training"].values())


# --- nothing fits -----------------------------------------------------------------------------------------------


def test_a_base_that_no_device_holds_says_what_would(plan: Plan, tmp_path: Path) -> None:
    path = job(tmp_path, model="meta-llama/Llama-3.1-70B")
    code, out, err = plan(path, "--device", "catalog:rtx-3060", "--device", "catalog:t4")
    assert code == ExitCode.NOTHING_FITS
    assert "h200 (4, 8 bits)" in err
    assert "GiB" in err
    assert "rtx-3060" in out


def test_a_deadline_of_a_nanosecond_is_told_as_it_was_given(plan: Plan, small: Path) -> None:
    code, out, err = plan(small, "--device", "catalog:l4", "--deadline", "1e-9")
    assert code == ExitCode.NOTHING_FITS
    assert "deadline of 1e-09 s" in err
    assert "deadline 1e-09 s, given" in out


def test_where_nothing_fits_no_deadline_is_called_chosen_nor_its_choice_advised(
    plan: Plan, small: Path, tmp_path: Path
) -> None:
    slow = json.loads(broken_profile(matmul=None))
    rate = {"dtype": "float32", "shape": [8, 8, 8], "flops_per_s": 1e6, "repeats": 1, "relative_spread": 0.0}
    (tmp_path / "slow.json").write_text(json.dumps(slow | {"matmul": [rate]}))
    (tmp_path / "model" / "config.json").write_text(json.dumps(LLAMA | {"num_hidden_layers": 300}))
    more = ("-s", "train.sequence_length=8192", "-s", "train.batch_sizes=[16]")
    code, out, err = plan(small, "--device", "slow.json", *more)
    assert code == ExitCode.NOTHING_FITS
    assert "--deadline auto" not in err
    assert "for the most progress" not in out
    assert "no deadline is chosen" in out


def test_a_device_without_free_memory_is_told_so(plan: Plan, small: Path, tmp_path: Path) -> None:
    (tmp_path / "full.json").write_bytes(broken_profile(accelerator__free_bytes=0))
    code, out, _ = plan(small, "--device", "full.json", "--device", "catalog:l4")
    assert code == 0
    assert "reports no free memory: 0 of" in out


def test_a_deadline_shorter_than_loading_the_model_says_how_long_that_is(plan: Plan, tmp_path: Path) -> None:
    path = job(tmp_path, model="meta-llama/Llama-3.1-8B")
    code, out, err = plan(path, "--device", "catalog:h100", "--deadline", "5")
    assert code == ExitCode.NOTHING_FITS
    assert "deadline of 5 s" in err
    assert "--deadline auto" in err
    assert "loading" in out


# --- bad input --------------------------------------------------------------------------------------------------


def broken_profile(**changes: Any) -> bytes:
    data = json.loads(catalogued_device("gb10").profile("d").model_dump_json(exclude_none=True))
    for key, value in changes.items():
        part, _, name = key.partition("__")
        if name:
            data[part][name] = value
        elif value is None:
            del data[part]
        else:
            data[part] = value
    return json.dumps(data).encode()


PROFILES: dict[str, tuple[bytes, str]] = {
    "missing key": (broken_profile(host=None), "host: missing"),
    "negative": (broken_profile(host__free_bytes=-5), "host.free_bytes = -5"),
    "NaN": (broken_profile(bandwidth__bytes_per_s=float("nan")), "bandwidth.bytes_per_s"),
    "1e308": (broken_profile(bandwidth__bytes_per_s=1e308), "1e+308"),
    "text for a number": (broken_profile(host__threads="many"), "host.threads"),
    "free over total": (broken_profile(host__free_bytes=1 << 50), "no more can be free than there is"),
    "two sizes of one memory": (broken_profile(host__total_bytes=1 << 50), "one memory has one size"),
    "no memory": (broken_profile(accelerator__total_bytes=0), "accelerator.total_bytes = 0"),
    "no bits": (broken_profile(supported_bits=[]), "supported_bits"),
    "bits that there are not": (broken_profile(supported_bits=[3]), "supported_bits"),
    "no rate": (broken_profile(matmul=[]), "matmul"),
    "not JSON": (b"{", "is not JSON"),
    "a list": (b"[]", "holds no profile"),
    "nested": (b"[" * 100_000, "JSON"),
    "an escape": (broken_profile(host__threads="\x1b[2J" * 5000), "host.threads"),
    "nothing": (b"", "is not JSON"),
    "bytes": (b"\xff\xfe\x00", "JSON"),
}


def test_a_figure_that_is_no_number_is_one_problem(plan: Plan, small: Path, tmp_path: Path) -> None:
    rates = [
        {"dtype": "float32", "shape": [8, 8, 8], "flops_per_s": float("nan"), "repeats": 1, "relative_spread": 0.0}
    ]
    (tmp_path / "p.json").write_bytes(broken_profile(matmul=rates))
    code, _, err = plan(small, "--device", "p.json")
    assert code == ExitCode.INPUT_UNUSABLE
    assert "it has 1 problem:" in err
    assert "matmul.0.flops_per_s" in err
    assert "at least 1 item" not in err


def harmless(code: int, err: str) -> None:
    """One bounded message that a terminal does not obey, and no traceback."""
    assert code not in (0, ExitCode.INTERNAL_ERROR), err
    assert "Traceback" not in err
    assert all(line.isprintable() for line in err.split("\n"))
    assert len(err) < 6000


@pytest.mark.parametrize("case", list(PROFILES))
def test_a_profile_that_cannot_be_used_is_named_with_its_problems(
    plan: Plan, small: Path, tmp_path: Path, case: str
) -> None:
    data, words = PROFILES[case]
    (tmp_path / "p.json").write_bytes(data)
    code, _, err = plan(small, "--device", "p.json")
    harmless(code, err)
    assert code == ExitCode.INPUT_UNUSABLE
    assert "p.json" in err
    assert words in err


OPTIONS: dict[str, tuple[tuple[str, ...], int, str]] = {
    "misspelt": (("--device", "catalog:rtx4090"), 25, "did you mean 'rtx-4090'"),
    "without its prefix": (("--device", "t4"), 25, "catalog:t4"),
    "x0": (("--device", "catalog:t4x0"), 25, "x0 says how many"),
    "x-3": (("--device", "catalog:t4x-3"), 25, "x-3 says how many"),
    "x10**9": (("--device", "catalog:t4x1000000000"), 25, "x1000000000 says how many"),
    "x with digits of another script": (("--device", "catalog:t4x\u0663"), 25, "says how many"),
    "endless digits": (("--device", "catalog:t4x" + "9" * 10_000), 25, "says how many"),
    "no such file": (("--device", "missing.json"), 25, "there is no file missing.json"),
    "a folder": (("--device", "."), 25, "is a folder"),
    "a device file": (("--device", "/dev/zero"), 25, "a device or a pipe"),
    "a zero byte": (("--device", "a\0b"), 25, "cannot be read"),
    "too many kinds": (("--device", "catalog:t4") * 300, 25, "256"),
    "uplink 0": (("--uplink", "0"), 2, "--uplink is 0"),
    "uplink below": (("--uplink", "-3"), 2, "--uplink is -3"),
    "uplink fast": (("--uplink", "fast"), 2, "valid number"),
    "uplink nan": (("--uplink", "nan"), 2, "--uplink is nan"),
    "uplink inf": (("--uplink", "inf"), 2, "--uplink is inf"),
    "downlink 1e308": (("--downlink", "1e308"), 2, "--downlink is 1e+308"),
    "memory limit": (("--memory-limit", "-1"), 2, "--memory-limit is -1"),
    "examples": (("--examples", "0"), 2, "--examples is 0"),
    "tokens": (("--tokens", "nan"), 2, "--tokens is nan"),
    "more tokens than a sequence": (("--tokens", "4096"), 2, "train.sequence_length is 128"),
    "deadline 0": (("--deadline", "0"), 10, "rounds.deadline_s = 0"),
    "deadline soon": (("--deadline", "soon"), 10, "rounds.deadline_s"),
    "override": (("-s", "train.sequence_lenght=9"), 10, "did you mean"),
    "no contributions": (("--contributions", "missing.json"), 25, "missing.json"),
    "plot in no folder": (("--plot", "missing/out.svg"), 26, "missing/out.svg"),
    "plot over a folder": (("--plot", "."), 26, "cannot be written"),
    "no config": (("--config", "missing.json"), 18, "missing.json"),
    "home": (("--home", "missing"), 10, "federation.toml"),
}


@pytest.mark.parametrize("case", list(OPTIONS))
def test_an_option_that_makes_no_sense_is_answered_in_one_message(plan: Plan, small: Path, case: str) -> None:
    given, expected, words = OPTIONS[case]
    arguments = (small, *given) if {"--device", "--home"} & set(given) else (small, *given, "--device", "catalog:l4")
    code, _, err = plan(*arguments)
    harmless(code if code != ExitCode.USAGE else expected, "" if "Usage:" in err else err)
    assert code == expected
    assert words in err


CONFIGS: dict[str, tuple[bytes, str]] = {
    "mixture of experts": (json.dumps(LLAMA | {"model_type": "mixtral", "num_local_experts": 8}).encode(), "mixtral"),
    "unknown": (json.dumps(LLAMA | {"model_type": "frobnicator"}).encode(), "frobnicator"),
    "no type": (b"{}", "model_type"),
    "heads that do not divide": (json.dumps(LLAMA | {"num_attention_heads": 7}).encode(), "7"),
    "a million million layers": (json.dumps(LLAMA | {"num_hidden_layers": 10**12}).encode(), "num_hidden_layers"),
    "negative": (json.dumps(LLAMA | {"hidden_size": -1}).encode(), "hidden_size"),
    "NaN": (json.dumps(LLAMA | {"hidden_size": float("nan")}).encode(), "hidden_size"),
    "quantized": (json.dumps(LLAMA | {"quantization_config": {"bits": 4}}).encode(), "quantiz"),
    "not JSON": (b"{", "is not JSON"),
    "a list": (b"[1]", "no configuration"),
    "an escape": (json.dumps({"model_type": "\x1b[2J" * 5000}).encode(), "model type"),
}


@pytest.mark.parametrize("case", list(CONFIGS))
def test_a_configuration_that_cannot_be_used_is_refused(plan: Plan, small: Path, case: str) -> None:
    data, words = CONFIGS[case]
    (small.parent / "model" / "config.json").write_bytes(data)
    code, _, err = plan(small, "--device", "catalog:l4")
    harmless(code, err)
    assert code == ExitCode.MODEL_UNUSABLE
    assert words in err


def test_a_configuration_of_a_gigabyte_is_not_read(plan: Plan, small: Path) -> None:
    with (small.parent / "model" / "config.json").open("wb") as file:
        file.truncate(1 << 30)
    begin = time.process_time()
    code, _, err = plan(small, "--device", "catalog:l4")
    assert time.process_time() - begin < 30
    assert (code, "1073741824 bytes" in err) == (ExitCode.MODEL_UNUSABLE, True)


@pytest.mark.parametrize("model", ["nobody/nothing", "../../etc", "a/b/c", "\x1b[2J", "x" * 900, "a..b/c"])
def test_a_model_that_is_nowhere_says_how_to_give_its_configuration(plan: Plan, tmp_path: Path, model: str) -> None:
    code, _, err = plan(job(tmp_path, model=model.replace("\x1b", "\\u001b")), "--device", "catalog:l4")
    harmless(code, err)
    assert code == ExitCode.MODEL_UNUSABLE
    assert "--config" in err


def test_a_ladder_beyond_every_weight_is_refused_by_name(plan: Plan, small: Path) -> None:
    ladder = ("-s", "adapter.global_rank=4096", "-s", "adapter.rank_ladder=[4096]")
    code, _, err = plan(small, "--device", "catalog:l4", *ladder)
    assert code == ExitCode.BAD_SETTINGS
    assert "[4096]" in err
    assert "256" in err


# --- quick, and without the training stack ----------------------------------------------------------------------


def test_no_library_of_tensors_is_imported(small: Path) -> None:
    script = (
        "import sys\n"
        f"sys.argv = ['fedpipe', 'plan', {str(small)!r}, '--device', 'catalog:l4', '--format', 'json']\n"
        "from fedpipe_coordinator.cli import main\n"
        "try:\n    main()\nexcept SystemExit as end:\n    assert not end.code, end.code\n"
        "heavy = {'torch', 'transformers', 'peft', 'bitsandbytes', 'accelerate', 'huggingface_hub', 'pandas'}\n"
        "print(sorted(heavy & {name.split('.')[0] for name in sys.modules}), file=sys.stderr)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=60, env=dict(os.environ), check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr.strip().splitlines()[-1] == "[]"


def test_every_key_of_the_answer_is_documented(plan: Plan, small: Path) -> None:
    page = (Path(__file__).parents[2] / "docs" / "reference" / "plan.md").read_text()
    found = answer(plan, small, "--device", "catalog:t4", "--device", "catalog:laptop", "--deadline", "20")
    parts = [found, *found["devices"], *found["what_if"], *found["curve"]]
    parts += [each["after"] for each in found["what_if"] if each["after"]]
    assert {key for part in parts for key in part if f"`{key}`" not in page} == set()


def test_of_the_command_line_only_the_verb_that_is_named_is_loaded(small: Path) -> None:
    script = (
        "import sys\n"
        f"sys.argv = ['fedpipe', 'plan', {str(small)!r}, '--device', 'catalog:t4x0']\n"
        "from fedpipe_coordinator.cli import main\n"
        "try:\n    main()\nexcept SystemExit as end:\n    print(end.code)\n"
        "print('fedpipe_coordinator.cli.demo' in sys.modules, 'fedpipe_coordinator.cli.plan' in sys.modules)\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.split() == ["25", "False", "True"]
