"""The machines that a federation's coordinator has heard of, read from its store without touching it."""

import sqlite3
from pathlib import Path

from pydantic import ValidationError

from fedpipe_coordinator.store_schema import StoreError
from fedpipe_profiles.device import DeviceProfile
from fedpipe_profiles.device_checks import profile_problems


def stored_profiles(store: Path) -> dict[str, DeviceProfile]:
    """The newest profile of every agent, by name; none where there is no store. Profiles that contradict are left out.

    Raises:
        StoreError: if the store is there and cannot be read.
    """
    if not store.exists():
        return {}
    try:
        connection = sqlite3.connect(f"{store.absolute().as_uri()}?mode=ro", uri=True)
        try:
            rows = connection.execute("SELECT agent, profile FROM agents ORDER BY agent").fetchall()
        finally:
            connection.close()
        profiles = {agent: DeviceProfile.model_validate_json(text) for agent, text in rows}
    except (sqlite3.Error, ValidationError) as error:
        first = str(error).splitlines()[0]
        raise StoreError(
            f"the coordinator's store {store} cannot be read ({first}): name devices with --device, or restore the "
            "store from a backup"
        ) from error
    return {name: profile for name, profile in profiles.items() if not profile_problems(profile)}
