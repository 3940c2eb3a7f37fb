"""Atomic writing: old file, new file, or none; also where the disk is full."""

import errno
import os
import re
import resource
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from skerch.files import FileError, sweep, write_atomically


def test_a_failed_write_leaves_the_old_file_and_no_other(tmp_path):
    path = tmp_path / "file"
    write_atomically(path, lambda temporary: temporary.write_text("old"))

    def fail(temporary: Path) -> None:
        temporary.write_text("half of the n")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_atomically(path, fail)
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_file_system_without_hard_links_or_flushed_folders_serves(tmp_path, monkeypatch):
    fsync = os.fsync

    def of_files(descriptor: int) -> None:
        if os.path.isdir(f"/proc/self/fd/{descriptor}"):
            raise OSError(errno.EINVAL, "Invalid argument")
        fsync(descriptor)

    def refuse(*_: object) -> None:
        raise PermissionError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(os, "fsync", of_files)
    monkeypatch.setattr(os, "link", refuse)
    for text in ("first", "second"):
        write_atomically(tmp_path / "file", lambda path, t=text: path.write_text(t), once=True)
    assert [path.read_text() for path in tmp_path.iterdir()] == ["first"]


def test_readers_see_no_temporary_name(tmp_path):
    seen = []
    write_atomically(
        tmp_path / "new" / "file",
        lambda temporary: (seen.append(temporary.name), temporary.write_text("x")),
    )
    assert seen[0].startswith(".file.")
    assert seen[0].endswith(f".{os.getpid()}.tmp")
    assert os.listdir(tmp_path / "new") == ["file"]


def test_a_file_in_place_of_the_folder_is_one_sentence(tmp_path):
    (tmp_path / "folder").write_text("a file")
    with pytest.raises(FileError, match=r"folder/file cannot be written"):
        write_atomically(tmp_path / "folder" / "file", lambda temporary: None)


FULL_DISK = """
import sys, h5py, numpy, torch
from skerch.files import FileError, stream_atomically
def hdf5(stream):
    with h5py.File(stream, "w", libver="latest") as file:
        file.create_dataset("x", data=numpy.ones(10**6), chunks=(1000,), fletcher32=True)
def tensors(stream):
    torch.save(torch.ones(10**6), stream)
for write in hdf5, tensors:
    try:
        stream_atomically(sys.argv[1], write)
    except FileError as error:
        print(error)
"""


def test_no_room_for_hdf5_or_torch_is_one_sentence_and_no_crash(tmp_path):
    """A limit on the size of files refuses writes as a full disk does."""

    def limit() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))

    target = tmp_path / "x"
    done = subprocess.run(
        [sys.executable, "-c", FULL_DISK, str(target)],
        preexec_fn=limit,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count(f"{target} cannot be written: File too large") == 2
    assert not list(tmp_path.iterdir())


def test_temporary_files_of_a_killed_process_are_removed_before_its_parent_has_noticed(tmp_path):
    writer = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    temporary = tmp_path / f".x.{socket.gethostname()}.{writer.pid}.tmp"
    temporary.touch()
    sweep(tmp_path)
    assert temporary.exists()
    writer.kill()
    os.waitid(os.P_PID, writer.pid, os.WEXITED | os.WNOWAIT)
    sweep(tmp_path)
    assert not temporary.exists()
    writer.communicate()


def test_what_is_in_the_way_of_a_file_is_told_with_a_way_out(tmp_path):
    file, folder = tmp_path / "file", tmp_path / "folder"
    file.touch()
    folder.mkdir()
    for path, words in (
        (file / "a.yaml", f"{file} is a file; remove it"),
        (file / "deeper" / "a.yaml", f"{file} is a file; remove it"),
        (folder, "It is a folder; remove it, or give another name"),
    ):
        with pytest.raises(FileError, match=re.escape(words)):
            write_atomically(path, lambda temporary: temporary.write_text("x"))
