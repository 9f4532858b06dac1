"""The topic tree: what is built can be taken apart, and nothing else is accepted."""

import pytest

from fedpipe_wire.packets import matches, packet_bytes
from fedpipe_wire.topics import MAX_CHUNKS, Address, TopicError, Topics, check_name

TOPICS = Topics("hospitals")
SHA = "0123456789abcdef" * 4


@pytest.mark.parametrize(
    ("topic", "address"),
    [
        (TOPICS.up("icu-3", "report"), Address("icu-3", "up", "report")),
        (TOPICS.down("icu-3", "task"), Address("icu-3", "down", "task")),
        (TOPICS.up_chunk("icu-3", SHA, 17), Address("icu-3", "up", "blob", SHA, 17)),
        (TOPICS.down_chunk("icu-3", SHA, 17), Address("icu-3", "down", "blob", SHA, 17)),
        (TOPICS.broadcast("run"), Address(None, "broadcast", "run")),
        (TOPICS.broadcast_chunk(SHA, 0), Address(None, "broadcast", "blob", SHA, 0)),
    ],
)
def test_a_topic_comes_apart_as_it_was_put_together(topic: str, address: Address) -> None:
    assert TOPICS.parse(topic) == address


@pytest.mark.parametrize(
    "topic",
    [
        "",
        "fedpipe/hospitals",
        "fedpipe/banks/agents/icu/up/report",
        "fedpipe/hospitals/agents/icu/sideways/report",
        "fedpipe/hospitals/agents/ICU/up/report",
        "fedpipe/hospitals/agents//up/report",
        "fedpipe/hospitals/agents/../up/report",
        "fedpipe/hospitals/agents/icu/down/blob/" + SHA,
        "fedpipe/hospitals/agents/icu/sideways/blob/" + SHA + "/0",
        "fedpipe/hospitals/agents/icu/up/blob/" + SHA,
        "fedpipe/hospitals/agents/icu/up/blob/" + SHA.upper() + "/0",
        "fedpipe/hospitals/agents/icu/up/blob/" + SHA[1:] + "/0",
        "fedpipe/hospitals/agents/icu/up/blob/" + SHA + "/-1",
        "fedpipe/hospitals/agents/icu/up/blob/" + SHA + "/+1",
        "fedpipe/hospitals/agents/icu/up/blob/" + SHA + "/\u0661",
        f"fedpipe/hospitals/agents/icu/up/blob/{SHA}/{MAX_CHUNKS}",
        "fedpipe/hospitals/agents/icu/up/blob/" + SHA + "/" + "9" * 5000,
        "fedpipe/hospitals/broadcast/run/extra",
    ],
)
def test_another_topic_is_refused(topic: str) -> None:
    with pytest.raises(TopicError) as caught:
        TOPICS.parse(topic)
    assert len(str(caught.value)) < 400


@pytest.mark.parametrize("name", ["a", "a1", "icu-3.ward_b", "x" * 64])
def test_usable_names(name: str) -> None:
    assert check_name(name, "agent name") == name


@pytest.mark.parametrize("name", ["", "A", "a/b", "+", "#", "a+", "-a", "a-", ".", "a b", "\u00e4", "a\n", "x" * 65])
def test_names_that_could_mean_another_topic_are_refused(name: str) -> None:
    with pytest.raises(TopicError, match="agent name"):
        check_name(name, "agent name")
    with pytest.raises(TopicError, match="federation name"):
        Topics(name)


def test_each_side_hears_what_it_must_and_no_more() -> None:
    up, down = TOPICS.up_chunk("icu", SHA, 3), TOPICS.down("icu", "task")
    other, everyone = TOPICS.down("ward", "task"), TOPICS.broadcast_chunk(SHA, 3)
    heard = {
        pattern: [topic for topic in (up, down, other, everyone) if matches(pattern, topic)]
        for pattern in (TOPICS.all_up(), TOPICS.all_down("icu"), TOPICS.all_broadcast())
    }
    assert heard == {
        TOPICS.all_up(): [up],
        TOPICS.all_down("icu"): [down],
        TOPICS.all_broadcast(): [everyone],
    }


@pytest.mark.parametrize(
    ("pattern", "topic", "fits"),
    [
        ("#", "a/b", True),
        ("#", "$SYS/x", False),
        ("+/x", "$SYS/x", False),
        ("a/#", "a", True),
        ("a/+", "a", False),
        ("a/+", "a/", True),
        ("a/+/c", "a/b/c", True),
        ("a/+/c", "a/b/b/c", False),
        ("a/b", "a/b/c", False),
        ("a", "A", False),
    ],
)
def test_patterns_match_as_the_standard_says(pattern: str, topic: str, fits: bool) -> None:  # noqa: FBT001 -- a table's column
    assert matches(pattern, topic) is fits


def test_the_size_of_a_packet_is_never_underestimated() -> None:
    # By hand: 1 type, 1 length, 2 + 3 topic, 2 packet id, 1 property length, 1 + 2 + 1 + 2 + 1 property, 4 payload.
    assert 21 <= packet_bytes("a/b", b"abcd", {"v": "1"}) <= 21 + 8
