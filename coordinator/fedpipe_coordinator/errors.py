"""The error that a command ends with, and the code that any error ends the process with."""

from fedpipe_coordinator.exit_codes import ExitCode


class CliError(Exception):
    """A command cannot be done; carries its exit code."""

    def __init__(self, message: str, code: ExitCode) -> None:
        super().__init__(message)
        self.code = code


def exit_code_of(error: Exception) -> ExitCode | None:
    """The code that an error ends the process with, or None for one that nobody foresaw."""
    if isinstance(error, CliError):
        return error.code
    from fedpipe_coordinator.error_codes import CODES  # noqa: PLC0415  # most of the program, for the table alone

    return next((code for kind, code in CODES if isinstance(error, kind)), None)
