"""What autograd saves in a step of a large model, against the account of it; on the meta device, so nothing is held."""

import pytest

from benchmarks.memory_meta import saved_by_step


@pytest.mark.parametrize("model", ["meta-llama/Llama-3.1-8B", "google-bert/bert-large-uncased"])
def test_saved_bytes_of_a_large_model(model: str) -> None:
    found = saved_by_step(model)
    assert found.true_bytes > 3e9
    assert found.counted_bytes == pytest.approx(found.true_bytes, rel=1e-3)
