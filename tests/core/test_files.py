"""Files are whole or as they were, and links lead nowhere."""

import os
import resource
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import IO

import pytest

from prunetaylor.core.errors import OutputError
from prunetaylor.core.files import (
    append_text,
    open_own,
    own_folder,
    write_by_path,
    write_bytes,
    write_stream,
    write_text,
)

Writer = Callable[[Path, bytes], int]
WRITERS: dict[str, Writer] = {
    "text": lambda path, data: write_text(path, data.decode()),
    "bytes": write_bytes,
    "stream": lambda path, data: write_stream(path, lambda stream: stream.write(data)),
    "path": lambda path, data: write_by_path(path, lambda temporary: temporary.write_bytes(data)),
}


@pytest.mark.parametrize("write", WRITERS.values(), ids=list(WRITERS))
def test_a_new_file_takes_the_place_of_the_old(write: Writer, tmp_path: Path) -> None:
    file = tmp_path / "file"
    for data in (b"first", b"second, longer"):
        assert write(file, data) == len(data)
        assert file.read_bytes() == data
    assert os.listdir(tmp_path) == ["file"]
    mask = os.umask(0o022)
    os.umask(mask)
    assert file.stat().st_mode & 0o777 == 0o666 & ~mask


@pytest.mark.parametrize("write", WRITERS.values(), ids=list(WRITERS))
def test_a_full_disk_leaves_the_old_file(write: Writer, tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_bytes(b"old")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, before[1]))
    try:
        with pytest.raises(OutputError, match=r"cannot write .*file: File too large") as caught:
            write(file, b"x" * 100_000)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert caught.value.remedy
    assert file.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["file"]


def test_an_interrupt_leaves_the_old_file(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_bytes(b"old")

    def write(stream: IO[bytes]) -> None:
        stream.write(b"half")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_stream(file, write)
    assert file.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["file"]


@pytest.mark.parametrize("write", WRITERS.values(), ids=list(WRITERS))
def test_a_link_is_replaced_and_not_followed(write: Writer, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.write_bytes(b"precious")
    room = tmp_path / "room"
    room.mkdir()
    for make in (os.symlink, os.link):
        make(outside, room / "file")
        write(room / "file", b"new")
        assert outside.read_bytes() == b"precious"
        assert (room / "file").read_bytes() == b"new"
        (room / "file").unlink()


def test_a_link_that_the_user_named_is_followed(tmp_path: Path) -> None:
    (tmp_path / "latest").symlink_to(tmp_path / "file")
    for text in ("one", "two"):  # the first time it leads to nothing
        write_text(tmp_path / "latest", text, named=True)
        assert (tmp_path / "file").read_text() == text
        assert (tmp_path / "latest").is_symlink()


@pytest.mark.parametrize(
    "name",
    [
        "write_bytes(P(sys.argv[1]), b'hello', named=True)",
        "write_by_path(P(sys.argv[1]), lambda t: t.write_bytes(b'hello'), named=True)",
    ],
)
@pytest.mark.parametrize("target", ["/dev/stdout", "/dev/fd/1", "/proc/self/fd/1"])
def test_streams_of_the_process_are_written_to(target: str, name: str, tmp_path: Path) -> None:
    head = "import sys; from pathlib import Path as P; from prunetaylor.core.files import *"
    code = f"{head}; print('a', flush=True); {name}; print('b')"
    piped = subprocess.run([sys.executable, "-c", code, target], capture_output=True, text=True, check=True)
    assert piped.stdout == "a\nhellob\n"
    with (tmp_path / "out").open("w") as out:  # shells redirect into regular files, which must stay the same file
        subprocess.run([sys.executable, "-c", code, target], stdout=out, check=True)
    assert (tmp_path / "out").read_text() == "a\nhellob\n"


def test_pipes_and_devices_are_written_to(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    found: list[str] = []
    reader = threading.Thread(target=lambda: found.append(pipe.read_text()), daemon=True)
    reader.start()
    write_text(pipe, "hello", named=True)
    reader.join(10)
    assert found == ["hello"]
    write_text(Path("/dev/null"), "hello", named=True)
    if Path("/dev/full").exists():
        with pytest.raises(OutputError, match="No space left"):
            write_text(Path("/dev/full"), "hello", named=True)


def test_a_missing_or_wrong_place_is_an_error_with_its_cause(tmp_path: Path) -> None:
    for path in (tmp_path / "none" / "file", tmp_path):
        for named in (False, True):
            with pytest.raises(OutputError, match="cannot write"):
                write_text(path, "x", named=named)
    assert not os.listdir(tmp_path)


@pytest.mark.parametrize("mode", ["a", "w", "a+"])
def test_own_files_are_opened_for_what_they_are(mode: str, tmp_path: Path) -> None:
    outside, name = tmp_path / "outside", tmp_path / "log"
    outside.write_text("precious")
    os.mkfifo(tmp_path / "pipe")
    for make in (
        lambda: name.symlink_to(outside),
        lambda: name.symlink_to(tmp_path / "nothing"),
        lambda: os.link(outside, name),
        lambda: os.mkfifo(name),
    ):
        make()
        with pytest.raises(OutputError):
            open_own(name, mode)
        assert outside.read_text() == "precious"
        assert not (tmp_path / "nothing").exists()
        name.unlink()
    with open_own(name, mode) as file:
        file.write("x")
    assert name.read_text() == "x"


def test_own_folders_are_no_links(tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (tmp_path / "link").symlink_to(outside)
    (tmp_path / "nowhere").symlink_to(tmp_path / "nothing")
    (tmp_path / "file").touch()
    for name in ("link", "nowhere", "file"):
        with pytest.raises(OutputError) as caught:
            own_folder(tmp_path / name)
        assert caught.value.remedy
    assert own_folder(own_folder(tmp_path / "new")).is_dir()


def test_appending_keeps_what_is_there(tmp_path: Path) -> None:
    append_text(tmp_path / "file", "a\n")
    append_text(tmp_path / "file", "b\n")
    assert (tmp_path / "file").read_text() == "a\nb\n"
