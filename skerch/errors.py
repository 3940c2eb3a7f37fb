"""Errors that a user can act on: one sentence with the value, the bound and the way out."""


class SkerchError(ValueError):
    """Something asked for cannot be had; the message says what, why and the way out."""

    exit_status = 1  # of a program that it ends; 2 where the usage or the config is at fault


class ShapeError(SkerchError):
    """Operands whose shapes or dtypes do not fit; the message has both."""


class UsageError(SkerchError):
    """Arguments of a command that cannot be meant."""

    exit_status = 2


def first_line(error: Exception) -> str:
    """The first line of an error's words, or its name where it has none."""
    return next(iter(str(error).splitlines()), type(error).__name__)
