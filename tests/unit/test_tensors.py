"""Tensor files: what is refused before it is parsed, and what comes back as it was written."""

import hashlib
import json
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from fedpipe_profiles.model import ModelShape, ParameterShape, WeightShape
from fedpipe_profiles.plan import Plan, Prediction
from fedpipe_wire.tensor_header import shown, spec_of
from fedpipe_wire.tensors import (
    CHUNK_BYTES,
    TensorError,
    TensorFile,
    TensorSpec,
    TensorWriter,
    a_name,
    adapter_spec,
    b_name,
    check_tensors,
    head_name,
    inspect_header,
    update_spec,
    write_tensors,
)

MIB = 1024 * 1024
SHAPE = ModelShape(
    model_type="tiny",
    layers=1,
    hidden_size=6,
    intermediate_size=8,
    heads=2,
    vocabulary_size=10,
    weights=(
        WeightShape(name="l.0.q", d_out=6, d_in=6),
        WeightShape(name="l.0.up", d_out=8, d_in=6),
    ),
    other_parameters=60,
    head=(
        ParameterShape(name="classifier.weight", shape=(3, 6)),
        ParameterShape(name="classifier.bias", shape=(3,)),
    ),
    fingerprint="0" * 64,
)


def raw_file(path: Path, header: object, data: bytes = b"") -> Path:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + data)
    return path


def entry(begin: int, end: int, shape: list[int], dtype: str = "F32") -> dict[str, object]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


MALFORMED: dict[str, Callable[[Path], object]] = {
    "empty": lambda p: p.write_bytes(b""),
    "shorter than its length field": lambda p: p.write_bytes(b"\x01\x00\x00"),
    "header past the end": lambda p: p.write_bytes((1 << 60).to_bytes(8, "little") + b"{}"),
    "header over the limit": lambda p: raw_file(p, b"{}" + b" " * 5000),
    "not JSON": lambda p: raw_file(p, b"{nonsense"),
    "not UTF-8": lambda p: raw_file(p, b'{"\xff": 1}'),
    "nested too deep": lambda p: raw_file(p, b"[" * 2000 + b"]" * 2000),
    "a number without end": lambda p: raw_file(p, b'{"a": ' + b"9" * 4500 + b"}"),
    "a list": lambda p: raw_file(p, [1, 2]),
    "a name twice": lambda p: raw_file(
        p, b'{"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]},'
        b'"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]}}', b"x"
    ),
    "entry is a string": lambda p: raw_file(p, {"a": "F32"}),
    "no offsets": lambda p: raw_file(p, {"a": {"dtype": "F32", "shape": [1]}}, b"1234"),
    "a foreign key": lambda p: raw_file(p, {"a": entry(0, 4, [1]) | {"code": "x"}}, b"1234"),
    "unknown dtype": lambda p: raw_file(p, {"a": entry(0, 4, [1], "O")}, b"1234"),
    "negative size": lambda p: raw_file(p, {"a": entry(0, 4, [-1])}, b"1234"),
    "a size that is true": lambda p: raw_file(p, {"a": entry(0, 4, [True])}, b"1234"),
    "a fractional size": lambda p: raw_file(p, {"a": {**entry(0, 4, [1]), "shape": [1.0]}}, b"1234"),
    "a size of 4,000 digits": lambda p: raw_file(p, {"a": entry(0, 4, [10**4000])}, b"1234"),
    "nine dimensions": lambda p: raw_file(p, {"a": entry(0, 4, [1] * 9)}, b"1234"),
    "shape and bytes differ": lambda p: raw_file(p, {"a": entry(0, 4, [2])}, b"1234"),
    "end before begin": lambda p: raw_file(p, {"a": entry(4, 0, [1])}, b"1234"),
    "a gap": lambda p: raw_file(p, {"a": entry(4, 8, [1])}, b"12345678"),
    "an overlap": lambda p: raw_file(p, {"a": entry(0, 4, [1]), "b": entry(0, 4, [1])}, b"1234"),
    "an overlap that leaves bytes over": lambda p: raw_file(
        p, {"a": entry(0, 8, [2]), "b": entry(4, 8, [1])}, b"123456789abc"
    ),
    "data past the end": lambda p: raw_file(p, {"a": entry(0, 8, [2])}, b"1234"),
    "bytes left over": lambda p: raw_file(p, {"a": entry(0, 4, [1])}, b"12345"),
    "too many tensors": lambda p: raw_file(p, {str(i): entry(0, 0, [0]) for i in range(20)}),
    "file over the limit": lambda p: raw_file(p, {"a": entry(0, 8000, [2000])}, b"\0" * 8000),
}  # fmt: skip


@pytest.mark.parametrize("case", MALFORMED)
def test_malformed_file_is_refused(tmp_path: Path, case: str) -> None:
    path = tmp_path / "update.safetensors"
    MALFORMED[case](path)
    with pytest.raises(TensorError):
        inspect_header(path, max_bytes=7000, max_header_bytes=4700, max_tensors=10)


@settings(deadline=None, max_examples=60)
@given(st.binary(max_size=200), st.integers(0, 250))
def test_any_bytes_are_refused_or_read(tmp_path_factory: pytest.TempPathFactory, junk: bytes, cut: int) -> None:
    path = tmp_path_factory.mktemp("junk") / "f"
    write_tensors(path, {"a": np.arange(6, dtype=np.float32)})
    whole = path.read_bytes()
    path.write_bytes(whole[:cut] + junk)
    try:
        header = inspect_header(path, max_bytes=MIB)
    except TensorError:
        return
    with TensorFile(path) as file:
        assert {name: file.read(name).nbytes for name in header} == {name: spec.nbytes for name, spec in header.items()}


DTYPES = st.sampled_from([np.float32, np.float64, np.float16, np.int64, np.uint8, np.bool_])


@settings(deadline=None, max_examples=50)
@given(
    st.dictionaries(
        st.text(min_size=1, max_size=20).filter(lambda name: name != "__metadata__"),
        DTYPES.flatmap(lambda dtype: hnp.arrays(dtype, hnp.array_shapes(min_dims=0, min_side=0, max_side=4))),
        max_size=6,
    )
)
def test_library_reads_what_we_write_and_we_read_what_it_writes(
    tmp_path_factory: pytest.TempPathFactory, tensors: dict[str, np.ndarray]
) -> None:
    folder = tmp_path_factory.mktemp("round")
    write_tensors(folder / "ours", tensors)
    safetensors.numpy.save_file(
        {name: np.array(value, order="C") for name, value in tensors.items()}, folder / "theirs"
    )
    theirs = safetensors.numpy.load_file(folder / "ours")
    with TensorFile(folder / "theirs") as file:
        ours = {name: file.read(name) for name in file.header}
    assert set(ours) == set(theirs) == set(tensors)
    for name, value in tensors.items():
        for got in (ours[name], theirs[name]):
            assert got.dtype == value.dtype
            assert got.shape == value.shape
            assert got.tobytes() == value.tobytes()


def test_same_tensors_give_same_bytes_in_any_order(tmp_path: Path) -> None:
    tensors = {name: np.full((2, 3), i, np.float32) for i, name in enumerate("bca")}
    write_tensors(tmp_path / "one", tensors)
    write_tensors(tmp_path / "two", dict(sorted(tensors.items())))
    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()


def test_strided_array_is_written_by_value(tmp_path: Path) -> None:
    values = np.arange(24, dtype=np.float32).reshape(4, 6)
    write_tensors(tmp_path / "f", {"t": values.T[::2]})
    with TensorFile(tmp_path / "f") as file:
        assert file.read("t").tolist() == [[0, 6, 12, 18], [2, 8, 14, 20], [4, 10, 16, 22]]


def test_unfinished_file_leaves_the_old_one(tmp_path: Path) -> None:
    path = tmp_path / "f"
    write_tensors(path, {"a": np.zeros(2, np.float32)})
    before = path.read_bytes()
    spec = {"a": TensorSpec((2,)), "b": TensorSpec((2,))}
    with pytest.raises(TensorError, match="never written"), TensorWriter(path, spec) as writer:
        writer.write("a", np.ones(2, np.float32))
    with pytest.raises(KeyboardInterrupt), TensorWriter(path, spec) as writer:
        raise KeyboardInterrupt
    assert path.read_bytes() == before
    assert [item.name for item in tmp_path.iterdir()] == ["f"]


def test_leftover_of_a_killed_writer_does_no_harm(tmp_path: Path) -> None:
    (tmp_path / ".f.part").write_bytes(b"x" * 1000)
    write_tensors(tmp_path / "f", {"a": np.ones(2, np.float32)})
    assert inspect_header(tmp_path / "f", max_bytes=MIB) == {"a": TensorSpec((2,))}
    assert [item.name for item in tmp_path.iterdir()] == ["f"]


def test_writer_refuses_what_does_not_fit(tmp_path: Path) -> None:
    with TensorWriter(tmp_path / "f", {"a": TensorSpec((2,))}) as writer:
        with pytest.raises(TensorError, match=r"expected F32 \[2\], got F32 \[3\]"):
            writer.write("a", np.zeros(3, np.float32))
        with pytest.raises(TensorError, match=r"expected F32 \[2\], got F64 \[2\]"):
            writer.write("a", np.zeros(2))
        with pytest.raises(TensorError, match="not declared"):
            writer.write("b", np.zeros(2, np.float32))
        writer.write("a", np.zeros(2, np.float32))
        with pytest.raises(TensorError, match="written twice"):
            writer.write("a", np.zeros(2, np.float32))


def test_hash_of_a_file_is_that_of_its_bytes(tmp_path: Path) -> None:
    tensors: dict[str, np.ndarray] = {
        "a": np.arange(6, dtype=np.float32).reshape(2, 3),
        "b": np.zeros((0, 2), np.float32),
        "c": np.array(7, np.float64),
    }
    spec = {name: spec_of(values) for name, values in tensors.items()}
    with TensorWriter(tmp_path / "f", spec, metadata={"by": "test"}, hashed=True) as writer:
        writer.write("a", tensors["a"].copy("F"))
        with pytest.raises(TensorError, match=r"expected tensor 'b' of a hashed file, got 'c'"):
            writer.write("c", tensors["c"])
        with pytest.raises(TensorError, match=r"f has no hash: write it hashed, and whole \(2 to come\)"):
            _ = writer.sha256
        writer.write("b", tensors["b"])
        writer.write("c", tensors["c"])
    assert writer.sha256 == hashlib.sha256((tmp_path / "f").read_bytes()).hexdigest()
    with TensorWriter(tmp_path / "g", spec) as plain:
        for name in ("c", "a", "b"):
            plain.write(name, tensors[name])
    with pytest.raises(TensorError, match="no hash"):
        _ = plain.sha256


def test_threads_may_read_one_file_at_once(tmp_path: Path) -> None:
    tensors = {f"t{number}": np.full((64, 64), number, np.float32) for number in range(40)}
    write_tensors(tmp_path / "f", tensors)
    with TensorFile(tmp_path / "f") as file, ThreadPoolExecutor(4) as pool:
        for _ in range(5):
            for name, values in zip(tensors, pool.map(file.read, tensors), strict=True):
                np.testing.assert_array_equal(values, tensors[name])


def test_file_cut_after_its_header_was_read_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "f"
    write_tensors(path, {"a": np.ones(100_000, np.float32)})
    with TensorFile(path) as file:
        with path.open("r+b") as other:
            other.truncate(1000)
        with pytest.raises(TensorError, match="cut short"):
            file.read("a")


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_values_that_are_not_finite_are_named(tmp_path: Path, bad: float) -> None:
    values = np.ones((3, 2), np.float32)
    values[1, 1] = bad
    write_tensors(tmp_path / "f", {"good": np.ones(2, np.float32), "w.lora_A": values})
    with TensorFile(tmp_path / "f") as file, pytest.raises(TensorError, match=r"w\.lora_A: 1 of 6"):
        file.check_finite()


def test_check_tensors_names_every_kind_of_difference() -> None:
    expected = {"a": TensorSpec((2, 3)), "b": TensorSpec((2,)), "c": TensorSpec((1,))}
    got = {"a": TensorSpec((3, 2)), "b": TensorSpec((2,), "F16"), "d": TensorSpec((1,))}
    check_tensors(expected, expected)
    with pytest.raises(TensorError) as caught:
        check_tensors(got, expected)
    message = str(caught.value)
    assert "missing c" in message
    assert "unexpected d" in message
    assert "a: expected F32 [2, 3], got F32 [3, 2]" in message
    assert "b: expected F32 [2], got F16 [2]" in message


@pytest.mark.parametrize("name", ["\x1b[2Jowned", "\ud800", "a\nb", "\u202e", "n" * 400, "a\x07" * 200])
def test_a_hostile_name_is_shown_harmlessly_and_in_bounds(tmp_path: Path, name: str) -> None:
    bad: dict[str, tuple[object, bytes]] = {
        "unfit": (entry(0, 4, [1]), b"1234"),
        "gap": (entry(4, 8, [1]), b"12345678"),
        "size": (entry(0, 4, [2]), b"1234"),
        "form": ({"dtype": name}, b"1234"),
        "nan": (entry(0, 4, [1]), b"\xff" * 4),
    }
    for kind, (form, data) in bad.items():
        path = raw_file(tmp_path / kind, {name: form}, data)
        said = _refusal(path, unfit=kind == "unfit")
        assert said.isprintable(), kind
        assert len(said.encode()) < 3000, kind


def _refusal(path: Path, *, unfit: bool) -> str:
    try:
        header = inspect_header(path, max_bytes=10_000)
        if unfit:
            check_tensors(header, {})
        with TensorFile(path) as tensors:
            tensors.check_finite()
    except TensorError as error:
        return str(error)
    pytest.fail("it was let in")


def plan(components: dict[str, tuple[int, ...]]) -> Plan:
    return Plan(
        agent="a", round=1, bits=4, batch_size=1, gradient_checkpointing=False, sequence_length=8,
        learning_rate=1e-3, seed=0, examples=1, deadline_s=1.0, scale=1.0, global_rank=4,
        components=components, bound="nothing", reason="",
        predicted=Prediction(peak_bytes=1, round_s=1.0, compute_s=0.0, up_bytes=0, down_bytes=0),
    )  # fmt: skip


def test_update_holds_planned_components_and_the_whole_head() -> None:
    assert update_spec(SHAPE, plan({"l.0.up": (1, 3), "l.0.q": ()})) == {
        a_name("l.0.up"): TensorSpec((2, 6)),
        b_name("l.0.up"): TensorSpec((8, 2)),
        head_name("classifier.weight"): TensorSpec((3, 6)),
        head_name("classifier.bias"): TensorSpec((3,)),
    }


def test_global_adapter_holds_every_weight_at_one_rank() -> None:
    spec = adapter_spec(SHAPE, ["l.0.q", "l.0.up"], 4)
    assert spec["l.0.q.lora_A"] == TensorSpec((4, 6))
    assert spec["l.0.up.lora_B"] == TensorSpec((8, 4))
    assert sum(item.nbytes for item in spec.values()) == 4 * (4 * (6 + 6 + 6 + 8) + 18 + 3)


def test_plan_of_another_model_is_refused() -> None:
    with pytest.raises(TensorError, match=r"no weight 'l\.9\.q'"):
        update_spec(SHAPE, plan({"l.9.q": (0,)}))


@pytest.mark.parametrize("at", [0, CHUNK_BYTES // 4 - 1, CHUNK_BYTES // 4, 3 * CHUNK_BYTES // 4 - 5])
@pytest.mark.parametrize("wild", [np.nan, np.inf, -np.inf, 1e7])
def test_a_wild_value_is_found_wherever_it_stands(tmp_path: Path, at: int, wild: float) -> None:
    """Files are looked through in chunks: their borders, and a last chunk that is not full, are no hiding places."""
    values = np.zeros(3 * CHUNK_BYTES // 4 - 4, np.float32)
    write_tensors(tmp_path / "f", {"a": np.ones(3, np.float32), "b": values})
    with TensorFile(tmp_path / "f") as file:
        file.check_finite(1.0)
    values[at] = wild
    write_tensors(tmp_path / "f", {"a": np.ones(3, np.float32), "b": values})
    with TensorFile(tmp_path / "f") as file, pytest.raises(TensorError, match=f"b: 1 of {len(values)} values are"):
        file.check_finite(1e6)


@pytest.mark.parametrize("dtype", [bool, np.uint8, np.int64, np.float16, np.float64])
def test_values_of_every_dtype_are_looked_through(tmp_path: Path, dtype: type) -> None:
    write_tensors(tmp_path / "f", {"a": np.ones(5, dtype), "empty": np.ones((0, 3), dtype)})
    with TensorFile(tmp_path / "f") as file:
        file.check_finite()
        with pytest.raises(TensorError, match=r"5 of 5 values are beyond 0\.5, the largest is 1"):
            file.check_finite(0.5)


@given(st.text(max_size=600))
def test_names_are_told_harmlessly(name: str) -> None:
    assert shown(name).isprintable()
    assert shown(name).isascii()
    assert len(shown(name)) <= 10 * 120 + 2
