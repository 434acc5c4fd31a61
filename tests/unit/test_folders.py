"""Held directories: nothing of another user's is followed, opened, replaced or removed."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable
from pathlib import Path

import pytest
from redirty.collector.errors import RedirtyError
from redirty.collector.folders import Folder, ForeignError

from tests.tiers import require_root

NOBODY = 65534


@pytest.fixture
def theirs(tmp_path: Path) -> Path:
    """Make a directory of another user."""
    require_root()
    directory = tmp_path / "theirs"
    directory.mkdir()
    os.chown(directory, NOBODY, NOBODY)
    return directory


@pytest.fixture
def precious(tmp_path: Path) -> Path:
    """Make a directory of ours with a file in it, which nothing may change."""
    directory = tmp_path / "precious"
    directory.mkdir(mode=0o700)
    (directory / "victim").write_text("precious")
    return directory


def given_away(path: Path, _: object = None) -> None:
    os.chown(path, NOBODY, NOBODY, follow_symlinks=False)


def link(path: Path, to: Path) -> None:
    path.symlink_to(to)
    given_away(path)


def fifo(path: Path, _: Path) -> None:
    os.mkfifo(path, 0o666)
    given_away(path)


def directory(path: Path, _: Path) -> None:
    path.mkdir(mode=0o777)
    given_away(path)


PLACED: dict[str, Callable[[Path, Path], object]] = {
    "a link to a file": lambda at, precious: link(at, precious / "victim"),
    "a link to a directory": link,
    "a dangling link": lambda at, precious: link(at, precious / "new"),
    "a FIFO": fifo,
    "a directory": directory,
    "a file": lambda at, _: given_away(at, at.write_bytes(b"")),
    "another name of a file": lambda at, precious: at.hardlink_to(precious / "victim"),
}


@pytest.mark.parametrize("kind", PLACED)
def test_nothing_is_created_over_what_was_placed(kind: str, theirs: Path, precious: Path) -> None:
    at = theirs / "out"
    PLACED[kind](at, precious)
    with pytest.raises(RedirtyError, match="exists already"):
        Folder.create(at)
    with pytest.raises(FileExistsError):
        Folder.hold(theirs).new_file("out")
    assert [p.name for p in precious.iterdir()] == ["victim"]
    assert (precious / "victim").read_text() == "precious"


def test_what_is_created_is_ours_alone(theirs: Path) -> None:
    os.umask(0)
    try:
        folder = Folder.create(theirs / "out")
        os.close(folder.new_file("file"))
        os.close(folder.make("more").new_file("file"))
        os.close(Folder.hold(theirs).new_file("single"))
    finally:
        os.umask(0o022)
    modes = {str(p.relative_to(theirs)): stat.S_IMODE(p.stat().st_mode) for p in theirs.rglob("*")}
    assert modes == {
        "out": 0o700, "out/file": 0o600, "out/more": 0o700, "out/more/file": 0o600, "single": 0o600,
    }  # fmt: skip


def directory_of_ours(at: Path, _: Path) -> None:
    at.mkdir(mode=0o700)
    (at / "victim").touch()


@pytest.mark.parametrize(
    ("swap", "reason"),
    [
        (directory, "belongs to another user"),
        (link, "cannot create"),
        (fifo, "cannot create"),
        (directory_of_ours, "exchanged while it was created"),
    ],
)
def test_a_directory_swapped_before_it_is_opened_is_found(
    swap: Callable[[Path, Path], None],
    reason: str,
    theirs: Path,
    precious: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    real = os.mkdir
    at = theirs / "out"

    def mkdir(name: str, mode: int, *, dir_fd: int) -> None:
        real(name, mode, dir_fd=dir_fd)
        monkeypatch.undo()
        at.rename(theirs / "real")
        swap(at, precious)

    monkeypatch.setattr(os, "mkdir", mkdir)
    with pytest.raises(RedirtyError, match=reason):
        Folder.create(at)
    assert (precious / "victim").read_text() == "precious"
    assert [p.name for p in precious.iterdir()] == ["victim"]


def test_files_go_where_the_directory_is(theirs: Path, precious: Path) -> None:
    folder = Folder.create(theirs / "out")
    os.close(folder.new_file("a"))
    (theirs / "out").rename(theirs / "real")
    (theirs / "out").symlink_to(precious)
    os.close(folder.new_file("victim"))
    folder.rename("a", "b")
    with pytest.raises(RedirtyError, match="somebody moved it"):
        folder.require_there()
    assert sorted(p.name for p in (theirs / "real").iterdir()) == ["b", "victim"]
    folder.remove("b", "victim", "none")
    folder.remove_itself()
    assert (theirs / "out").is_symlink() and (theirs / "real").is_dir()
    assert (precious / "victim").read_text() == "precious"


# ---- links in the path ----


def test_links_of_others_lead_to_what_is_theirs_only(theirs: Path, precious: Path) -> None:
    own = theirs / "own"
    own.mkdir()
    given_away(own)
    link(theirs / "home", own)
    link(theirs / "relative", Path("own"))
    link(theirs / "way", precious)
    link(theirs / "twice", theirs / "way")
    link(theirs / "up", Path("../precious"))
    for name in ("home", "relative"):
        Folder.create(theirs / name / name).close()
        assert (own / name).is_dir()
    for name in ("way", "twice", "up"):
        with pytest.raises(ForeignError, match=r"a link of another user \(uid 65534\) leads to"):
            Folder.create(theirs / name / "out")
        with pytest.raises(ForeignError):
            Folder.open_own(theirs / name)
    # a link of ours that leads through one of theirs
    through = theirs.parent / "through"
    through.symlink_to(theirs / "way")
    with pytest.raises(ForeignError):
        Folder.hold(through)
    assert [p.name for p in precious.iterdir()] == ["victim"]


def test_own_links_are_followed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "there").mkdir()
    (tmp_path / "link").symlink_to("there")
    (tmp_path / "absolute").symlink_to(tmp_path / "link")
    (tmp_path / "round").symlink_to("round")
    monkeypatch.chdir(tmp_path)
    descriptor = os.open("there", os.O_RDONLY)
    try:
        for number, way in enumerate(
            ("link", "absolute", "there/../link/.", f"/proc/self/fd/{descriptor}", "there/")
        ):
            Folder.create(Path(way, str(number))).close()
            assert (tmp_path / "there" / str(number)).is_dir()
    finally:
        os.close(descriptor)
    with pytest.raises(RedirtyError, match="ELOOP"):
        Folder.create(Path("round/x"))
    with pytest.raises(RedirtyError, match=r"no does not exist"):
        Folder.create(Path("no/x"))
    (tmp_path / "file").touch()
    with pytest.raises(RedirtyError, match="ENOTDIR"):
        Folder.create(Path("file/x"))


def test_who_called_sudo_is_no_stranger(
    theirs: Path, precious: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    link(theirs / "data", precious)
    with pytest.raises(ForeignError):
        Folder.hold(theirs / "data")
    monkeypatch.setenv("SUDO_UID", str(NOBODY))
    Folder.hold(theirs / "data").close()


# ---- what is there already ----


def test_only_our_own_directories_are_continued(theirs: Path, tmp_path: Path) -> None:
    with pytest.raises(ForeignError, match="belongs to another user"):
        Folder.open_own(theirs)
    ours = tmp_path / "ours"
    ours.mkdir()
    for mode, allowed in ((0o700, True), (0o755, True), (0o775, False), (0o1777, False)):
        ours.chmod(mode)
        if allowed:
            Folder.open_own(ours).close()
        else:
            with pytest.raises(ForeignError, match=rf"open to other users \(mode {mode:04o}\)"):
                Folder.open_own(ours)


def test_only_our_own_files_are_opened(tmp_path: Path) -> None:
    require_root()
    folder = Folder.create(tmp_path / "m")
    os.close(folder.new_file("good"))
    os.close(folder.open_file("good", os.O_RDWR))
    here = folder.path
    os.mkfifo(here / "fifo", 0o600)
    (here / "link").symlink_to("good")
    (here / "foreign").touch(mode=0o600)
    given_away(here / "foreign")
    os.close(folder.new_file("open"))
    (here / "open").chmod(0o644)
    os.close(folder.new_file("twice"))
    (here / "again").hardlink_to(here / "twice")
    for name in ("fifo", "link", "foreign", "open", "twice"):
        with pytest.raises((OSError, ForeignError)):
            folder.open_file(name, os.O_RDWR)


# ---- sudo ----


def owners(*paths: Path) -> set[tuple[int, int]]:
    return {(p.stat().st_uid, p.stat().st_gid) for p in paths}


def test_what_is_complete_belongs_to_who_called_sudo(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    require_root()
    monkeypatch.setenv("SUDO_UID", str(NOBODY))
    monkeypatch.setenv("SUDO_GID", str(NOBODY))
    outside = tmp_path / "outside"
    outside.write_text("not ours to give")
    folder = Folder.create(tmp_path / "rec")
    os.close(folder.new_file("a.csv"))
    (folder.path / "link").symlink_to(outside)
    os.link(outside, folder.path / "second-name")
    made = [folder.path, folder.path / "a.csv"]
    assert owners(*made) == {(0, 0)}, "nobody else may change it while it grows"
    folder.give_to_caller()
    assert owners(*made) == {(NOBODY, NOBODY)}
    assert [stat.S_IMODE(p.stat().st_mode) for p in made] == [0o700, 0o600]
    assert owners(outside) == {(0, 0)}, "neither a link nor another name of a file is followed"


@pytest.mark.parametrize("uid", ["", "0", "-1", "4294967295", "nobody", "٣", "99999999999"])
def test_who_did_not_call_sudo_gets_nothing(
    uid: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    require_root()
    monkeypatch.setenv("SUDO_UID", uid)
    monkeypatch.setenv("SUDO_GID", str(NOBODY))
    folder = Folder.create(tmp_path / "rec")
    os.close(folder.new_file("a.csv"))
    folder.give_to_caller()
    assert owners(folder.path, folder.path / "a.csv") == {(0, 0)}
