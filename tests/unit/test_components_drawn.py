"""Draws of components: the same as of a generator made for each, in whichever thread."""

import hashlib
import json
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from fedpipe_coordinator.aggregation.components import draw_components

ASKED = [(seed, round_, f"agent-{seed}", f"layers.{round_}.query") for seed in range(20) for round_ in range(1, 6)]


def fresh(seed: int, round_: int, agent: str, weight: str) -> tuple[int, ...]:
    """A draw by a generator that numpy makes anew."""
    named = json.dumps(["components", seed, round_, agent, weight]).encode()
    key = int.from_bytes(hashlib.sha256(named).digest()[:16], "little")
    keys = np.random.Philox(key=key).random_raw(33).tolist()
    return tuple(sorted(sorted(range(33), key=keys.__getitem__)[:7]))


def shared(asked: tuple[int, int, str, str]) -> tuple[int, ...]:
    """The same draw by the generator that a thread keeps."""
    seed, round_, agent, weight = asked
    return draw_components(seed, round_, agent, weight, 33, 7)


def test_every_draw_is_that_of_a_generator_of_its_own_in_any_thread() -> None:
    with ThreadPoolExecutor(4) as threads:
        drawn = list(threads.map(shared, ASKED))
    assert drawn == [fresh(*asked) for asked in ASKED]
    assert len(set(drawn)) > 0.9 * len(drawn)
