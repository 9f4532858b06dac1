"""Choosing columns: obvious ones are found, and nothing is guessed."""

import pytest

from fedpipe_data.errors import AmbiguousFieldsError, DataError, MissingFieldError
from fedpipe_data.fields import FieldChoice, Task, find_fields
from fedpipe_data.source import Fields

CLASSES: Task = "sequence-classification"
CAUSAL: Task = "causal-lm"


def found(**roles: str) -> FieldChoice:
    return FieldChoice(how="found", **roles)


CHOICES: list[tuple[list[str], Task, FieldChoice]] = [
    (["text", "category"], CLASSES, found(text="text", label="category")),
    (["id", "label", "label_text", "subject", "text"], CLASSES, found(text="text", label="label_text")),
    (["Sentence", "Label"], CLASSES, found(text="Sentence", label="Label")),
    (["question", "intent", "answer"], CLASSES, found(text="question", label="intent")),
    (["mr", "ref"], CAUSAL, found(prompt="mr", target="ref")),
    (["question", "answer", "id"], CAUSAL, found(prompt="question", target="answer")),
    (["input", "output"], CAUSAL, found(prompt="input", target="output")),
    (["text"], CAUSAL, found(text="text")),
    (["text", "category"], CAUSAL, found(text="text")),
    (["content", "url"], CAUSAL, found(text="content")),
]


@pytest.mark.parametrize(("columns", "task", "choice"), CHOICES)
def test_obvious_columns_are_found(columns: list[str], task: Task, choice: FieldChoice) -> None:
    assert find_fields(columns, Fields(), task) == choice
    assert find_fields(columns[::-1], Fields(), task) == choice


GIVEN: list[tuple[list[str], Fields, Task, FieldChoice]] = [
    (["a", "b"], Fields(text="a", label="b"), CLASSES, FieldChoice("given", text="a", label="b")),
    (["a", "label"], Fields(text="a"), CLASSES, found(text="a", label="label")),
    (["text", "sentence", "class"], Fields(text="sentence"), CLASSES, found(text="sentence", label="class")),
    (["text", "target"], Fields(text="target"), CAUSAL, FieldChoice("given", text="target")),
    (["a", "b"], Fields(prompt="a", target="b"), CAUSAL, FieldChoice("given", prompt="a", target="b")),
    (["a", "answer"], Fields(prompt="a"), CAUSAL, found(prompt="a", target="answer")),
    (["prompt", "a"], Fields(target="a"), CAUSAL, found(prompt="prompt", target="a")),
    (["title", "story"], Fields(target="story"), CAUSAL, FieldChoice("given", target="story")),
]


@pytest.mark.parametrize(("columns", "fields", "task", "choice"), GIVEN)
def test_given_columns_are_taken(columns: list[str], fields: Fields, task: Task, choice: FieldChoice) -> None:
    assert find_fields(columns, fields, task) == choice


BAD: list[tuple[list[str], Fields, Task, type[DataError], str]] = [
    (["text", "sentence", "label"], Fields(), CLASSES, AmbiguousFieldsError, "text, sentence.*fields.text"),
    (["text", "intent", "category"], Fields(), CLASSES, AmbiguousFieldsError, "intent, category.*fields.label"),
    (["a", "b"], Fields(), CLASSES, MissingFieldError, "the text; there are a, b"),
    (["text", "b"], Fields(), CLASSES, MissingFieldError, "the label; there are text, b"),
    (["text", "b"], Fields(label="c"), CLASSES, MissingFieldError, "no column 'c'.*there are text, b"),
    (["text", "b"], Fields(text="b", label="b"), CLASSES, AmbiguousFieldsError, "both column 'b'"),
    (["instruction", "input", "output"], Fields(), CAUSAL, AmbiguousFieldsError, "instruction, input"),
    (["text", "summary"], Fields(), CAUSAL, AmbiguousFieldsError, "text, summary.*fields.target"),
    (["text", "prompt"], Fields(), CAUSAL, AmbiguousFieldsError, "text, prompt"),
    (["prompt", "b"], Fields(), CAUSAL, MissingFieldError, "the text"),
    (["a", "b"], Fields(prompt="a"), CAUSAL, MissingFieldError, "the target; there are a, b"),
    (["a", "b"], Fields(prompt="a", target="a"), CAUSAL, AmbiguousFieldsError, "both column 'a'"),
    ([], Fields(), CAUSAL, MissingFieldError, "there are none"),
]


@pytest.mark.parametrize(("columns", "fields", "task", "error", "says"), BAD)
def test_what_is_not_obvious_is_asked(
    columns: list[str], fields: Fields, task: Task, error: type[DataError], says: str
) -> None:
    with pytest.raises(error, match=says):
        find_fields(columns, fields, task)


def test_a_first_row_in_the_headers_place_is_not_shown() -> None:
    with pytest.raises(MissingFieldError) as caught:
        find_fields(["Zaphod has two heads", "12345678", "diagnosis"], Fields(), CLASSES)

    assert "Zaphod" not in str(caught.value)
    assert "12345678" not in str(caught.value)
    assert "(column 1, its name is not shown)" in str(caught.value)
    assert "diagnosis" in str(caught.value)


def test_the_choice_is_said() -> None:
    choice = find_fields(["text", "category"], Fields(), CLASSES)

    assert choice.sentence == "text is column 'text', label is column 'category' (found by the columns' names)"
