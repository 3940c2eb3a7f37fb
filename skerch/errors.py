"""Errors that a user can act on: one sentence with the value, the bound and the way out."""


class SkerchError(ValueError):
    """Something asked for cannot be had; the message says what, why and the way out."""

    exit_status = 1  # of the command that it ends; 2 where the usage or the config is at fault


class ShapeError(SkerchError):
    """Operands whose shapes or dtypes do not fit; the message has both."""


class UsageError(SkerchError):
    """Arguments that a command cannot use."""

    exit_status = 2


def first_line(error: Exception) -> str:
    """The first line of an error's message, or the error's name where it has no message."""
    return next(iter(str(error).splitlines()), type(error).__name__)
