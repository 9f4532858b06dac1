"""The real clients try every topic of a managed broker: each can do what it should, and nothing else."""

import pytest
from mosquitto_support import mosquitto_or_skip

from benchmarks.access import TOPICS, Figures, measure, table

OUTSIDE = ("no certificate", "expired", "revoked", "foreign", "signing", "no TLS")


@pytest.fixture(scope="module")
def figures(tmp_path_factory: pytest.TempPathFactory) -> Figures:
    mosquitto_or_skip()
    return measure(tmp_path_factory.mktemp("access"))


def _expected(client: str, topic: str) -> str:
    """Written down once more by hand, from the topic's name alone."""
    place = topic.removeprefix("fedpipe/access/")
    upward = place.startswith("agents/north/up/") and not place.endswith("anything")
    downward, everybodys = place.startswith("agents/north/down/"), place.startswith("broadcast/")
    if client == "north":
        return "-w" if upward else "r-" if downward or everybodys else "--"
    if client == "another agent":
        return "r-" if everybodys else "--"
    if upward:
        return "rw" if "/blob/" in place else "r-"
    # What it may write under its own name is for itself alone; no agent can have that name.
    return "-w" if downward or place == "agents/_coordinator/up/presence" else "rw" if everybodys else "--"


@pytest.mark.parametrize("client", ["coordinator", "north", "another agent"])
def test_a_member_can_do_what_is_its_own_and_nothing_else(figures: Figures, client: str) -> None:
    assert figures["logins"][client]
    assert figures["cells"][client] == {topic: _expected(client, topic) for topic in TOPICS}


@pytest.mark.parametrize("client", OUTSIDE)
def test_a_stranger_gets_in_nowhere(figures: Figures, client: str) -> None:
    assert not figures["logins"][client]
    assert set(figures["cells"][client].values()) == {"--"}
    assert figures["taken"][client] == []


def test_nobody_but_its_writer_makes_the_broker_keep_a_message(figures: Figures) -> None:
    assert set(figures["kept"].values()) == {"north", "coordinator"}
    assert [figures["kept"][topic] for topic in figures["kept"]] == [TOPICS[topic][0] for topic in figures["kept"]]


def test_a_denied_message_is_told_to_who_sent_it(figures: Figures) -> None:
    assert set(figures["taken"]["another agent"]) == set()
    assert set(figures["taken"]["north"]) == {topic for topic in TOPICS if _expected("north", topic) == "-w"}


def test_the_table_shows_every_cell(figures: Figures) -> None:
    lines = table(figures).splitlines()
    assert sum(line.count("no login") for line in lines) == len(OUTSIDE) * len(TOPICS)
    assert any(
        line.split() == ["fedpipe/access/broadcast/run", "rw", "r-", "r-", *["no", "login"] * 6] for line in lines
    )
