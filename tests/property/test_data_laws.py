"""Laws of reading: no bytes crash it, no content gets into a message, and the split depends on content alone."""

import json
import random
from pathlib import Path
from tempfile import TemporaryDirectory

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pyarrow import parquet

from fedpipe_data.errors import DataError, EmptyError
from fedpipe_data.examples import (
    CausalExample,
    ClassificationExample,
    Example,
    load_dataset,
    split_by_content,
)
from fedpipe_data.fields import Task
from fedpipe_data.source import DatasetSource
from fedpipe_data.tables import Row, read_rows
from fedpipe_data.write import write_jsonl

TEXTS = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=30).filter(lambda text: text.strip())
CLASSIFIED = st.builds(ClassificationExample, TEXTS, st.sampled_from(["a", "b", "ü"]))
CAUSAL = st.builds(CausalExample, st.just("") | TEXTS, TEXTS)
TASKS: list[tuple[Task, st.SearchStrategy[Example]]] = [
    ("sequence-classification", CLASSIFIED),
    ("causal-lm", CAUSAL),
]
FRACTIONS = st.floats(0.001, 0.999)
SECRET = "Zaphod"


def content(example: Example) -> tuple[str, ...]:
    parts = (example.text,) if isinstance(example, ClassificationExample) else (example.prompt, example.target)
    return tuple(" ".join(part.split()) for part in parts)


@pytest.mark.parametrize(("task", "strategy"), TASKS)
@given(data=st.data())
@settings(max_examples=50, deadline=None)
def test_written_examples_come_back_as_they_were(
    task: Task, strategy: st.SearchStrategy[Example], data: st.DataObject
) -> None:
    train = data.draw(st.lists(strategy, min_size=1, max_size=20))
    held_out = data.draw(st.lists(strategy, min_size=1, max_size=5))
    with TemporaryDirectory() as folder:
        assert write_jsonl(Path(folder) / "train.jsonl", train) == len(train)
        write_jsonl(Path(folder) / "held_out.jsonl", held_out)
        dataset = load_dataset(DatasetSource(path=Path(folder)), task)

    assert (list(dataset.train), list(dataset.held_out)) == (train, held_out)


@given(examples=st.lists(CLASSIFIED | CAUSAL, max_size=40), fraction=FRACTIONS, seed=st.integers())
@settings(deadline=None)
def test_the_split_is_exact_never_straddles_and_forgets_the_order(
    examples: list[Example], fraction: float, seed: int
) -> None:
    examples += examples[: len(examples) // 3]
    if len({content(example) for example in examples}) < 2:
        with pytest.raises(EmptyError, match="fewer than two different"):
            split_by_content(examples, fraction)
        return

    train, held_out = split_by_content(examples, fraction)

    assert train
    assert held_out
    assert sorted(map(repr, train + held_out)) == sorted(map(repr, examples))
    assert {content(example) for example in train}.isdisjoint(content(example) for example in held_out)
    shuffled = random.Random(seed).sample(examples, len(examples))
    again = split_by_content(shuffled, fraction)
    assert [set(map(repr, part)) for part in again] == [set(map(repr, part)) for part in (train, held_out)]


@given(fraction=st.floats(0.05, 0.95), kept=st.integers(200, 999))
@settings(max_examples=20, deadline=None)
def test_rows_stay_on_their_side_when_others_go(fraction: float, kept: int) -> None:
    examples = [ClassificationExample(f"text {number}", "a") for number in range(1000)]

    train, held_out = split_by_content(examples, fraction)
    fewer_train, fewer_held_out = split_by_content(examples[:kept], fraction)

    assert set(fewer_train) <= set(train)
    assert set(fewer_held_out) <= set(held_out)
    # Five standard deviations of a binomial share.
    assert abs(len(held_out) / 1000 - fraction) < 5 * (fraction * (1 - fraction) / 1000) ** 0.5


def sound(ending: str, path: Path) -> None:
    rows = [{"text": f"{SECRET} {i}", "label": i, "when": f"{SECRET}"} for i in range(30)]
    if ending == "jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    elif ending == "csv":
        path.write_text("text,label,when\n" + "".join(f'"{r["text"]}",{r["label"]},x\n' for r in rows))
    else:
        parquet.write_table(pa.Table.from_pylist(rows), path)


@pytest.mark.parametrize("ending", ["jsonl", "csv", "parquet"])
@given(data=st.data())
@settings(max_examples=150, deadline=None)
def test_no_damage_to_a_file_crashes_or_leaks(ending: str, data: st.DataObject) -> None:
    with TemporaryDirectory() as folder:
        path = Path(folder) / f"rows.{ending}"
        sound(ending, path)
        raw = bytearray(path.read_bytes())
        for _ in range(data.draw(st.integers(1, 3))):
            start = data.draw(st.integers(0, len(raw)))
            end = data.draw(st.integers(start, min(len(raw), start + 8)))
            raw[start:end] = data.draw(st.binary(max_size=4))
        path.write_bytes(raw)
        said = ""
        rows: list[Row] = []
        try:
            rows = list(read_rows(path))
        except DataError as error:
            said = str(error)

    assert bool(rows) != bool(said)
    assert SECRET not in said
