"""The transfer benchmark prints what it promises, and a blob costs no memory."""

from mosquitto_support import mosquitto_or_skip

from benchmarks.transfer import measure


def test_a_small_run_has_all_figures_and_sends_each_chunk_once() -> None:
    mosquitto_or_skip()
    figures = measure(96, seed=1, repeats=1)
    assert {"mib_per_s", "raw_mib_per_s", "ratio", "rss_growth_mib", "longest_stall_s"} <= figures.keys()
    assert figures["chunks_sent"] == figures["chunks"] == 384
    assert figures["ratio"] > 0
    # Less than the blob: it is in neither process's memory, and what is there does not grow with it.
    assert figures["rss_growth_mib"] < 64
