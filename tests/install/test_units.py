"""The systemd units: systemd accepts them, and they name what this project has."""

import re
import shutil
import subprocess
import tomllib
from pathlib import Path

import pytest

from fedpipe_agent.exit_codes import ExitCode as AgentExitCode
from fedpipe_coordinator.exit_codes import ExitCode as CoordinatorExitCode

REPOSITORY = Path(__file__).parents[2]
AGENT = REPOSITORY / "agent" / "systemd" / "fedpipe-agent.service"
COORDINATOR = REPOSITORY / "coordinator" / "systemd" / "fedpipe-coordinator.service"
UNITS = [pytest.param(unit, id=unit.stem) for unit in (AGENT, COORDINATOR)]


def setting(unit: Path, key: str) -> str:
    (value,) = re.findall(rf"^{key}=(.*)$", unit.read_text(encoding="utf-8"), re.MULTILINE)
    return str(value)


@pytest.mark.parametrize("unit", UNITS)
def test_systemd_finds_nothing_wrong(unit: Path, tmp_path: Path) -> None:
    if shutil.which("systemd-analyze") is None:
        pytest.skip("systemd-analyze is not installed")
    # The program is not where an installation puts it: another one stands in.
    stand_in = tmp_path / unit.name
    text = re.sub(r"^ExecStart=\S+", "ExecStart=/bin/true", unit.read_text(encoding="utf-8"), flags=re.MULTILINE)
    stand_in.write_text(text, encoding="utf-8")
    verified = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", str(stand_in)],
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    # Other units of the machine may have faults of their own.
    about_ours = [line for line in verified.stderr.splitlines() if unit.stem in line]
    assert about_ours == []


@pytest.mark.parametrize("unit", UNITS)
def test_program_is_one_of_the_distribution(unit: Path) -> None:
    scripts = tomllib.loads((REPOSITORY / "pyproject.toml").read_text(encoding="utf-8"))["project"]["scripts"]
    assert Path(setting(unit, "ExecStart").split()[0]).name in scripts


@pytest.mark.parametrize(("unit", "codes"), [(AGENT, AgentExitCode), (COORDINATOR, CoordinatorExitCode)])
def test_exit_codes_that_end_the_restarts_are_documented_ones(
    unit: Path, codes: type[AgentExitCode] | type[CoordinatorExitCode]
) -> None:
    named = {int(code) for code in setting(unit, "RestartPreventExitStatus").split()}
    assert named <= {int(code) for code in codes}
    assert codes.USAGE in named


def test_daemon_outlives_the_kill_of_its_trainer() -> None:
    assert setting(AGENT, "OOMPolicy") == "continue"


@pytest.mark.parametrize("unit", UNITS)
def test_service_has_no_rights_to_lose(unit: Path) -> None:
    assert setting(unit, "User") not in {"", "root"}
    assert setting(unit, "NoNewPrivileges") == "yes"
    assert setting(unit, "CapabilityBoundingSet") == ""
    assert setting(unit, "ProtectSystem") == "strict"
