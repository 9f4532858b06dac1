"""install.sh, run as a person runs it: what it does and what it leaves alone."""

import shutil
import subprocess
from pathlib import Path

import pytest
from install.checkout import INSTALL, LAST_LINE, Checkout, program, remove_override

CPU_INDEX = "https://download.pytorch.org/whl/cpu"


def test_help_names_every_verb_variable_and_exit_code() -> None:
    shown = subprocess.run([str(INSTALL), "--help"], capture_output=True, text=True, timeout=60, check=True).stdout
    text = INSTALL.read_text(encoding="utf-8")
    codes = [part.split("=")[1] for part in text.split("readonly ")[1].split("\n")[0].split()]
    assert codes == ["2", "3", "4", "5", "6", "7"]
    lines = shown.splitlines()
    assert all(any(line.startswith(f"  {code}  ") for line in lines) for code in codes)
    for word in ("demo", "test", "PYTHON", "FEDPIPE_VENV", "FEDPIPE_TORCH_INDEX", "FEDPIPE_PIP_TIMEOUT_S"):
        assert word in shown


@pytest.mark.parametrize("where", [["--dry-run", "demo"], ["demo", "--dry-run"]])
def test_dry_run_prints_every_step_and_changes_nothing(checkout: Checkout, where: list[str]) -> None:
    before = checkout.files()
    done = checkout.run(*where, "--seed", "3")
    assert done.returncode == 0, done.stderr
    steps = ["-m venv", "which torch", "pip --no-input", "fedpipe-stamp", "fedpipe demo --seed 3"]
    places = [done.stderr.index(step) for step in steps]
    assert places == sorted(places)
    assert checkout.files() == before
    assert checkout.pip_calls() == []


def test_dry_run_shows_what_the_system_would_be_given(checkout: Checkout) -> None:
    checkout.override("may_install() { true; }", "find_mosquitto() { return 1; }")
    done = checkout.run("--dry-run", "test")
    assert done.returncode == 0, done.stderr
    assert "apt-get -q" in done.stderr
    assert "install -y --no-install-recommends mosquitto" in done.stderr


def test_demo_is_set_up_and_started_with_its_arguments(checkout: Checkout, tmp_path: Path) -> None:
    done = checkout.run("demo", "--seed", "a b", cwd=tmp_path)
    assert (done.returncode, done.stdout) == (0, "fedpipe demo --seed a b\n"), done.stderr
    venv, torch, package = checkout.pip_calls()
    assert venv == "venv"
    assert "--dry-run" in torch
    assert package.endswith(f"--editable {checkout.folder}[demo]")
    assert f"-c {checkout.folder}/constraints.txt" in package
    assert "set-up done" in done.stderr


def test_test_installs_dev_and_passes_its_arguments_on(checkout: Checkout) -> None:
    done = checkout.run("test", "-k", "x")
    assert (done.returncode, done.stdout) == (0, f"tests -k x in {checkout.venv}\n"), done.stderr
    assert checkout.pip_calls()[-1].endswith("[dev]")


def test_second_run_asks_pip_for_nothing(checkout: Checkout) -> None:
    checkout.run("test")
    calls = checkout.pip_calls()
    for verb in ("test", "demo"):  # the extra dev holds all of demo
        again = checkout.run(verb)
        assert again.returncode == 0
        assert "nothing changed" in again.stderr
    assert checkout.pip_calls() == calls


def test_wider_extra_or_changed_inputs_ask_pip_again_in_the_same_environment(checkout: Checkout) -> None:
    checkout.run("demo")
    checkout.run("test")
    assert checkout.pip_calls()[-1].endswith("[dev]")
    with (checkout.folder / "constraints.txt").open("a", encoding="utf-8") as file:
        file.write("numpy<3\n")
    before = len(checkout.pip_calls())
    checkout.run("demo")
    assert len(checkout.pip_calls()) > before
    assert checkout.pip_calls().count("venv") == 1


@pytest.mark.parametrize("damage", ["no stamp", "no program", "other Python", "moved"])
def test_half_made_or_misplaced_environment_is_made_anew(checkout: Checkout, damage: str) -> None:
    checkout.run("demo")
    (checkout.venv / "leftover").touch()
    match damage:
        case "no stamp":
            (checkout.venv / "fedpipe-stamp").unlink()
        case "no program":
            (checkout.venv / "bin" / "fedpipe").unlink()
        case "other Python":
            checkout.environment["FAKE_VERSION"] = "3.12"
        case _:
            checkout.folder = checkout.folder.rename(checkout.folder.with_name("elsewhere"))
    done = checkout.run("demo")
    assert (done.returncode, done.stdout) == (0, "fedpipe demo\n"), done.stderr
    assert "remaking" in done.stderr
    assert not (checkout.venv / "leftover").exists()


def test_foreign_environment_that_works_is_used_and_one_that_does_not_is_moved_aside(checkout: Checkout) -> None:
    shutil.copytree(checkout.programs, checkout.venv / "bin")
    (checkout.venv / "bin" / "python3.13").rename(checkout.venv / "bin" / "python")
    (checkout.venv / "pyvenv.cfg").touch()
    (checkout.venv / "mine").touch()
    assert checkout.run("demo").returncode == 0
    assert "venv" not in checkout.pip_calls()
    assert (checkout.venv / "mine").exists()

    (checkout.venv / "bin" / "python").unlink()
    done = checkout.run("demo")
    assert done.returncode == 0, done.stderr
    (aside,) = checkout.folder.glob(".venv.broken-*")
    assert (aside / "mine").exists()


def test_folder_that_is_no_environment_is_left_alone(checkout: Checkout, tmp_path: Path) -> None:
    thesis = tmp_path / "documents" / "thesis.txt"
    thesis.parent.mkdir()
    thesis.write_text("years of work", encoding="utf-8")
    done = checkout.run("demo", FEDPIPE_VENV=str(thesis.parent))
    assert done.returncode == 2
    assert "not a virtual environment" in done.stderr
    assert list(thesis.parent.iterdir()) == [thesis]
    assert thesis.read_text(encoding="utf-8") == "years of work"


def test_environment_elsewhere(checkout: Checkout, tmp_path: Path) -> None:
    done = checkout.run("demo", cwd=tmp_path, FEDPIPE_VENV="else where/env")
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "else where" / "env" / "fedpipe-stamp").exists()
    assert not checkout.venv.exists()


def test_missing_mosquitto_is_installed_and_only_then_its_service_stopped(checkout: Checkout) -> None:
    apt = '#!/bin/sh\necho "apt-get $*" >>"$CALLS"\ncase "$*" in *" install "*) touch "$CALLS.installed" ;; esac\n'
    program(checkout.programs / "apt-get", apt)
    program(checkout.programs / "id", "#!/bin/sh\necho 0\n")
    remove_override(checkout, "may_install")
    checkout.override("stop_packaged_broker() { echo stopped; }")
    assert "stopped" not in checkout.run("demo").stdout
    assert not any(call.startswith("apt-get") for call in checkout.pip_calls())

    checkout.override('find_mosquitto() { [[ -e "$CALLS.installed" ]] && echo "${PATH%%:*}/mosquitto"; }')
    done = checkout.run("demo")
    assert done.stdout.startswith("stopped\n"), done.stderr
    update, install = [call for call in checkout.pip_calls() if call.startswith("apt-get")]
    assert update.endswith("update")
    assert install.endswith("install -y --no-install-recommends mosquitto")


def test_failing_apt_get_is_shown_and_named(checkout: Checkout) -> None:
    program(checkout.programs / "apt-get", "#!/bin/sh\necho E: Unable to locate package mosquitto\nexit 100\n")
    program(checkout.programs / "id", "#!/bin/sh\necho 0\n")
    remove_override(checkout, "may_install")
    checkout.override("find_mosquitto() { return 1; }")
    done = checkout.run("demo")
    assert done.returncode == 4
    assert "E: Unable to locate package mosquitto" in done.stderr
    assert "sudo apt-get install mosquitto" in done.stderr


@pytest.mark.parametrize(
    ("wants", "index", "expected"),
    [
        ("nvidia-cudnn-cu13==9.1; platform_system == 'Linux'", None, CPU_INDEX),
        ("cuda-toolkit==13.0", None, CPU_INDEX),
        ("nvidia-cudnn-cu13==9.1; platform_machine == 'riscv'", None, None),
        ("jinja2", None, None),
        ("cuda-toolkit==13.0", "default", None),
        ("jinja2", "https://wheels.example/cu", "https://wheels.example/cu"),
    ],
)
def test_torch_comes_from_the_cpu_index_only_where_the_default_brings_cuda(
    checkout: Checkout, wants: str, index: str | None, expected: str | None
) -> None:
    if index is not None:
        checkout.environment["FEDPIPE_TORCH_INDEX"] = index
    assert checkout.run("demo", FAKE_TORCH=wants).returncode == 0
    chosen = [call.split("--index-url ")[1].split()[0] for call in checkout.pip_calls() if "--index-url" in call]
    assert chosen == ([] if expected is None else [expected])


def test_machine_with_nvidia_takes_the_default_torch(checkout: Checkout) -> None:
    checkout.override("has_nvidia() { true; }")
    assert checkout.run("demo", FAKE_TORCH="cuda-toolkit==13.0").returncode == 0
    assert not any("--index-url" in call for call in checkout.pip_calls())


def test_script_cut_short_anywhere_does_nothing(checkout: Checkout, tmp_path: Path) -> None:
    whole = INSTALL.read_bytes()
    assert whole.endswith(LAST_LINE.encode())
    before = checkout.files()
    recorder = tmp_path / "recorder"
    recorder.mkdir()
    for name in ("apt-get", "sudo", "mkdir", "rm", "mv", "touch", "tee", "python3", "python3.13", "systemctl"):
        program(recorder / name, f'#!/bin/sh\necho "{name}" >>"$CALLS"\n')
    cuts = [*range(0, len(whole), 997), *range(len(whole) - len(LAST_LINE) - 20, len(whole) - 1)]
    for cut in cuts:
        subprocess.run(
            ["bash", "-s", "demo"],
            input=whole[:cut],
            cwd=checkout.folder,
            env={"PATH": f"{recorder}:/usr/bin:/bin", "CALLS": str(checkout.calls)},
            capture_output=True,
            timeout=60,
            check=False,
        )
    assert checkout.files() == before
    assert checkout.pip_calls() == []
