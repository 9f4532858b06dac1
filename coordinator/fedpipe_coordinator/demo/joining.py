"""The demo's silos join their federation: by the same requests and bundles as between organisations.

Owns running the agents' commands, all silos side by side, and signing in between. Both sides of each comparison of
fingerprints are this one process, which is what a demo on one machine can do.
"""

import subprocess
import sys
from collections.abc import Mapping
from datetime import datetime
from pathlib import Path

from fedpipe_coordinator.errors import CliError
from fedpipe_coordinator.exit_codes import ExitCode
from fedpipe_coordinator.federation import open_office
from fedpipe_coordinator.federation_config import load_federation
from fedpipe_coordinator.home import Home
from fedpipe_coordinator.security.owned_files import read_limited, write_owned
from fedpipe_wire.certificates import fingerprint
from fedpipe_wire.enrolment import MAX_FILE_BYTES, Request, decode, encode

TOGETHER = 4
"""Agents whose commands run at once."""
_LIMIT_S = 120.0


def join_all(home: Home, agents: Mapping[str, Path], now: datetime) -> str:
    """Let agents make their keys, enrol them, and let them join; the federation's fingerprint.

    Args:
        home: a federation with keys.
        agents: the settings file of each agent, which exists.
        now: UTC.

    Raises:
        CliError: if a command of an agent fails, with what it said.
        OwnedFileError, CertificateError, EnrolmentError: as `fedpipe enroll`.
    """
    office = open_office(home, load_federation(home.settings), now)
    print_ = fingerprint(office.authority.certificate)
    _run_all({name: ["init", name, "--config", str(path)] for name, path in agents.items()})
    for path in agents.values():
        request = decode(Request, read_limited(path.parent / "request.json", MAX_FILE_BYTES))
        write_owned(path.parent / "bundle.json", encode(office.let_in(request, now).bundle))
    _run_all(
        {
            name: ["join", str(path.parent / "bundle.json"), "--fingerprint", print_, "--config", str(path)]
            for name, path in agents.items()
        }
    )
    return print_


def _run_all(commands: Mapping[str, list[str]]) -> None:
    names = list(commands)
    for begin in range(0, len(names), TOGETHER):
        started = [
            (name, subprocess.Popen(
                [sys.executable, "-m", "fedpipe_agent", *commands[name]],
                stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
            ))
            for name in names[begin : begin + TOGETHER]
        ]  # fmt: skip
        for name, process in started:
            said, _ = process.communicate(timeout=_LIMIT_S)
            if process.returncode:
                raise CliError(f"agent {name} cannot join: {said.strip()[-2000:]}", ExitCode.ENROLMENT_REFUSED)
