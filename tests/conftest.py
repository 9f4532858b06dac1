"""Which tests share a process when they run side by side: those of a file, and all that share one federation."""

import pytest


@pytest.hookimpl(tryfirst=True)  # before pytest-xdist reads the groups
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put every test into a group for `--dist loadgroup`."""
    for item in items:
        shares = "shared" in getattr(item, "fixturenames", ())
        item.add_marker(pytest.mark.xdist_group("federation" if shares else item.path.stem))
