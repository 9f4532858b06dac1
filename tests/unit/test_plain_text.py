"""Text of strangers where people read it: no terminal obeys it, no log line is forged by it, none is endless."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedpipe_profiles.plain_text import MAX_CHARACTERS, plain, plain_lines


@given(st.text())
def test_any_text_becomes_one_printable_line(text: str) -> None:
    shown = plain(text)
    assert shown.isprintable()
    assert "\n" not in shown
    assert shown == text or not text.isprintable()


@given(st.lists(st.text(st.characters(exclude_categories=["Cc", "Cf", "Cs", "Zl", "Zp", "Zs", "Cn", "Co"]))))
def test_a_report_keeps_its_lines(lines: list[str]) -> None:
    text = "\n".join(lines)
    assert plain_lines(text) == text


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("\x1b]0;owned\x07", r"\x1b]0;owned\x07"),
        ("a\nb", r"a\nb"),
        ("\x9b2J", r"\x9b2J"),
        ("\u202egnp.exe", r"\u202egnp.exe"),
        ("\ud800", r"\ud800"),
        ("naïve Ω", "naïve Ω"),
    ],
)
def test_what_a_terminal_would_obey_is_escaped(text: str, shown: str) -> None:
    assert plain(text) == shown


def test_an_endless_text_is_cut() -> None:
    assert len(plain("x" * 10**6)) == MAX_CHARACTERS + 3
    assert plain("x" * 10, longest=4) == "xxxx..."
