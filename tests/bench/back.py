"""The whole way back: a folder and its database are lost, and everybody brings both back to where they were."""

from __future__ import annotations

import argparse
import asyncio
import json
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from statistics import median

import asyncpg

from memu_backup.postgres.programs import programs
from memu_backup.postgres.server import PostgresServer
from tests.bench import corpus
from tests.bench.corpus import CACHE, Size
from tests.bench.measure import Sample, run
from tests.bench.table import mark
from tests.bench.tools import MEMU, lacking

DATABASE = "chat"
ROWS_A_MB = 4_000
SPEC_GB, SPEC_MINUTES = 50, 60
"""What MediaNest's document allows."""

Argv = Sequence[str | Path]


class House:
    """A folder, and a database with a tenth of its bytes. ``lose`` both, and see whether they ``are_back``."""

    def __init__(self, folder: Path, server: PostgresServer) -> None:
        self.folder, self.server = folder, server
        self.url = server.url().replace("/postgres?", f"/{DATABASE}?")

    def sql(self, *statements: str, on: str = "") -> int:
        async def asked() -> int:
            connection = await asyncpg.connect(on or self.url)
            try:
                for statement in statements[:-1]:
                    await connection.execute(statement)
                return int(await connection.fetchval(statements[-1]) or 0)
            finally:
                await connection.close()

        return asyncio.run(asked())

    def fill(self, size_mb: int) -> None:
        self.sql(f"CREATE DATABASE {DATABASE}", "SELECT 0", on=self.server.url())
        each = size_mb * ROWS_A_MB // 4
        self.sql(
            *(
                f"CREATE TABLE room{n} AS SELECT g AS id, md5(g::text) AS who, repeat(md5((g * {n + 1})::text), 4)"
                f" AS said, now() - g * interval '1 min' AS at FROM generate_series(1, {each}) g"
                for n in range(4)
            ),
            *(f"ALTER TABLE room{n} ADD PRIMARY KEY (id)" for n in range(4)),
            *(f"CREATE INDEX ON room{n} (who)" for n in range(4)),
            "SELECT 0",
        )
        self._whole = self._seen()

    def database_bytes(self) -> int:
        return self.sql("SELECT pg_database_size(current_database())")

    def _seen(self) -> tuple[int, int, int]:
        files = [p for p in self.folder.rglob("*") if p.is_file()]
        rows = self.sql(f"SELECT {' + '.join(f'(SELECT count(*) FROM room{n})' for n in range(4))}")
        return len(files), sum(p.stat().st_size for p in files), rows

    def lose(self) -> None:
        shutil.rmtree(self.folder)
        self.sql(f"DROP DATABASE IF EXISTS {DATABASE} WITH (FORCE)", "SELECT 0", on=self.server.url())

    def must_be_back(self) -> None:
        assert self._seen() == self._whole, "not all of it came back"

    def create(self) -> Argv:
        return [programs() / "psql", self.server.url(), "-qc", f"CREATE DATABASE {DATABASE}"]

    def dump(self, file: Path) -> Argv:
        return [programs() / "pg_dump", "-Fc", "-f", file, self.url]

    def load(self, file: Path) -> Argv:
        return [programs() / "pg_restore", "-j", "2", "-d", self.url, file]


class Ours:
    name = "memu-backup"

    def __init__(self, house: House, place: Path) -> None:
        self.place = place
        (place / "config.toml").write_text(
            f'backup_dir = "{place / "backups"}"\nstate_dir = "{place / "state"}"\n'
            f'[sources.household]\nkind = "directory"\npath = "{house.folder}"\n'
            f'[sources.chat]\nkind = "postgres"\nurl = "{house.url}"\n'
            '[jobs.nightly]\nat = "02:00"\n'
        )
        self.run("start")

    def run(self, *argv: str, writes: Path | None = None) -> Sample:
        return run([MEMU, "-c", self.place / "config.toml", *argv], cwd=self.place, writes=writes)

    def way_back(self, house: House) -> list[Sample]:
        return [self.run("restore", "--in-place", "--yes", writes=self.place)]

    def forget(self) -> None:
        """What was restored before is done with."""
        self.run("restore", "--release", "--yes")

    def drill(self) -> tuple[int, float]:
        """Bytes that were tried, and seconds."""
        (tried,) = json.loads(self.run("drill", "latest", "--json").output)
        return tried["size_bytes"], tried["seconds"]


class Peer:
    """By its own archive of the folder and of a dump."""

    name = ""
    env: dict[str, str]

    def __init__(self, house: House, place: Path) -> None:
        self.place, self.file = place, house.folder.parent / "chat.dump"
        self.env = {}
        self.init(house)
        self.command(*house.dump(self.file))
        self.command(*self.packing(house), cwd=house.folder.parent)
        self.file.unlink()

    def init(self, house: House) -> None: ...

    def packing(self, house: House) -> Argv:
        raise NotImplementedError

    def unpacking(self, house: House) -> Argv:
        raise NotImplementedError

    def command(self, *argv: str | Path, cwd: Path | None = None, writes: Path | None = None) -> Sample:
        return run(argv, cwd=cwd or self.place, writes=writes, env=self.env)

    def way_back(self, house: House) -> list[Sample]:
        steps = [self.unpacking(house), house.create(), house.load(self.file)]
        done = [self.command(*step, cwd=house.folder.parent, writes=self.place) for step in steps]
        self.file.unlink()
        return done

    def forget(self) -> None: ...


class Tar(Peer):
    name = "tar + pg_restore"

    def packing(self, house: House) -> Argv:
        return ["tar", "-czf", self.place / "all.tar.gz", house.folder.name, self.file.name]

    def unpacking(self, house: House) -> Argv:
        return ["tar", "-xzpf", self.place / "all.tar.gz"]


class Restic(Peer):
    name = "restic + pg_restore"

    def init(self, house: House) -> None:
        (self.place / "password").write_text("not secret")
        self.env = {
            "RESTIC_REPOSITORY": str(self.place / "repository"),
            "RESTIC_PASSWORD_FILE": str(self.place / "password"),
            "RESTIC_CACHE_DIR": str(self.place / "cache"),
        }
        self.command("restic", "--quiet", "init")

    def packing(self, house: House) -> Argv:
        return ["restic", "--quiet", "backup", house.folder.name, self.file.name]

    def unpacking(self, house: House) -> Argv:
        return ["restic", "--quiet", "restore", "latest", "--target", "."]


class Borg(Peer):
    name = "borg + pg_restore"

    def init(self, house: House) -> None:
        self.env = {"BORG_BASE_DIR": str(self.place), "BORG_UNKNOWN_UNENCRYPTED_REPO_ACCESS_IS_OK": "yes"}
        self.command("borg", "init", "--encryption", "none", self.place / "repository")

    def packing(self, house: House) -> Argv:
        return ["borg", "create", f"{self.place / 'repository'}::all", house.folder.name, self.file.name]

    def unpacking(self, house: House) -> Argv:
        return ["borg", "extract", f"{self.place / 'repository'}::all"]


def main() -> int:
    parser = argparse.ArgumentParser(prog="make bench-back", description=__doc__)
    corpus.add_options(parser)
    parser.add_argument("--rounds", type=int, default=3, help="how often everyone takes a turn (default: 3)")
    options, _ = parser.parse_known_args()
    if lacking():
        return 1
    household, size = corpus.made(options)
    work = (CACHE / "back").absolute()
    shutil.rmtree(work, ignore_errors=True)
    server = PostgresServer(work / "server")
    asyncio.run(server.start())
    try:
        house = House(work / "house" / "household", server)
        house.folder.parent.mkdir()
        subprocess.run(["cp", "-a", household, house.folder], check=True)
        house.fill(options.size_mb // 10)
        return _measured(house, size, work, options.rounds)
    finally:
        asyncio.run(server.stop())
        shutil.rmtree(work, ignore_errors=True)


def _measured(house: House, size: Size, work: Path, rounds: int) -> int:
    held_bytes = house.database_bytes() + size.total_bytes
    print(
        f"\n{size}, and a database of {house.database_bytes() / 1e6:.0f} MB: all of it lost and brought back",
        flush=True,
    )
    tools: dict[str, Ours | Peer] = {}
    for kind in (Ours, Tar, Restic, Borg):
        (work / kind.name).mkdir()
        tools[kind.name] = kind(house, work / kind.name)
    ours = tools[Ours.name]
    assert isinstance(ours, Ours)
    taken: dict[str, list[float]] = {name: [] for name in tools}
    for number in range(rounds):
        for name in [*tools][number % len(tools) :] + [*tools][: number % len(tools)]:
            house.lose()
            samples = tools[name].way_back(house)
            house.must_be_back()
            tools[name].forget()
            taken[name].append(sum(s.seconds for s in samples))
            peak = max(s.peak_bytes for s in samples)
            print(f"  round {number + 1}  {name:20} {taken[name][-1]:7.2f} s  {peak / 1e6:6.0f} MB", flush=True)
    tried_bytes, seconds = ours.drill()
    mine = median(taken[Ours.name])
    minutes = mine * SPEC_GB * 1e9 / held_bytes / 60
    print(f"memu-backup {mine:.2f} s; a restore test tried {tried_bytes / seconds / 1e6:.0f} MB/s")
    reached = minutes <= SPEC_MINUTES
    print(
        f"  At this rate {SPEC_GB} GB are back after {minutes:.1f} minutes; the specification allows {SPEC_MINUTES}: "
        f"{mark(reached)}"
    )
    for name, times in taken.items():
        if name != Ours.name:
            ratio = median(times) / mine
            reached &= ratio >= 1
            print(f"  {name}: {median(times):.2f} s, {ratio:.2f} × ours: at least 1: {mark(ratio >= 1)}")
    return 0 if reached else 1


if __name__ == "__main__":
    sys.exit(main())
