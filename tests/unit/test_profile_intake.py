"""The coordinator does not plan with a profile that contradicts itself, and says so."""

from typing import Any, cast

from planning_fleet import profile

from fedpipe_coordinator.exchange import Said
from fedpipe_coordinator.reception import Reception
from fedpipe_coordinator.registry import Registry
from fedpipe_profiles.device import DeviceProfile
from fedpipe_wire.agent_messages import Profile


class Desk:
    """Takes what the reception refuses and stores."""

    def __init__(self) -> None:
        self.refused: list[tuple[str, str]] = []
        self.stored: list[DeviceProfile] = []

    def refuse(self, fault: str, reason: str, sender: str) -> None:
        assert sender == "a"
        self.refused.append((fault, reason))

    def save_profile(self, told: DeviceProfile) -> None:
        self.stored.append(told)


def hear(told: DeviceProfile) -> tuple[Desk, Registry]:
    desk, registry = Desk(), Registry({})
    anything = cast("Any", desk)
    reception = Reception(anything, registry, anything, anything, print, lambda _: False)
    reception.hear(Said("a", Profile(profile=told), "id"))
    return desk, registry


def test_a_profile_that_cannot_be_true_is_refused_with_its_figures() -> None:
    good = profile(1 << 30)
    more = good.model_copy(update={"host": good.host.model_copy(update={"free_bytes": 1 << 50})})
    desk, registry = hear(more)
    ((fault, reason),) = desk.refused
    assert fault == "contradiction"
    assert str(1 << 50) in reason
    assert (desk.stored, registry.profiles()) == ([], {})


def test_one_that_can_be_true_is_stored() -> None:
    desk, registry = hear(profile(1 << 30))
    assert desk.refused == []
    assert len(desk.stored) == len(registry.profiles()) == 1
