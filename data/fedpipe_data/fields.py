"""Which column of a table is what: as the settings say, or found where the names make it obvious.

Never looks at a value, and never guesses: two columns that could be the same thing are an error that names them.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Literal

from fedpipe_data.errors import AmbiguousFieldsError, MissingFieldError, name_columns
from fedpipe_data.source import Fields

Task = Literal["causal-lm", "sequence-classification"]
Role = Literal["text", "label", "prompt", "target"]

KNOWN_NAMES: Final[dict[Role, frozenset[str]]] = {
    "text": frozenset({"text", "sentence", "utterance", "question", "content", "body", "document", "message"}),
    "label": frozenset({"label", "label_text", "label_name", "category", "intent", "class", "target"}),
    "prompt": frozenset({"prompt", "instruction", "mr", "input", "question", "source"}),
    "target": frozenset({"target", "ref", "reference", "completion", "response", "output", "answer", "summary"}),
}
"""Column names that say what they hold, in small letters."""

SPELT_OUT_LABELS: Final = ("label_text", "label_name")
"""Beside a column `label`, these hold the same label in words, which silos agree on where numbers may differ."""


@dataclass(frozen=True, slots=True)
class FieldChoice:
    """The column of every role that the task needs, and how it was chosen.

    For sequence-classification `text` and `label` are set; for causal-lm either `target`, with `prompt` where there is
    one, or `text` alone for a plain corpus.
    """

    how: Literal["given", "found"]
    text: str | None = None
    label: str | None = None
    prompt: str | None = None
    target: str | None = None

    @property
    def sentence(self) -> str:
        """What was chosen, said to the user."""
        roles = {"text": self.text, "label": self.label, "prompt": self.prompt, "target": self.target}
        chosen = ", ".join(f"{role} is column '{name}'" for role, name in roles.items() if name)
        how = "as given" if self.how == "given" else "found by the columns' names"
        return f"{chosen} ({how})"


def find_fields(columns: Sequence[str], fields: Fields, task: Task) -> FieldChoice:
    """Choose the columns for a task.

    Args:
        columns: The table's columns.
        fields: What the settings give; roles that the task has no use for are ignored, because a dataset may serve
            jobs of both tasks.
        task: What the examples are for.

    Raises:
        MissingFieldError: if a given column is not there, or one that is needed can neither be found.
        AmbiguousFieldsError: if two columns could be the same thing.
    """
    match task:
        case "sequence-classification":
            return _for_classification(columns, fields)
        case "causal-lm":
            return _for_causal(columns, fields)


def _for_classification(columns: Sequence[str], fields: Fields) -> FieldChoice:
    text = _pick(columns, "text", fields.text, taken=fields.label)
    label = _pick(columns, "label", fields.label, taken=text)
    if text == label:
        raise AmbiguousFieldsError(f"text and label are both column '{text}'", "give each its own in `fields`")
    return FieldChoice(how="given" if fields.text and fields.label else "found", text=text, label=label)


def _for_causal(columns: Sequence[str], fields: Fields) -> FieldChoice:
    if fields.text and not (fields.prompt or fields.target):
        return FieldChoice(how="given", text=_pick(columns, "text", fields.text))
    prompts = _candidates(columns, "prompt", taken=fields.target)
    targets = _candidates(columns, "target", taken=fields.prompt)
    if fields.target and not (fields.prompt or prompts):
        return FieldChoice(how="given", target=_pick(columns, "target", fields.target))
    if fields.prompt or fields.target or (prompts and targets):
        target = _pick(columns, "target", fields.target, taken=fields.prompt)
        prompt = _pick(columns, "prompt", fields.prompt, taken=target)
        if prompt == target:
            raise AmbiguousFieldsError(f"prompt and target are both column '{prompt}'", "give each its own in `fields`")
        how: Literal["given", "found"] = "given" if fields.prompt and fields.target else "found"
        return FieldChoice(how=how, prompt=prompt, target=target)
    texts = _candidates(columns, "text")
    if texts and (targets or set(prompts) - set(texts)):
        raise AmbiguousFieldsError(
            f"text, or a prompt and its target? The columns are {name_columns(columns)}",
            "set fields.text for a plain corpus, or both fields.prompt and fields.target",
        )
    return FieldChoice(how="found", text=_pick(columns, "text", None))


def _candidates(columns: Sequence[str], role: Role, *, taken: str | None = None) -> list[str]:
    found = [name for name in columns if name.lower() in KNOWN_NAMES[role] and name != taken]
    if role == "label" and any(name.lower() == "label" for name in found):
        spelt_out = [name for name in found if name.lower() in SPELT_OUT_LABELS]
        if len(spelt_out) == 1:
            found = [name for name in found if name.lower() != "label"]
    return found


def _pick(columns: Sequence[str], role: Role, given: str | None, *, taken: str | None = None) -> str:
    if given is not None:
        if given not in columns:
            raise MissingFieldError(
                f"there is no column '{given}' for the {role}; there are {name_columns(columns)}",
                f"correct fields.{role}",
            )
        return given
    found = _candidates(columns, role, taken=taken)
    if len(found) == 1:
        return found[0]
    if found:
        raise AmbiguousFieldsError(
            f"the {role} could be any of the columns {name_columns(found)}",
            f"say which with fields.{role}",
        )
    raise MissingFieldError(
        f"no column is obviously the {role}; there are {name_columns(columns)}",
        f"say which with fields.{role}",
    )
