"""Text from elsewhere as a terminal or a log may show it: nothing in it is obeyed, and nothing of it is endless.

Owns the escapes. What a message or a record carries stays as it came; this is for where people read it.
"""

MAX_CHARACTERS = 4000


def plain(text: str, longest: int = MAX_CHARACTERS) -> str:
    """One line: control characters, line ends and what turns the writing round become escapes."""
    cut = text if len(text) <= longest else f"{text[:longest]}..."
    return cut if cut.isprintable() else "".join(char if char.isprintable() else ascii(char)[1:-1] for char in cut)


def plain_lines(text: str) -> str:
    """The same of a text whose lines are its own, such as a report of several problems."""
    return "\n".join(map(plain, text.split("\n")))
