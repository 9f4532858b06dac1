"""What seals and records cost, in microseconds of processor time: one message, one line, one statement.

    python -m benchmarks.seals [--seed N] [--json FILE] [--repeats N]

Each figure is the median over batches of the processor time of one call, in this process, without network. `seal` and
`inspect` are of a report of 600 bytes, and of the largest message (1 MB); `inspect` lets a new counter in each time.
`chain` makes one line of a record with its hash, as a plain note and as the plans of ten agents with 224 weights each.
`heard` is what storing what was heard adds to a transaction that is written anyway; `record` one synced line of the
federation's record, wall time, on the disk of the temporary folder; `verify` judges one line of a record.
"""

import argparse
import json
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from itertools import count
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from fedpipe_coordinator.audit.federation_audit import Entry, FederationAudit
from fedpipe_coordinator.store import FEDERATION, Newest, SqliteStore
from fedpipe_wire.hash_chain import FIRST, chained, read_chain, written
from fedpipe_wire.messages import MAX_MESSAGE_BYTES
from fedpipe_wire.replay import Heard
from fedpipe_wire.sealing import RETAINED_BY_AGENTS, Inspector, Sealer, key_id
from fedpipe_wire.transport import Received

TOPIC = "fedpipe/benchmark/agents/a/up/report"
REPORT_BYTES = 600
BATCH = 50
MICRO = 1e6


def measure(call: Callable[[], object], batches: int, clock: Callable[[], float] = time.process_time) -> float:
    """Microseconds of one call: the median over batches."""
    call()
    found = []
    for _ in range(batches):
        begin = clock()
        for _ in range(BATCH):
            call()
        found.append((clock() - begin) / BATCH * MICRO)
    return statistics.median(found)


def of_messages(draw: random.Random, batches: int) -> dict[str, float]:
    """Sealing and judging one message."""
    key = Ed25519PrivateKey.from_private_bytes(draw.randbytes(32))
    public = key.public_key()
    sealer = Sealer("a", count(1).__next__, key)
    inspector = Inspector(lambda _: {key_id(public): public}, {}, RETAINED_BY_AGENTS)
    found = {}
    for name, size in (("", REPORT_BYTES), ("_largest", MAX_MESSAGE_BYTES)):
        payload = draw.randbytes(size)
        here = batches if size == REPORT_BYTES else max(3, batches // 20)
        found[f"seal{name}_us"] = measure(partial(sealer.seal, TOPIC, payload), here)
        seals = [sealer.seal(TOPIC, payload).properties() for _ in range(BATCH * here + 1)]
        packets = [Received(TOPIC, payload, retained=False, properties=properties) for properties in seals]
        found[f"inspect{name}_us"] = measure(partial(_inspect_next, inspector, iter(packets)), here)
    return found


def _inspect_next(inspector: Inspector, packets: Iterator[Received]) -> None:
    inspector.inspect("a", next(packets))


def of_lines(draw: random.Random, batches: int) -> dict[str, float]:
    """Chaining one line, and judging one."""
    note = {"number": 7, "time": "2030-01-01T00:00:00.000+00:00", "kind": "evaluated", "round": 3, "agent": "a"}
    note |= {"text": "a: loss 1.234 over 40 examples", "data": {"loss": draw.random(), "examples": 40}}
    ranks = {f"model.layers.{layer}.mlp.{name}": 16 for layer in range(32) for name in "abcdefg"}
    plans = {**note, "data": {"plans": {f"silo-{at}": {"bits": 8, "ranks": ranks} for at in range(10)}}}
    line, texts, newest = chained(note), [], FIRST
    for number in range(1000):
        line = chained({**note, "number": number}, newest)
        newest = line["hash"]
        texts.append(written(line).encode())
    return {
        "chain_us": measure(lambda: chained(note), batches),
        "chain_plans_us": measure(lambda: chained(plans), max(3, batches // 20)),
        "verify_us": measure(lambda: read_chain(texts), 1) / len(texts),
    }


def of_disk(folder: Path, batches: int) -> dict[str, float]:
    """Keeping what was heard, and writing one line of the federation's record."""
    store, numbers, heard = SqliteStore(folder / "store.db"), count(1), [Heard()]

    def without() -> None:
        store.keep_newest(FEDERATION, "audit.jsonl", Newest(next(numbers), FIRST))
        store.flush()

    def with_heard() -> None:
        heard[0] = heard[0].with_counter(next(numbers))
        store.hear({"a/0123456789abcdef": heard[0]})
        without()

    few = max(3, batches // 20)
    added = measure(with_heard, few) - measure(without, few)
    store.close()
    audit = FederationAudit(folder)
    record = measure(lambda: audit.append_all([Entry("refused", "a", "x" * 200)]), 3, time.perf_counter)
    return {"heard_us": added, "record_us": record}


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--repeats", type=int, default=40, help="batches of 50 calls")
    arguments = parser.parse_args()
    draw = random.Random(arguments.seed)
    with tempfile.TemporaryDirectory() as folder:
        found = of_messages(draw, arguments.repeats) | of_lines(draw, arguments.repeats)
        found |= of_disk(Path(folder), arguments.repeats)
    for name, value in found.items():
        sys.stdout.write(f"{name:24} {value:10.1f}\n")
    if arguments.json is not None:
        arguments.json.write_text(json.dumps(found, indent=2) + "\n")


if __name__ == "__main__":
    main()
