"""The demo's own data: first sentences of the docstrings of installed libraries, labelled by the library.

Reads source files with `ast` and never imports the libraries, so that it costs seconds and executes nothing. The same
seed and the same versions of the libraries give the same examples.
"""

import ast
import inspect
import random
import re
import warnings
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Final

from fedpipe_data.errors import DataError
from fedpipe_data.examples import ClassificationExample

LIBRARIES: Final = (
    "torch",
    "transformers",
    "scipy",
    "numpy",
    "sympy",
    "networkx",
    "huggingface_hub",
    "pydantic",
)
MIN_CHARACTERS: Final = 20
MAX_CHARACTERS: Final = 300
SENTENCES_PER_FILE: Final = 6
"""No more of one file as long as there are others: the docstrings of one file are much alike."""

MAX_FILE_BYTES: Final = 100_000
"""Larger files are generated or hold hundreds of classes; one of them costs as much time as a hundred others."""

MARGIN: Final = 1.15
"""More than asked is collected, because sentences that two libraries share are dropped afterwards."""

_SKIPPED_FOLDERS: Final = frozenset({"tests", "test", "testing", "_vendor", "__pycache__"})
_SENTENCE_END: Final = re.compile(r"(?<=[.!?])(?<!e\.g\.)(?<!i\.e\.)(?<!vs\.)(?<!cf\.)(?<!etc\.)\s")
_WORD: Final = re.compile(r"[^\W\d_]{2,}")
_MIN_WORDS: Final = 3
_DOCUMENTED: Final = (ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)


class MissingLibrariesError(DataError):
    """A library whose docstrings the demo reads is not installed."""


def find_roots(libraries: Sequence[str]) -> dict[str, Path]:
    """Where the sources of each library lie, without importing any.

    Raises:
        MissingLibrariesError: naming all that are not installed.
    """
    roots: dict[str, Path] = {}
    for library in libraries:
        spec = find_spec(library)
        if spec is not None and spec.submodule_search_locations:
            roots[library] = Path(next(iter(spec.submodule_search_locations)))
    if missing := [library for library in libraries if library not in roots]:
        raise MissingLibrariesError(
            f"not installed: {', '.join(missing)}, whose docstrings are the demo's data",
            "install fedpipe[demo], or bring your own data with --data",
        )
    return roots


def read_docstrings(roots: Mapping[str, Path], *, seed: int, per_library: int = 500) -> list[ClassificationExample]:
    """The corpus: up to `per_library` sentences of each library, in shuffled order.

    A sentence of 20 to 300 characters is the first of its docstring, whitespace folded. No sentence occurs twice, and
    one that occurs in two libraries is in neither's share. A library that has fewer sentences gives all it has.

    Args:
        roots: The folder of each library's sources, as `find_roots` tells.
        seed: Chooses files and sentences.
        per_library: How many sentences to take of each library.

    Raises:
        DataError: if a library has no sentence at all.
    """
    wanted = int(per_library * MARGIN) + 1
    found = {library: _collect(library, root, seed, wanted) for library, root in roots.items()}
    occurrences = Counter(sentence for sentences in found.values() for sentence in sentences)
    examples: list[ClassificationExample] = []
    for library, sentences in found.items():
        own = [sentence for sentence in sentences if occurrences[sentence] == 1][:per_library]
        if not own:
            raise DataError(
                f"{library} has no docstring in its sources",
                "reinstall it with its sources (not compiled only)",
                path=roots[library],
            )
        examples += (ClassificationExample(sentence, library) for sentence in own)
    random.Random(f"{seed}:order").shuffle(examples)
    return examples


def first_sentence(docstring: str) -> str | None:
    """The first sentence of a docstring, or None where it is no sentence of 20 to 300 characters and three words."""
    paragraph = inspect.cleandoc(docstring).split("\n\n", 1)[0]
    sentence = _SENTENCE_END.split(" ".join(paragraph.split()), maxsplit=1)[0]
    if not MIN_CHARACTERS <= len(sentence) <= MAX_CHARACTERS:
        return None
    words = [part for part in sentence.split() if _WORD.search(part)]
    return sentence if len(words) >= _MIN_WORDS else None


def _collect(library: str, root: Path, seed: int, wanted: int) -> list[str]:
    """Different sentences in random order: first a few of every file, then what else those files have."""
    rng = random.Random(f"{seed}:{library}")
    files = _source_files(root)
    rng.shuffle(files)
    taken: dict[str, None] = {}
    left: dict[str, None] = {}
    for file in files:
        sentences = list(dict.fromkeys(_sentences(file)))
        rng.shuffle(sentences)
        fresh = [sentence for sentence in sentences if sentence not in taken]
        taken |= dict.fromkeys(fresh[:SENTENCES_PER_FILE])
        left |= dict.fromkeys(fresh[SENTENCES_PER_FILE:])
        if len(taken) >= wanted:
            break
    spare = [sentence for sentence in left if sentence not in taken]
    rng.shuffle(spare)
    collected = list(taken)
    rng.shuffle(collected)
    return (collected + spare)[:wanted]


def _source_files(root: Path) -> list[Path]:
    return sorted(
        file
        for file in root.rglob("*.py")
        if _SKIPPED_FOLDERS.isdisjoint(file.relative_to(root).parts)
        and not file.name.startswith(("test_", "conftest"))
        and file.stat().st_size <= MAX_FILE_BYTES
    )


def _sentences(file: Path) -> Iterator[str]:
    try:
        with warnings.catch_warnings():
            # Another library's invalid escapes are not this program's to report.
            warnings.simplefilter("ignore")
            tree = ast.parse(file.read_bytes())
    except (SyntaxError, ValueError, RecursionError, OSError):
        # One file of thousands that this Python cannot read is not missed.
        return
    # Only bodies can hold docstrings; walking expressions too would take longer than parsing.
    nodes: list[ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef] = [tree]
    for node in nodes:
        nodes += (part for part in node.body if isinstance(part, _DOCUMENTED))
        docstring = ast.get_docstring(node, clean=False)
        if docstring and (sentence := first_sentence(docstring)):
            yield sentence
