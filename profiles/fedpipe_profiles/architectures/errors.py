"""What the architectures raise, and how they quote what a stranger's configuration holds."""

from fedpipe_profiles.plain_text import plain

_LONGEST_QUOTE = 60


class ArchitectureError(ValueError):
    """A configuration whose model is not known, not supported, or makes no sense; the text says what to do."""


def quoted(value: object) -> str:
    """A value of a configuration as a message may show it: one short printable line."""
    try:
        text = repr(value)
    except (ValueError, RecursionError):  # whole numbers of thousands of digits, lists within lists
        text = f"a {type(value).__name__} too large to show"
    return plain(text, _LONGEST_QUOTE)
