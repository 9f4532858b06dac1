"""The demo's corpus: sentences of installed sources, without importing them."""

import subprocess
import sys
from collections import Counter
from importlib.util import find_spec
from pathlib import Path

import pytest

from fedpipe_coordinator.demo.docstrings import (
    LIBRARIES,
    SENTENCES_PER_FILE,
    MissingLibrariesError,
    find_roots,
    first_sentence,
    read_docstrings,
)
from fedpipe_data.errors import DataError

SENTENCES = [
    ("Return the number of nodes.\n\nMore of it.", "Return the number of nodes."),
    ("Return the number of nodes. It is an int.", "Return the number of nodes."),
    ("\n    Return the\n    number   of nodes\n\n    More.", "Return the number of nodes"),
    ("Round to a multiple, e.g. of two, i.e. up. More.", "Round to a multiple, e.g. of two, i.e. up."),
    ("Is this a long question? Yes, it is.", "Is this a long question?"),
    (
        "See `torch.nn.functional` in version 2.1 for the rest.",
        "See `torch.nn.functional` in version 2.1 for the rest.",
    ),
    ("Too short.", None),
    ("A very long one " * 20, None),
    ("torch.nn.functional.scaled_dot_product", None),
    ("----------------------------------------", None),
    (":mod:`sympy.core` ----------------------", None),
    ("", None),
]


@pytest.mark.parametrize(("docstring", "sentence"), SENTENCES)
def test_the_first_sentence(docstring: str, sentence: str | None) -> None:
    assert first_sentence(docstring) == sentence


def library(root: Path, name: str, files: dict[str, str | bytes]) -> Path:
    for path, source in files.items():
        file = root / name / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(source if isinstance(source, bytes) else source.encode())
    return root / name


def functions(label: str, count: int) -> str:
    return "".join(f'def f{i}():\n    """Compute the {label} number {i} exactly."""\n' for i in range(count))


def test_sentences_of_modules_classes_and_functions(tmp_path: Path) -> None:
    source = (
        '"""The module has a sentence."""\n'
        'class A:\n    """The class has a sentence."""\n'
        '    async def f(self):\n        """The method has a sentence."""\n'
        '        "No docstring at all, this one."\n'
        "raise SystemExit('executed')\n"
    )
    root = library(tmp_path, "one", {"a.py": source, "copy.py": source})

    examples = read_docstrings({"one": root}, seed=0)

    assert sorted(example.text for example in examples) == [
        "The class has a sentence.",
        "The method has a sentence.",
        "The module has a sentence.",
    ]
    assert {example.label for example in examples} == {"one"}


def test_what_two_libraries_share_is_in_neither(tmp_path: Path) -> None:
    shared = '"""Both libraries say this sentence."""\n'
    roots = {name: library(tmp_path, name, {"a.py": shared + functions(name, 3)}) for name in ("one", "two")}

    texts = [example.text for example in read_docstrings(roots, seed=0)]

    assert len(texts) == 6
    assert "Both libraries say this sentence." not in texts


def test_broken_files_and_tests_are_left_out(tmp_path: Path) -> None:
    root = library(
        tmp_path,
        "one",
        {
            "good.py": '"""This sentence is fine."""\nx = "\\d"\n',
            "latin.py": b'"""This one is caf\xe9 coded."""\n',
            "coded.py": b'# coding: latin-1\n"""This one is a caf\xe9, declared."""\n',
            "null.py": b'"""This one has\x00a null."""\n',
            "broken.py": '"""This one does not parse."""\ndef (:\n',
            "tests/helper.py": '"""This one is in a tests folder."""\n',
            "test_a.py": '"""This one is a test file."""\n',
            "deep/testing/a.py": '"""This one is in a testing folder."""\n',
        },
    )

    texts = {example.text for example in read_docstrings({"one": root}, seed=0)}

    assert texts == {"This sentence is fine.", "This one is a café, declared."}


def test_many_files_give_a_few_sentences_each(tmp_path: Path) -> None:
    root = library(tmp_path, "one", {f"f{i}.py": functions(f"file {i}", 30) for i in range(10)})

    examples = read_docstrings({"one": root}, seed=0, per_library=40)

    per_file = Counter(example.text.split(" number ")[0] for example in examples)
    assert len(examples) == 40
    assert max(per_file.values()) <= SENTENCES_PER_FILE


def test_few_files_give_what_they_have(tmp_path: Path) -> None:
    root = library(tmp_path, "one", {"a.py": functions("one", 30)})

    assert len(read_docstrings({"one": root}, seed=0, per_library=25)) == 25
    assert len(read_docstrings({"one": root}, seed=0, per_library=50)) == 30


def test_the_seed_decides(tmp_path: Path) -> None:
    roots = {
        name: library(tmp_path, name, {f"f{i}.py": functions(f"{name} {i}", 9) for i in range(9)})
        for name in ("one", "two")
    }

    first, again, other = (read_docstrings(roots, seed=seed, per_library=20) for seed in (1, 1, 2))

    assert first == again
    assert {example.text for example in first} != {example.text for example in other}


def test_a_library_without_sources_is_told(tmp_path: Path) -> None:
    root = library(tmp_path, "one", {"a.py": "x = 1\n"})

    with pytest.raises(DataError, match=r"one has no docstring.*reinstall"):
        read_docstrings({"one": root}, seed=0)


def test_missing_libraries_are_named_all_at_once() -> None:
    with pytest.raises(MissingLibrariesError, match=r"no_such_one, no_such_two, .*fedpipe\[demo\]"):
        find_roots(["numpy", "no_such_one", "no_such_two"])


@pytest.mark.skipif(
    any(find_spec(name) is None for name in LIBRARIES), reason="needs the demo extra: pip install fedpipe[demo]"
)
def test_the_real_libraries_in_a_process_that_imports_none() -> None:
    program = (
        "import sys\n"
        "from fedpipe_coordinator.demo.docstrings import LIBRARIES, find_roots, read_docstrings\n"
        "before = set(sys.modules)\n"
        "for e in read_docstrings(find_roots(LIBRARIES), seed=3, per_library=60): print(e.label, len(e.text))\n"
        "late = {name.split('.')[0] for name in set(sys.modules) - before}\n"
        "assert not late & set(LIBRARIES) and 'torch' not in sys.modules, late\n"
    )

    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", program], capture_output=True, text=True, timeout=100, check=False
    )

    assert (done.returncode, done.stderr) == (0, "")
    rows = [line.split() for line in done.stdout.splitlines()]
    assert Counter(label for label, _ in rows) == dict.fromkeys(LIBRARIES, 60)
    assert all(20 <= int(length) <= 300 for _, length in rows)
