"""Files that are either complete or absent, whenever the process that writes them dies."""

from __future__ import annotations

import errno
import os
import socket
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from io import FileIO, TextIOWrapper
from pathlib import Path
from typing import Any

from skerch.errors import SkerchError

FLUSH_BYTES = 2**26  # are written to disk together, rather than all once memory is full


class FileError(SkerchError):
    """A file that cannot be written or read; the message names it and the cause."""


def print_always() -> None:
    """Have standard output and error print ? for a character that their encoding lacks."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):
            stream.reconfigure(errors="replace")


def cause(error: OSError) -> str:
    """The operating system's words for an error, without its number and path."""
    return error.strerror or str(error)


@contextmanager
def refusals_named() -> Iterator[None]:
    """Turn what the operating system refuses into a FileError that names the path."""
    try:
        yield
    except OSError as error:
        if error.filename is None:
            raise
        remedy = "Give permission there, or remove what is in the way"
        if isinstance(error, FileNotFoundError):
            remedy = "Put it there"
        raise FileError(
            f"{error.filename} cannot be used: {cause(error)}. {remedy}, then run the same command "
            "again."
        ) from error


def write_atomically(
    path: Path | str, write: Callable[[Path], object], *, once: bool = False
) -> None:
    """Let `write(temporary)` make a file beside `path`, then move it there in one step.

    The temporary file `.<name>.<host>.<pid>.tmp` is flushed to disk before it is renamed, and the
    directory after, so that a reader sees the old file, the new one or none, also after a crash.
    Missing folders are made. Whatever `write` raises, the temporary file is removed. With `once` a
    file that is there already stays as it is.

    Raises:
        FileError: the operating system refuses (disk full, no permission, a file in the way).
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{socket.gethostname()}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            write(temporary)
            _flush(temporary, os.O_RDWR)
            if not once:
                os.replace(temporary, path)
            elif not path.exists():
                try:
                    os.link(temporary, path)
                except FileExistsError:
                    pass
                except OSError:  # this file system has no hard links
                    os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)
        _flush(path.parent, os.O_RDONLY)
    except OSError as error:
        remedy = "Make room or give permission there"
        if isinstance(error, FileExistsError | NotADirectoryError):
            parents = (parent for parent in path.parents if parent.exists())
            remedy = f"{next(parents, path.parent)} is a file; remove it, or choose another folder"
        elif isinstance(error, IsADirectoryError):
            remedy = "It is a folder; remove it, or give another name"
        raise FileError(
            f"{path} cannot be written: {cause(error)}. {remedy}, then run the same command again."
        ) from error


def stream_atomically(path: Path | str, write: Callable[[FileIO], object]) -> None:
    """Like `write_atomically`, for libraries that do not survive a full disk in mid-write.

    HDF5 crashes the process when closing a file fails, and torch's zip writer hides the reason.
    So `write(file)`, as in `open_hdf5(file, "w")` or `torch.save(x, file)`, gets a file that drops
    what does not fit; the refusal is raised when it is done.
    """

    def stream(temporary: Path) -> None:
        with _Unfailing(temporary, "wb+") as file:
            try:
                write(file)
            finally:
                if file.refusal is not None:
                    raise file.refusal

    write_atomically(path, stream)


class _Unfailing(FileIO):
    """A binary file that keeps the first error of writing, instead of raising it."""

    refusal: OSError | None = None
    _new = 0  # bytes since the disk was last set to work

    def write(self, data: Any) -> int:
        view = memoryview(data).cast("B")
        done = 0
        while done < len(view) and self.refusal is None:
            try:
                done += super().write(view[done:]) or 0
            except OSError as error:
                self.refusal = error
        self._new += done
        if self._new >= FLUSH_BYTES:
            with suppress(OSError, AttributeError):  # no such advice on this system
                begin = max(0, self.tell() - self._new)
                os.posix_fadvise(self.fileno(), begin, self._new, os.POSIX_FADV_DONTNEED)
            self._new = 0
        return len(view)


def sweep(folder: Path, pattern: str = "**/.*.tmp", age: float | None = None) -> None:
    """Remove the temporary files below a folder whose writers on this host are gone.

    With `age`, also those of any host that have not changed for so many seconds.
    """
    for path in folder.glob(pattern):
        *_, pid, _ = path.name.split(".")
        mine = f".{socket.gethostname()}.{pid}.tmp"
        gone = path.name.endswith(mine) and pid.isdecimal() and not alive(int(pid))
        with suppress(FileNotFoundError):  # of a writer that is done
            if gone or (age is not None and time.time() - path.stat().st_mtime > age):
                path.unlink()


def alive(pid: int) -> bool:
    """Whether a process of this machine has not ended."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    with suppress(OSError):  # no /proc here, or it has gone just now
        state = Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()[0]
        return state != b"Z"  # a zombie, whose parent never asked for its exit status
    return True


def _flush(path: Path, flags: int) -> None:
    """Force a file's or a directory's contents to disk."""
    descriptor = os.open(path, flags)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno != errno.EINVAL:  # this file system flushes no directories
            raise
    finally:
        os.close(descriptor)
