"""Redis: a snapshot goes back to where its server finds it, and only where nothing else would be loaded instead."""

from __future__ import annotations

import os
import shutil
import signal
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest

from memu_backup import exchange
from memu_backup.errors import DatabaseError, RestoreError
from memu_backup.redis.home import Log, log_of
from memu_backup.sources.redis import RedisSource
from tests.archives import Return, archive_store, back_up, needs_root, returning
from tests.home import Home
from tests.sources.redis_servers import DISKLESS, RedisServer, a_server, source, until

NAMES = ("--appenddirname", "the log", "--appendfilename", "cache.aof")


@pytest.fixture
async def archive(server: RedisServer, stage: Path, tmp_path: Path) -> Path:
    """A backup of ``server``, which is then lost."""
    server.fill(500)
    return await backed_up(server, stage, tmp_path)


async def backed_up(server: RedisServer, stage: Path, tmp_path: Path) -> Path:
    async with source(server).capture(stage) as captured:
        return back_up(archive_store(tmp_path / "store"), captured)


async def planned(archive: Path, taken: RedisSource) -> Return:
    return await returning(archive, {"cache": taken}, archive.parent / "scratch")


async def not_planned(archive: Path, taken: RedisSource) -> str:
    with pytest.raises(RestoreError) as met:
        await planned(archive, taken)
    assert "nothing was changed" in str(met.value) and "cache" in str(met.value) and "\n" not in str(met.value)
    return str(met.value)


async def test_while_the_server_runs_it_is_not_put_back(server: RedisServer, archive: Path) -> None:
    back = await planned(archive, source(server))
    with pytest.raises(RestoreError, match=r"runs, and would write over what is put back.*Stop it first"):
        await back.carry_out()
    assert not back.step.unpacking.target.exists()
    server.end()
    server.file.unlink(missing_ok=True)
    back = await planned(archive, source(server))
    server.start()
    with pytest.raises(RestoreError, match="runs, and would write over"):
        await back.carry_out()
    server.end()
    assert not server.file.exists() and not back.step.unpacking.target.exists()


async def test_a_file_that_is_there_is_exchanged_and_kept(server: RedisServer, archive: Path) -> None:
    server.end(signal.SIGTERM)
    server.file.unlink()
    server.file.symlink_to("nowhere")
    back = await planned(archive, source(server))
    assert back.step.replaces == (str(server.file),)
    made = (await back.carry_out()).restore
    assert server.file.is_file() and not server.file.is_symlink()
    (swap,) = made.swaps["cache"]
    assert Path(swap.old).readlink() == Path("nowhere")


def _of_redis_7(server: RedisServer) -> Path:
    server.start("--appendonly", "yes")
    server.end()
    return server.data / "appendonlydir" / "appendonly.aof.manifest"


def _of_redis_6(server: RedisServer) -> Path:
    (server.data / "appendonly.aof").write_text("*1\r\n$4\r\nPING\r\n")
    return server.data / "appendonly.aof"


def _of_another_name(server: RedisServer) -> Path:
    server.start("--appendonly", "yes", *NAMES)
    server.end()
    return server.data / "the log" / "cache.aof.manifest"


@pytest.mark.parametrize("left", [_of_redis_7, _of_redis_6, _of_another_name])
async def test_an_append_only_file_that_would_be_loaded_instead_is_exchanged_too(
    server: RedisServer, archive: Path, left: Callable[[RedisServer], Path]
) -> None:
    server.end()
    there = left(server)
    server.file.unlink(missing_ok=True)
    assert there.exists()
    back = await planned(archive, source(server))
    log = there if there.suffix == ".aof" else there.parent
    assert back.step.replaces == (str(log),)
    made = (await back.carry_out()).restore
    assert server.file.exists() and log.exists() and Path(made.swaps["cache"][0].old).exists()
    for options in ((), ("--appendonly", "yes", *(NAMES if "cache" in there.name else ()))):
        server.start(*options)
        assert len(server.everything()) > 500
        server.end()


async def test_where_no_folder_or_no_path_is_known_it_is_said(server: RedisServer, archive: Path) -> None:
    server.end()
    told = await not_planned(archive, source(server, path=None))
    assert f"(it was {server.file})" in told and "sources.cache.path" in told
    told = await not_planned(archive, source(server, path=server.folder / "gone" / "dump.rdb"))
    assert f"{server.folder / 'gone'}, where source cache belongs, has vanished" in told


@needs_root
async def test_it_belongs_to_whom_the_folder_belongs_and_to_nobody_else(server: RedisServer, archive: Path) -> None:
    before = server.everything()
    server.end()
    nobody = 50_000 + os.getpid() % 10_000
    server.folder.chmod(0o777)
    os.chown(server.data, nobody, nobody + 1)
    await (await planned(archive, source(server))).carry_out()
    status = server.file.stat()
    assert (status.st_uid, status.st_gid, oct(status.st_mode & 0o7777)) == (nobody, nobody + 1, "0o600")
    server.start(user=nobody, group=nobody + 1)
    assert server.everything() == before


async def test_what_a_stranger_put_into_a_backup_is_not_trusted(
    server: RedisServer, archive: Path, stage: Path
) -> None:
    """A link in place of the file; and details that are not ours."""
    server.end()
    step = (await planned(archive, source(server))).step
    (stage / "mine").write_text("mine")
    (stage / "given").symlink_to(stage / "mine")
    with pytest.raises(RestoreError, match="is no file; nothing was changed"):
        await source(server).prepare(stage / "given", step.summary, "now")
    assert not os.path.lexists(server.file)
    for details in ({}, {"keys": {"db0": -1}}, {"keys": "many"}, {"kept_at": "a\nb" * 200}):
        with pytest.raises(RestoreError) as met:
            await source(server, path=None).landing(replace(step.summary, details=details))
        assert "\n" not in str(met.value) and len(str(met.value)) < 500


@pytest.mark.parametrize("names", [(), pytest.param(NAMES, marks=pytest.mark.slow)])
async def test_with_append_only_on_it_comes_back_is_undone_and_had_again(
    stage: Path, tmp_path: Path, names: tuple[str, ...]
) -> None:
    """Redis 7 loads its append-only file alone, and what it had written to that since is there again, too."""
    with a_server(*DISKLESS) as server:
        start = partial(server.start, "--appendonly", "yes", *names)
        start()
        server.fill(500)
        before = server.everything()
        archive = await backed_up(server, stage, tmp_path)
        server.cli("SET", "since", "the backup")
        since = server.everything()
        server.end()
        back = await planned(archive, source(server))
        assert await back.all_there() == ()
        start()
        assert server.everything() == before
        server.cli("SET", "since", "the restore")
        server.cli("BGREWRITEAOF")  # of the files that were put there none is left then
        await until(lambda: "aof_rewrite_in_progress:0" in server.cli("INFO", "persistence"))
        restored = server.everything()
        for expected in (since, restored, since):
            server.end()
            await exchange.undo(back.house, None, lambda _: None)
            start()
            assert server.everything() == expected
        server.end()
        await exchange.release(back.house, None)
        folder = names[1] if names else "appendonlydir"
        assert {path.name for path in server.data.iterdir()} <= {"dump.rdb", folder}


async def test_onto_an_empty_disk_its_append_only_file_comes_with_it(stage: Path, tmp_path: Path) -> None:
    with a_server(*DISKLESS) as server:
        server.start("--appendonly", "yes", *NAMES)
        server.fill(500)
        before = server.everything()
        archive = await backed_up(server, stage, tmp_path)
        server.end()
        shutil.rmtree(server.data)
        server.data.mkdir()
        taken = source(server)
        back = await planned(archive, taken)
        assert await back.all_there() == ()
        base = server.data / "the log" / "cache.aof.1.base.rdb"
        assert base.stat().st_ino == server.file.stat().st_ino  # which takes its room once
        server.start("--appendonly", "yes", *NAMES)
        assert server.everything() == before
        assert await taken.recalled(back.step.summary) == "508 keys, as in the backup"
        server.cli("FLUSHALL")
        with pytest.raises(DatabaseError, match=r"is empty, and has 508 keys in the backup"):
            await taken.recalled(back.step.summary)
        server.end()
        with pytest.raises(DatabaseError, match=r"does not answer, so source cache cannot be looked at"):
            await taken.recalled(back.step.summary)


@pytest.mark.parametrize("server_version", ["6.2.14", "7.0.15"])
async def test_before_redis_7_it_is_one_file(server: RedisServer, archive: Path, server_version: str) -> None:
    """A snapshot is what an append-only file of Redis 4 to 6 begins with, and Redis 7 takes such a file over."""
    before = server.everything()
    server.end()
    server.file.unlink(missing_ok=True)
    step = (await planned(archive, source(server))).step
    older = server_version.startswith("6")
    told = {"append_only": True, "append_file": "old.aof", "append_folder": None if older else "new"}
    given = server.data / "given.rdb"
    shutil.copy(next(archive.parent.parent.rglob("cache.rdb")), given)
    prepared = await source(server).prepare(given, replace(step.summary, details=told), "now")
    log, file = prepared.swaps
    assert Path(log.home).name == ("old.aof" if older else "new") and file.home == str(server.file)
    for one in prepared.swaps:
        await source(server).forth(one)
    server.start("--appendonly", "yes", "--appendfilename", "old.aof", "--appenddirname", "new")
    assert server.everything() == before


def test_names_of_a_stranger_lead_nowhere(tmp_path: Path) -> None:
    for name in ("../../etc/cron.d", "/etc", "..", "", "a\nfile", 'a" seq 1 type b', "a\\b"):
        assert Log.of(name, "folder") == Log.of("file", name) == Log()
    assert Log.of("my cache.aof", "the log") == Log("my cache.aof", "the log")
    assert log_of(tmp_path / "dump.rdb", None) is None


def test_by_hand_from_the_first_backup_to_the_last_key(server: RedisServer, database: str, tmp_path: Path) -> None:
    server.fill(1000)
    server.cli("CONFIG", "SET", "save", "")
    before = server.everything()
    home = Home(tmp_path / "home", database)
    home.configure(sources=f'[sources.cache]\nkind = "redis"\nunixsocket = "{server.socket}"\npath = "{server.file}"\n')
    ran = home.run("start")
    assert ran.status == 0, ran
    assert "1,008 keys" in home.run("status", "--details").out
    assert "keeps nothing on its own disk" in str(home.rows()[0]["warnings"])
    checked = home.run("check")
    assert f"Redis at {server.socket} keeps nothing on its own disk" in " ".join(checked.out.split())
    server.end()
    assert home.run("verify").status == 0
    ran = home.run("restore", "--in-place", "--yes")
    assert ran.status == 0 and str(server.file) in ran.out, ran
    server.start()
    assert server.everything() == before
