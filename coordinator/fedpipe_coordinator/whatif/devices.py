"""Which devices a what-if is about: of the catalogue, of a profile that a probe wrote, or of a federation's agents.

Owns the notation `catalog:NAME[xN]` and `profile.json[xN]`, and what the command line changes in a device.
"""

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from pydantic import ValidationError

from fedpipe_coordinator.whatif.errors import DeviceError, FigureError
from fedpipe_coordinator.whatif.small_files import UnreadableError, named, read_small
from fedpipe_profiles.catalog.device_catalogue import UnknownDeviceError, catalogue_names, catalogued_device
from fedpipe_profiles.costs.transfers import UNMEASURED_DOWNLINK_BPS, UNMEASURED_LATENCY_S, UNMEASURED_UPLINK_BPS
from fedpipe_profiles.device import MIB, DeviceProfile, Link
from fedpipe_profiles.device_checks import limit_problems, profile_problems
from fedpipe_profiles.plain_text import plain
from fedpipe_profiles.settings_report import SettingsReport

CATALOGUE_PREFIX = "catalog:"
REPRESENTATIVE = (
    "h100",
    "a100-40",
    "l40s",
    "l4",
    "t4",
    "rtx-4090",
    "rtx-3060",
    "jetson-agx-orin",
    "cpu-server",
    "laptop",
)
"""What is planned for where nobody names a device: a choice as unlike as fleets are."""
MAX_ALIKE = 100_000
MAX_KINDS = 256
MAX_PROFILE_BYTES = 1 << 20
MOST_MBIT = 1e7
LEAST_MBIT = 1e-3
_MOST_DIGITS = 9
_SHOWN_PROBLEMS = 20

Origin = Literal["catalogue", "profile", "agent"]


@dataclass(frozen=True, slots=True)
class FleetMember:
    """A device of the fleet, and how many there are that are just like it."""

    name: str
    title: str
    origin: Origin
    count: int
    profile: DeviceProfile


@dataclass(frozen=True, slots=True)
class Overrides:
    """What the command line says of every device; None leaves what the device has."""

    uplink_mbit: float | None = None
    downlink_mbit: float | None = None
    memory_limit_mib: int | None = None

    def __post_init__(self) -> None:
        for option, value in (("--uplink", self.uplink_mbit), ("--downlink", self.downlink_mbit)):
            if value is not None and not LEAST_MBIT <= value <= MOST_MBIT:
                raise FigureError(
                    f"{option} is {value:g}: give Mbit/s, from {LEAST_MBIT:g} to {MOST_MBIT:g}, as in {option} 20"
                )
        most = 1 << 32
        if self.memory_limit_mib is not None and not 1 <= self.memory_limit_mib <= most:
            raise FigureError(
                f"--memory-limit is {self.memory_limit_mib}: give MiB, from 1 to {most}, as in --memory-limit 8192"
            )

    def apply(self, profile: DeviceProfile) -> DeviceProfile:
        """The profile with these figures in place of its own."""
        changes: dict[str, object] = {}
        if self.uplink_mbit is not None or self.downlink_mbit is not None:
            changes["link"] = self._link(profile.link)
        if self.memory_limit_mib is not None:
            changes["limits"] = profile.limits.model_copy(update={"memory_bytes": self.memory_limit_mib * MIB})
        return profile.model_copy(update=changes)

    def _link(self, link: Link | None) -> Link:
        up = UNMEASURED_UPLINK_BPS if link is None else link.uplink_bps
        down = UNMEASURED_DOWNLINK_BPS if link is None else link.downlink_bps
        return Link(
            uplink_bps=up if self.uplink_mbit is None else self.uplink_mbit * 1e6,
            downlink_bps=down if self.downlink_mbit is None else self.downlink_mbit * 1e6,
            latency_s=UNMEASURED_LATENCY_S if link is None else link.latency_s,
            measured_bytes=0,
            uplink_source="theoretical",
            downlink_source="theoretical",
        )


def named_devices(texts: Sequence[str], overrides: Overrides) -> tuple[FleetMember, ...]:
    """The devices that `--device` names, each with a name of its own.

    Raises:
        DeviceError: if one is unknown, cannot be read, contradicts itself, or there are too many.
    """
    if len(texts) > MAX_KINDS:
        raise DeviceError(f"--device is given {len(texts)} times, and at most {MAX_KINDS} are planned for at once")
    return _distinct((_read(text) for text in texts), overrides)


def representative_devices(overrides: Overrides) -> tuple[FleetMember, ...]:
    """A choice of the catalogue, for want of any device."""
    return _distinct((_catalogued(name, 1) for name in REPRESENTATIVE), overrides)


def known_agents(profiles: Mapping[str, DeviceProfile], overrides: Overrides) -> tuple[FleetMember, ...]:
    """A federation's agents, as their profiles say."""
    return _distinct(
        (FleetMember(name, _title(profile), "agent", 1, profile) for name, profile in sorted(profiles.items())),
        overrides,
    )


def _distinct(members: Iterable[FleetMember], overrides: Overrides) -> tuple[FleetMember, ...]:
    taken: dict[str, FleetMember] = {}
    for member in members:
        name, number = member.name, 1
        while name in taken:
            number += 1
            name = f"{member.name}#{number}"
        profile = overrides.apply(member.profile).model_copy(update={"agent": name[:64]})
        taken[name] = replace(member, name=name, profile=profile)
    return tuple(taken.values())


def _read(text: str) -> FleetMember:
    if text.startswith(CATALOGUE_PREFIX):
        name, count = _counted(text, text.removeprefix(CATALOGUE_PREFIX), lambda head: head in catalogue_names())
        return _catalogued(name, count)
    if text.lower() in catalogue_names():
        raise DeviceError(f"--device {plain(text, 80)}: a device of the catalogue is named {CATALOGUE_PREFIX}{text}")
    path, count = _counted(text, text, _is_file)
    return _from_file(Path(path), count)


def _counted(text: str, spec: str, exists: Callable[[str], bool]) -> tuple[str, int]:
    """What is named, and how many of it. What exists under the whole text is that, and one."""
    head, x, tail = spec.rpartition("x")
    if not x or exists(spec) or not exists(head):
        return spec, 1
    if not (tail.isascii() and tail.isdigit() and len(tail) <= _MOST_DIGITS and 1 <= int(tail) <= MAX_ALIKE):
        raise DeviceError(
            f"--device {plain(text, 80)}: x{plain(tail, 20)} says how many, from x1 to x{MAX_ALIKE}, as in "
            f"{CATALOGUE_PREFIX}rtx-4090x4"
        )
    return head, int(tail)


def _is_file(text: str) -> bool:
    try:
        return Path(text).exists()
    except (OSError, ValueError):
        return False


def _catalogued(name: str, count: int) -> FleetMember:
    try:
        entry = catalogued_device(name)
    except UnknownDeviceError as error:
        raise DeviceError(str(error)) from None
    return FleetMember(name, entry.title, "catalogue", count, entry.profile(name))


def _from_file(path: Path, count: int) -> FleetMember:
    try:
        data = read_small(path, MAX_PROFILE_BYTES)
    except UnreadableError as error:
        hint = f"; a device of the catalogue is named as {CATALOGUE_PREFIX}rtx-4090"
        raise DeviceError(f"{error}{'' if path.suffix else hint}") from None
    profile = parse_profile(data, named(path))
    return FleetMember(plain(profile.agent, 60) or path.stem[:60], _title(profile), "profile", count, profile)


def parse_profile(data: bytes, source: str) -> DeviceProfile:
    """A device profile, as `fedpipe-agent probe --format json` prints it.

    Raises:
        DeviceError: with all its problems.
    """
    try:
        tables = json.loads(data)
    except (ValueError, RecursionError) as error:
        why = "it is nested too deeply" if isinstance(error, RecursionError) else plain(str(error), 200)
        raise DeviceError(f"{source} is not JSON: {why}") from None
    if not isinstance(tables, dict):
        raise DeviceError(f"{source} holds no profile: `fedpipe-agent probe --format json` prints one")
    try:
        profile = DeviceProfile.model_validate_json(data, strict=True)
    except ValidationError as error:
        raise _refused(source, SettingsReport(DeviceProfile, tables, set()).lines(error)) from None
    problems = (*profile_problems(profile), *limit_problems(profile))
    if problems:
        raise _refused(source, problems)
    return profile


def _refused(source: str, problems: Sequence[str]) -> DeviceError:
    lines = [f"  {plain(problem, 400)}" for problem in problems[:_SHOWN_PROBLEMS]]
    if len(problems) > _SHOWN_PROBLEMS:
        lines.append(f"  and {len(problems) - _SHOWN_PROBLEMS} more")
    count = "1 problem" if len(problems) == 1 else f"{len(problems)} problems"
    more = "measure the device again with `fedpipe-agent probe --format json`, or put the figures right"
    return DeviceError("\n".join([f"the profile {source} cannot be used, it has {count}:", *lines, more]))


def _title(profile: DeviceProfile) -> str:
    gpu = profile.accelerator
    return plain(profile.host.cpu if gpu is None else gpu.name, 100)
