"""Whatever happens to an archive on its disk is found, and the file that it hit is named."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from memu_backup.errors import ArchiveError, NotAnArchive, SharedDamage, UnknownBackup, UsageError
from memu_backup.formats import gzip
from memu_backup.formats.earlier import Earlier
from memu_backup.formats.index import Entry
from memu_backup.formats.reader import ArchiveReader
from memu_backup.model import Level
from memu_backup.stores import Verdict
from memu_backup.stores.archive import ArchiveStore
from memu_backup.work import Stop
from tests.archives import archive_store, back_up, ignore, tree, write


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An archive with shared members, large files and an index, that tests copy."""
    source = tmp_path_factory.mktemp("source")
    (source / "film.mp4").write_bytes(os.urandom(9_000_000))
    (source / "log.txt").write_text("all is well\n" * 100_000)
    for number in range(200):
        (source / f"note{number:03}.txt").write_bytes(os.urandom(1000))
    return back_up(archive_store(tmp_path_factory.mktemp("store")), tree(source))


@pytest.fixture
def store(tmp_path: Path) -> ArchiveStore:
    return archive_store(tmp_path)


def prove(store: ArchiveStore, path: Path, level: Level = Level.FULL) -> Verdict:
    return store.prove(path, level, ignore, Stop())


def entries(path: Path) -> dict[str, Entry]:
    with ArchiveReader(path) as reader:
        return {e.path: e for e in reader.index()}


def footer(path: Path) -> gzip.Footer:
    found = gzip.read_footer(path.read_bytes()[-gzip.FOOTER_BYTES :])
    assert found
    return found


def damaged(original: Path, folder: Path, change: Callable[[bytearray], None]) -> Path:
    """A copy without its sidecar, so that what is found is found in the archive itself."""
    content = bytearray(original.read_bytes())
    change(content)
    copy = folder / original.name
    copy.write_bytes(content)
    return copy


def flip(content: bytearray, byte: int) -> None:
    content[byte] ^= 0x10


def test_an_undamaged_copy_is_good(original: Path, store: ArchiveStore) -> None:
    copy = damaged(original, store.directory, lambda content: None)
    assert prove(store, copy).problems == prove(store, copy, Level.QUICK).problems == ()


@pytest.mark.parametrize("path", ["photos/film.mp4", "photos/log.txt", "photos/note100.txt", "photos/note199.txt"])
def test_a_flipped_bit_in_a_file_names_the_file(original: Path, store: ArchiveStore, path: str) -> None:
    entry = entries(original)[path]
    start = (entry.content or entry.member) + gzip.HEADER_BYTES
    copy = damaged(original, store.directory, lambda content: flip(content, (start + entry.end) // 2))
    *problems, where = prove(store, copy).problems
    assert "damaged, at byte" in where
    if entry.content:
        assert problems == [f"{path} cannot be read back."]
        return
    beside = [e.path for e in entries(original).values() if (e.member, e.content) == (entry.member, 0)]
    more = len(beside) - 20
    assert problems[:20] == [f"{p} cannot be read back." for p in beside[:20]]
    assert problems[20:] == ([f"… and {more} more, which lie beside them."] if more > 0 else [])


@pytest.mark.parametrize("offset", range(gzip.HEADER_BYTES))
def test_a_flipped_bit_in_the_very_first_header_is_damage_or_nothing(
    original: Path, store: ArchiveStore, offset: int
) -> None:
    copy = damaged(original, store.directory, lambda content: flip(content, offset))
    problems = prove(store, copy).problems
    says_nothing = offset in range(4, 10)  # the time, the effort and the system, which no program looks at
    assert bool(problems) is not says_nothing


def test_a_flipped_bit_in_the_index_is_found_by_a_quick_look(original: Path, store: ArchiveStore) -> None:
    at = footer(original)
    copy = damaged(original, store.directory, lambda content: flip(content, (at.index_offset + at.archive_bytes) // 2))
    assert "damaged" in prove(store, copy, Level.QUICK).problems[0]
    assert "damaged" in prove(store, copy).problems[0]


def test_a_flipped_bit_in_the_metadata_is_found_by_a_quick_look(original: Path, store: ArchiveStore) -> None:
    at = footer(original).manifest_offset + 200
    copy = damaged(original, store.directory, lambda content: flip(content, at))
    assert "damaged" in prove(store, copy, Level.QUICK).problems[0]
    assert "damaged" in prove(store, copy).problems[0]


@pytest.mark.parametrize("from_end", range(1, gzip.FOOTER_BYTES, 3))
def test_a_flipped_bit_in_the_footer_is_found(original: Path, store: ArchiveStore, from_end: int) -> None:
    copy = damaged(original, store.directory, lambda content: flip(content, len(content) - from_end))
    place = gzip.FOOTER_BYTES - from_end
    if 4 <= place < 10:  # says nothing, see above
        return
    assert prove(store, copy).problems


def members(path: Path) -> list[int]:
    """The offsets at which members begin."""
    content, offsets = path.read_bytes(), [0]
    while offsets[-1] < len(content):
        size = gzip.member_bytes(content[offsets[-1] : offsets[-1] + gzip.HEADER_BYTES])
        assert size
        offsets.append(offsets[-1] + size)
    return offsets[:-1]


@pytest.mark.parametrize("which", [1, 2, 4, -3, -2, -1])
def test_an_archive_cut_at_a_members_border_is_found(original: Path, store: ArchiveStore, which: int) -> None:
    cut = members(original)[which]
    copy = damaged(original, store.directory, lambda content: content.__delitem__(slice(cut, None)))
    assert "no index at its end" in prove(store, copy, Level.QUICK).problems[0]
    assert prove(store, copy).problems


@pytest.mark.parametrize("share", [0.1, 0.5, 0.999])
def test_an_archive_cut_anywhere_is_found(original: Path, store: ArchiveStore, share: float) -> None:
    def cut(content: bytearray) -> None:
        del content[int(len(content) * share) :]

    copy = damaged(original, store.directory, cut)
    assert prove(store, copy, Level.QUICK).problems
    assert "damaged" in prove(store, copy).problems[0]


def test_a_member_that_is_missing_in_the_middle_is_found(original: Path, store: ArchiveStore) -> None:
    start, end = members(original)[2:4]
    copy = damaged(original, store.directory, lambda content: content.__delitem__(slice(start, end)))
    assert "not as long" in prove(store, copy, Level.QUICK).problems[0]
    assert prove(store, copy).problems


def test_appended_garbage_is_found(original: Path, store: ArchiveStore) -> None:
    copy = damaged(original, store.directory, lambda content: content.extend(b"garbage"))
    assert prove(store, copy, Level.QUICK).problems
    assert prove(store, copy).problems


def test_a_stretch_of_zeros_names_every_file_in_it(original: Path, store: ArchiveStore) -> None:
    film, log = entries(original)["photos/film.mp4"], entries(original)["photos/log.txt"]

    def wipe(content: bytearray) -> None:
        content[film.content : log.end] = bytes(log.end - film.content)

    problems = prove(store, damaged(original, store.directory, wipe)).problems
    assert {"photos/film.mp4 cannot be read back.", "photos/log.txt cannot be read back."} <= set(problems)
    assert not any("note100" in p for p in problems)


def test_content_exchanged_under_right_checksums_names_the_file(original: Path, store: ArchiveStore) -> None:
    """As only a program that knows the format could do it: every gzip checksum holds, the hash does not."""
    film = entries(original)["photos/film.mp4"]

    def exchange(content: bytearray) -> None:
        size = gzip.member_bytes(bytes(content[film.content : film.content + gzip.HEADER_BYTES]))
        assert size
        chunk = bytearray(gzip.unpack(bytes(content[film.content : film.content + size])))
        chunk[5] ^= 1
        packed = b"".join(gzip.pack(bytes(chunk)))
        assert len(packed) == size
        content[film.content : film.content + size] = packed

    problems = prove(store, damaged(original, store.directory, exchange)).problems
    assert "photos/film.mp4 is not what it was when it was written." in problems


def test_a_sidecar_for_something_else_is_told(original: Path, store: ArchiveStore) -> None:
    copy = damaged(original, store.directory, lambda content: None)
    sidecar = copy.with_name(copy.name + ".sha256")
    sidecar.write_text(f"{'0' * 64}  {copy.name}\n")
    assert prove(store, copy).problems == (f"{copy.name} is not the file that {sidecar.name} was made for.",)
    for content in (f"{'0' * 64}  other.tar.gz\n", "", "Dear Oma\n"):
        sidecar.write_text(content)
        assert "is no line for" in prove(store, copy, Level.QUICK).problems[0]


NO_ARCHIVES = {
    "nothing": b"",
    "text": b"Dear Oma,\n" * 100,
    "a photo": b"\xff\xd8\xff" + bytes(2000),
    "gzip of text": subprocess.run(["gzip"], input=b"Dear Oma,\n" * 100, capture_output=True, check=True).stdout,
    "gzip of a word": subprocess.run(["gzip"], input=b"Oma", capture_output=True, check=True).stdout,
    "gzip of nothing": subprocess.run(["gzip"], input=b"", capture_output=True, check=True).stdout,
}


@pytest.mark.parametrize("content", NO_ARCHIVES.values(), ids=NO_ARCHIVES.keys())
def test_a_file_that_is_no_archive_is_called_that(content: bytes, store: ArchiveStore) -> None:
    path = store.directory / "thing.tar.gz"
    path.write_bytes(content)
    with pytest.raises(NotAnArchive, match=r"thing\.tar\.gz is not a"):
        prove(store, path)


def test_what_is_no_file_at_all_is_told_as_such(store: ArchiveStore) -> None:
    os.mkfifo(store.directory / "pipe")
    for path, error in ((store.directory, NotAnArchive), (store.directory / "pipe", NotAnArchive)):
        with pytest.raises(error):
            prove(store, path)
    with pytest.raises(UnknownBackup):
        prove(store, store.directory / "nowhere")
    with pytest.raises(UsageError):
        prove(store, store.directory / "pipe" / "x")


@pytest.mark.parametrize("name", ["photos", "."])
@pytest.mark.parametrize("packer", ["czf", "gzip -9"])
def test_an_archive_made_by_hand_is_listed_proved_and_read(store: ArchiveStore, name: str, packer: str) -> None:
    source = store.directory / "source"
    (source / "photos" / "empty").mkdir(parents=True)
    (source / "photos" / "a.jpg").write_bytes(os.urandom(3_000_000))
    (source / "photos" / "b.txt").write_bytes(b"b")
    os.link(source / "photos" / "b.txt", source / "photos" / "c.txt")
    path = store.directory / "memu_backup_20260101_020000.tar.gz"
    if packer == "czf":
        subprocess.run(["tar", "-C", source, "-czf", path, name], check=True)
    else:
        packed = subprocess.run(["tar", "-C", source, "-cf", "-", name], check=True, capture_output=True).stdout
        path.write_bytes(subprocess.run(["gzip", "-9"], input=packed, check=True, capture_output=True).stdout)
    assert [(b.name, b.manifest) for b in store.backups()] == [(path.name, None)]
    verdict = prove(store, path)
    assert (verdict.problems, verdict.files, verdict.content_bytes) == ((), 2, 3_000_001)
    assert b"".join(store.content(path, "photos/a.jpg")) == (source / "photos" / "a.jpg").read_bytes()
    assert b"".join(store.content(path, "photos/c.txt")) == b"b"
    path.write_bytes(path.read_bytes()[:-1000])
    assert "is damaged" in prove(store, path).problems[0]


@pytest.mark.parametrize(
    "said", ['{"timestamp": "20260101_020000", "version": "1.0"}', "Dear Oma", "[]", '{"format": 7}', "[" * 100_000]
)
def test_anothers_files_that_are_called_as_ours_are_no_damage(store: ArchiveStore, tmp_path: Path, said: str) -> None:
    """The old backup.sh wrote a metadata.json too, and anyone may pack a SHA256SUMS of their own."""
    source = tmp_path / "source"
    (source / "photos").mkdir(parents=True)
    (source / "photos" / "a.jpg").write_bytes(b"jpeg")
    (source / "metadata.json").write_text(said)
    (source / "SHA256SUMS").write_text(f"{'0' * 64}  photos/a.jpg\n")
    path = store.directory / "memu_backup_20260101_020000.tar.gz"
    subprocess.run(["tar", "-C", source, "-czf", path, "metadata.json", "photos", "SHA256SUMS"], check=True)
    with ArchiveReader(path) as reader:
        assert reader.manifest() is None
    verdict = prove(store, path)
    assert (verdict.problems, verdict.files, verdict.content_bytes) == ((), 3, 4 + len(said) + 79)


@pytest.mark.parametrize("said", ['{"format": "memu-backup/1"}', '{"format": "memu-backup/9"}'])
def test_what_says_that_it_is_ours_and_is_not_is_damage(store: ArchiveStore, tmp_path: Path, said: str) -> None:
    (tmp_path / "metadata.json").write_text(said)
    path = store.directory / "memu_backup_20260101_020000.tar.gz"
    subprocess.run(["tar", "-C", tmp_path, "-czf", path, "metadata.json"], check=True)
    assert "its metadata.json is" in prove(store, path).problems[0]


def test_an_empty_archive_is_good_and_empty(store: ArchiveStore) -> None:
    path = store.directory / "memu_backup_20260101_020000.tar.gz"
    subprocess.run(["tar", "-czf", path, "-T", "/dev/null"], check=True)
    verdict = prove(store, path)
    assert (verdict.problems, verdict.files) == ((), 0)
    ours = write(store, tree(path, "archive"))
    with ArchiveReader(ours.partial_path) as reader:
        assert [e.path for e in reader.index()] == ["archive"]


def test_reading_damage_never_gives_bytes_that_were_not_written(original: Path, store: ArchiveStore) -> None:
    entry = entries(original)["photos/film.mp4"]
    middle = (entry.content + entry.end) // 2
    copy = damaged(original, store.directory, lambda content: flip(content, middle))
    whole = b"".join(store.content(original, "photos/film.mp4"))
    got = b""
    with pytest.raises(ArchiveError):
        for block in store.content(copy, "photos/film.mp4"):
            got += block
    assert whole.startswith(got)


def test_a_backup_to_share_with_that_cannot_be_read_is_named_in_a_sentence(tmp_path: Path) -> None:
    (tmp_path / "photo.jpg").write_bytes(os.urandom(1000))
    archive = back_up(archive_store(tmp_path / "store"), tree(tmp_path / "photo.jpg", "a.jpg"))
    with ArchiveReader(archive) as reader, archive.open("rb") as source, (tmp_path / "new").open("wb") as target:
        older = Earlier(reader, source.fileno())
        os.truncate(archive, 10)
        with pytest.raises(SharedDamage) as told:
            older.copy((0, 100), target.fileno(), 0)
    assert str(told.value) == f"{archive.name} ends before byte 100."
