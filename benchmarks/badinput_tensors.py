"""Files that call themselves updates: a good one for a small plan, and what can be wrong with it.

Owns the bytes only.
"""

import gzip
import io
import json
import pickle
import zipfile
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from fedpipe_profiles.model import ModelShape, ParameterShape, WeightShape
from fedpipe_profiles.plan import Plan, Prediction
from fedpipe_wire.tensor_header import encode_header
from fedpipe_wire.tensors import update_spec

WIDTH, RANK = 64, 4
SHAPE = ModelShape(
    model_type="llama",
    layers=1,
    hidden_size=WIDTH,
    intermediate_size=WIDTH,
    heads=1,
    vocabulary_size=10,
    weights=(WeightShape(name="up", d_out=WIDTH, d_in=WIDTH), WeightShape(name="down", d_out=WIDTH, d_in=2 * WIDTH)),
    other_parameters=0,
    head=(ParameterShape(name="head.bias", shape=(3,)),),
    fingerprint="0" * 64,
)
PLAN = Plan(
    agent="mallory",
    round=1,
    bits=32,
    batch_size=4,
    gradient_checkpointing=False,
    sequence_length=16,
    learning_rate=1e-3,
    seed=1,
    examples=40,
    deadline_s=100.0,
    scale=1.0,
    global_rank=RANK,
    components={"up": (0, 1, 2, 3), "down": (1, 3)},
    predicted=Prediction(peak_bytes=1, round_s=1.0, compute_s=1.0, up_bytes=1, down_bytes=1),
    bound="nothing",
    reason="everything fits",
)
SPEC = update_spec(SHAPE, PLAN)
Table = dict[str, Any]


def _good() -> tuple[Table, bytes]:
    head, _ = encode_header(SPEC, None)
    table: Table = json.loads(head[8:])
    size = sum(spec.nbytes for spec in SPEC.values())
    return table, np.full(size // 4, 0.01, np.float32).tobytes()


def _file(header: bytes, data: bytes, length: int | None = None) -> bytes:
    return (len(header) if length is None else length).to_bytes(8, "little") + header + data


def _with(**changes: Any) -> bytes:
    """The good file with other entries in its header; None removes one."""
    table, data = _good()
    for name, entry in changes.items():
        if entry is None:
            del table[name]
        else:
            table[name] = entry
    return _file(json.dumps(table).encode(), data)


def _entry(name: str, **changes: Any) -> bytes:
    """The good file with one entry changed."""
    table, _ = _good()
    return _with(**{name: table[name] | changes})


def _renamed(new: str) -> bytes:
    table, data = _good()
    table[new] = table.pop("up.lora_A")
    return _file(json.dumps(table).encode(), data)


def _values(value: float, count: int = 1) -> bytes:
    table, data = _good()
    values = np.frombuffer(data, np.float32).copy()
    values[-count:] = value
    return _file(json.dumps(table).encode(), values.tobytes())


def _zip() -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("archive/data.pkl", pickle.dumps({"up": 1}))
    return file.getvalue()


def _twice() -> bytes:
    table, data = _good()
    text = json.dumps(table)
    again = json.dumps({"up.lora_A": table["up.lora_A"]})
    return _file(f"{text[:-1]}, {again[1:]}".encode(), data)


def _overlapping() -> bytes:
    table, _ = _good()
    return _with(**{"up.lora_B": table["up.lora_B"] | {"data_offsets": table["up.lora_A"]["data_offsets"]}})


def _gapped() -> bytes:
    table, data = _good()
    for name in table:
        table[name]["data_offsets"] = [each + 4 for each in table[name]["data_offsets"]]
    return _file(json.dumps(table).encode(), b"\0" * 4 + data)


def _deep(levels: int) -> bytes:
    return _file(b'{"up.lora_A":' + b"[" * levels + b"]" * levels + b"}", b"")


def _wide(names: int) -> bytes:
    empty = {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]}
    table = {f"{number:x}": empty for number in range(names)}
    return _file(json.dumps(table, separators=(",", ":")).encode(), b"")


def _header(text: bytes) -> bytes:
    return _file(text, _good()[1])


def whole() -> bytes:
    """The good one."""
    table, data = _good()
    return _file(json.dumps(table).encode(), data)


NOT_JSON = "the header is not JSON"
MALFORMED = "malformed entry"
CUT = "cut short"
UNFIT = "do not fit the plan"
FILES: Mapping[str, tuple[Callable[[], bytes], str]] = {
    "empty file": (lambda: b"", CUT),
    "seven bytes": (lambda: b"\1" * 7, CUT),
    "cut in the header": (lambda: whole()[:100], CUT),
    "cut in the data": (lambda: whole()[:-1000], "the tensors take"),
    "cut by one byte": (lambda: whole()[:-1], "the tensors take"),
    "one byte more": (lambda: whole() + b"\0", "the tensors take"),
    "a second file behind the first": (lambda: whole() * 2, "the tensors take"),
    "header longer than the file": (lambda: _file(b"{}", b"", 1 << 20), CUT),
    "header of 2^63 bytes": (lambda: _file(b"{}", b"", 1 << 63), CUT),
    "header of 2^64 - 1 bytes": (lambda: _file(b"{}", b"", (1 << 64) - 1), CUT),
    "header of a million spaces": (lambda: _file(b" " * 1_000_500, b""), "at most 1000000 are read"),
    "header of no bytes": (lambda: _file(b"", _good()[1]), NOT_JSON),
    "header is a list": (lambda: _header(b"[]"), "expected an object"),
    "header is null": (lambda: _header(b"null"), "expected an object"),
    "header is not UTF-8": (lambda: _header(b'{"\xff\xfe": 1}'), NOT_JSON),
    "header in UTF-16": (lambda: _header('{"up.lora_A": 1}'.encode("utf-16")), NOT_JSON),
    "lists 100,000 deep": (lambda: _deep(100_000), NOT_JSON),
    "objects 10,000 deep": (lambda: _header(b'{"a":' * 10_000), NOT_JSON),
    "a number of 10,000 digits": (lambda: _header(b'{"up.lora_A":' + b"9" * 10_000 + b"}"), NOT_JSON),
    "15,000 tensors of nothing": (lambda: _wide(15_000), "at most 5 are read"),
    "a name twice": (_twice, "a name occurs twice"),
    "a path as a name": (lambda: _renamed("../../etc/passwd"), UNFIT),
    "a name with terminal escapes": (lambda: _renamed("\x1b]0;owned\x07\x1b[2J"), UNFIT),
    "a name with half a character": (lambda: _renamed("\ud800"), UNFIT),
    "a name of 10,000 characters": (lambda: _renamed("n" * 10_000), MALFORMED),
    "an entry with half a character": (lambda: _entry("up.lora_A", dtype="\ud800\x1b[2J"), MALFORMED),
    "no name": (lambda: _renamed(""), UNFIT),
    "a missing tensor": (lambda: _with(**{"up.lora_A": None}), "begins at|the tensors take"),
    "no tensor": (lambda: _file(b"{}", b""), UNFIT),
    "half as wide, twice as precise": (lambda: _entry("up.lora_A", dtype="F64", shape=[RANK, WIDTH // 2]), UNFIT),
    "whole numbers": (lambda: _entry("up.lora_A", dtype="I32"), UNFIT),
    "a dtype that there is not": (lambda: _entry("up.lora_A", dtype="F99"), MALFORMED),
    "a dtype that is a list": (lambda: _entry("up.lora_A", dtype=["F32"]), MALFORMED),
    "a transposed factor": (lambda: _entry("up.lora_A", shape=[WIDTH, RANK]), UNFIT),
    "a negative shape": (lambda: _entry("up.lora_A", shape=[-RANK, -WIDTH]), MALFORMED),
    "a shape of truths": (lambda: _entry("up.lora_A", shape=[True, RANK * WIDTH]), MALFORMED),
    "a shape of fractions": (lambda: _entry("up.lora_A", shape=[4.0, 64.0]), MALFORMED),
    "a shape of a thousand dimensions": (lambda: _entry("up.lora_A", shape=[1] * 1000), MALFORMED),
    "a shape of 2^248 numbers": (lambda: _entry("up.lora_A", shape=[1 << 62] * 4), "needs"),
    "a shape of 4,000 digits": (lambda: _entry("up.lora_A", shape=[10**4000] * 6), MALFORMED),
    "no shape": (lambda: _with(**{"up.lora_A": {"dtype": "F32", "data_offsets": [0, 4]}}), MALFORMED),
    "negative offsets": (lambda: _entry("up.lora_A", data_offsets=[-1024, 0]), MALFORMED),
    "offsets turned round": (lambda: _entry("up.lora_A", data_offsets=[1024, 0]), "needs"),
    "offsets of 2^64": (lambda: _entry("up.lora_A", data_offsets=[1 << 64, (1 << 64) + 1024]), MALFORMED),
    "overlapping tensors": (_overlapping, "begins at|needs"),
    "a gap before the first": (_gapped, "begins at"),
    "one NaN": (lambda: _values(float("nan")), "not finite"),
    "one infinity": (lambda: _values(float("-inf")), "not finite"),
    "all NaN": (lambda: _values(float("nan"), 500), "not finite"),
    "values of 1e38": (lambda: _values(1e38, 500), "are beyond"),
    "a zip of PyTorch": (_zip, CUT),
    "a pickle": (lambda: pickle.dumps({"up": [1.0] * 1000}), CUT),
    "an update in gzip": (lambda: gzip.compress(whole()), CUT),
    "zeros": (lambda: bytes(10_000), NOT_JSON),
}
