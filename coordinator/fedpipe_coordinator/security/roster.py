"""Who is enrolled: the records in `agents/`, followed while somebody else changes them.

Owns the files and their lock. What a record means is `enrolment_record.py`'s. A record that cannot be read keeps its
own agent out, and nobody else.
"""

import json
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path

from cryptography import x509
from pydantic import ValidationError

from fedpipe_coordinator.home import Home
from fedpipe_coordinator.security.enrolment_record import Record, TimedKey, check_record, keys_at
from fedpipe_coordinator.security.owned_files import OwnedFileError, locked, read_limited, write_owned
from fedpipe_coordinator.security.revocation_list import read_revocations, revoked_since
from fedpipe_wire.certificates import CertificateError
from fedpipe_wire.messages import problem_of
from fedpipe_wire.sealing import Keys
from fedpipe_wire.topics import TopicError, check_name

MAX_RECORD_BYTES = 4 << 20
PATIENCE_S = 30.0
_SUFFIX = ".json"
_LOCK = ".lock"
_FileState = tuple[int, int, int]


@dataclass(frozen=True, slots=True)
class Register:
    """All records at one time.

    Attributes:
        records: By agent.
        damaged: By agent, why its record cannot be read.
    """

    records: Mapping[str, Record] = field(default_factory=dict)
    damaged: Mapping[str, str] = field(default_factory=dict)

    def revoked(self) -> set[str]:
        """Agents that were revoked, and those of whom nobody can tell."""
        return {name for name, record in self.records.items() if record.revoked()} | set(self.damaged)

    def denied(self, now: datetime) -> set[str]:
        """Agents that may have no connection: nothing that they were given counts now, or nobody can tell."""
        absent = {name for name, record in self.records.items() if record.standing(now) != "enrolled"}
        return absent | set(self.damaged)

    def serials(self) -> list[tuple[int, datetime]]:
        """Numbers of all revoked certificates."""
        return [serial for _, record in sorted(self.records.items()) for serial in record.serials()]


class RosterFiles:
    """The records as files.

    Args:
        home: the federation's folder.
        ca: its own certificate.
        federation: its name.
    """

    def __init__(self, home: Home, ca: x509.Certificate, federation: str) -> None:
        self._folder, self._ca, self._federation = home.agents, ca, federation
        self._read: dict[str, tuple[_FileState, Record]] = {}
        self._home = home

    def lock(self, patience_s: float = PATIENCE_S) -> AbstractContextManager[None]:
        """Hold the records, so that no other command changes them; `LockBusyError` if one does for longer."""
        return locked(self._folder / _LOCK, patience_s)

    def read(self) -> Register:
        """All records. What is on the signed list is revoked, also where a record that was restored says otherwise.

        Raises:
            OwnedFileError: if the folder cannot be read.
        """
        listed = revoked_since(read_revocations(self._home, self._ca))
        records: dict[str, Record] = {}
        damaged: dict[str, str] = {}
        for name in self._names():
            try:
                records[name] = self._read_one(name).revoked_by(listed)
            except FileNotFoundError:  # it went while the folder was read
                continue
            except (OwnedFileError, CertificateError, ValidationError) as error:
                why = problem_of(error) if isinstance(error, ValidationError) else str(error)
                damaged[name] = f"its record {self._path(name)} cannot be used: {why}"
        return Register(records, damaged)

    def write(self, record: Record) -> None:
        """Keep a record; hold the lock while you read, change and write.

        Raises:
            OwnedFileError: if the disk does not take it.
        """
        data = json.dumps(record.model_dump(mode="json", by_alias=True), indent=2) + "\n"
        write_owned(self._path(record.agent), data.encode())

    def state(self) -> object:
        """Something that is another whenever a record was written, made or removed."""
        try:
            listed = _state(self._home.revocations) if self._home.revocations.exists() else None
            return listed, [(path.name, _state(path)) for path in sorted(self._folder.glob(f"*{_SUFFIX}"))]
        except OSError as error:  # a file may go while it is looked at
            return error.errno, error.filename

    def _names(self) -> list[str]:
        try:
            found = [path.name.removesuffix(_SUFFIX) for path in self._folder.iterdir() if path.suffix == _SUFFIX]
        except OSError as error:
            raise OwnedFileError(
                f"{self._folder} cannot be read: {error.strerror}. Restore it from a backup, or make it readable"
            ) from error
        return sorted(name for name in found if _is_name(name))

    def _read_one(self, name: str) -> Record:
        path = self._path(name)
        state = _state(path)
        before = self._read.get(name)
        if before is not None and before[0] == state:
            return before[1]
        record = Record.model_validate_json(read_limited(path, MAX_RECORD_BYTES))
        check_record(record, self._ca, self._federation, name)
        self._read[name] = (state, record)
        return record

    def _path(self, name: str) -> Path:
        return self._folder / f"{name}{_SUFFIX}"


class Roster:
    """The records as a running coordinator knows them. Used by one thread.

    Args:
        files: where they lie.
        clock: UTC.
        log: takes lines for people.
    """

    def __init__(self, files: RosterFiles, clock: Callable[[], datetime], log: Callable[[str], None]) -> None:
        self._files, self._clock, self._log = files, clock, log
        self._state: object = None
        self._keys: dict[str, tuple[TimedKey, ...]] = {}
        self._untold = False
        self.register = Register()

    def refresh(self) -> bool:
        """Look at the files again; whether anything is different from what the last call found.

        A folder that cannot be read lets nobody in until it can be.
        """
        changed, self._untold = self._look() or self._untold, False
        return changed

    def look_again(self) -> None:
        """Look at the files between two calls of `refresh`: a message may be quicker than the next one."""
        self._untold = self._look() or self._untold

    def _look(self) -> bool:
        state = self._files.state()
        if state == self._state:
            return False
        try:
            found = self._files.read()
        except OwnedFileError as error:
            self._log(f"nobody counts as enrolled: {error}")
            found = Register()
        self._state = state
        for name, why in found.damaged.items():
            if self.register.damaged.get(name) != why:
                self._log(f"agent {name} is refused: {why}. Restore it from a backup, or enrol the agent again")
        changed, self.register = found != self.register, found
        self._keys = {name: record.timed_keys() for name, record in found.records.items()}
        return changed

    def keys(self, agent: str) -> Keys | None:
        """The keys with which an agent signs; None for one that is not enrolled, was revoked, or whose time is over."""
        return keys_at(self._keys.get(agent, ()), self._clock()) or None

    def present(self) -> set[str]:
        """Agents that are let in at this moment."""
        now = self._clock()
        return {agent for agent, keys in self._keys.items() if keys_at(keys, now)}

    def refused(self, agent: str) -> str:
        """Why an agent is not let in, for people; empty for one that is."""
        if agent in self.register.damaged:
            return self.register.damaged[agent]
        record = self.register.records.get(agent)
        if record is None:
            return f"agent {agent} was never enrolled"
        standing = record.standing(self._clock())
        return "" if standing == "enrolled" else f"agent {agent}: its enrolment is {standing}"


def _state(path: Path) -> _FileState:
    found = path.stat()
    return found.st_ino, found.st_mtime_ns, found.st_size


def _is_name(name: str) -> bool:
    try:
        check_name(name, "agent name")
    except TopicError:
        return False
    return True
