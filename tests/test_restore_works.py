"""Number 17 of Memu's test plan, "Full restore successful": all that its specification names is lost and comes back."""

from __future__ import annotations

import os
import shutil
import tarfile
from pathlib import Path

from memu_backup.postgres.connection import count_rows
from memu_backup.postgres.server import PostgresServer
from tests.archives import needs_root, plain_tree, snapshot
from tests.home import Home, a_database, in_a_loop_of_its_own, query
from tests.test_standstill import App

CONFIG = (".env", "element-config.json", "nginx")
FOLDERS = ("photos", "synapse", "ollama")
EVERYTHING = "SELECT md5(string_agg(t::text, '|' ORDER BY t::text)) AS all FROM {} t"


class Memu(Home):
    """Its five sources, and the services that stand still while three of them are read."""

    def fill(self, chat: str) -> App:
        shutil.rmtree(self.photos)
        plain_tree(self.photos)
        for name, mode in (("media_store/local/aB", 0o640), ("family.example.signing.key", 0o600)):
            file = self.folder / "synapse" / name
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(os.urandom(40_000))
            os.chown(file, 991, 991)
            file.chmod(mode)
        (self.folder / "ollama" / "blobs").mkdir(parents=True)
        (self.folder / "ollama" / "blobs" / "sha256-model").write_bytes(os.urandom(3_000_000))
        (self.folder / "element-config.json").write_text('{"brand": "Memu"}\n')
        still = "needs_stop = true\n"
        app = App(self.folder / "app")
        self.configure(
            app.table(),
            sources="".join(f'[sources.{n}]\nkind = "directory"\npath = "{n}"\n' for n in ("photos", "ollama"))
            + f'[sources.synapse]\nkind = "directory"\npath = "synapse"\n{still}'
            + f'[sources.config]\nkind = "files"\npaths = {list(CONFIG)}\n{still}'
            + f'[sources.pgdata]\nkind = "postgres"\nurl = "{chat}"\n',
        )
        (self.folder / "config.toml").write_text(
            (self.folder / "config.toml").read_text().replace('at = "02:00"', 'at = "02:00"\nconsistency = "stop"')
        )
        return app

    def files(self) -> dict[str, object]:
        """Every byte, owner, right, time and link."""
        found: dict[str, object] = {name: snapshot(self.folder / name) for name in (*FOLDERS, "nginx")}
        for name in (n for n in CONFIG if n != "nginx"):
            status = (self.folder / name).stat()
            found[name] = (status.st_mode, status.st_uid, status.st_mtime_ns, (self.folder / name).read_bytes())
        return found

    def is_lost(self) -> None:
        for name in (*FOLDERS, "nginx"):
            shutil.rmtree(self.folder / name)
        for name in (".env", "element-config.json"):
            (self.folder / name).unlink()


@needs_root
def test_restore_works(tmp_path: Path, database: str, postgres: PostgresServer) -> None:
    with a_database(postgres) as chat:
        name = chat.rpartition("/")[2].partition("?")[0]
        in_a_loop_of_its_own(
            query(
                chat,
                "CREATE TABLE events (id serial PRIMARY KEY, body text, at timestamptz)",
                "INSERT INTO events (body, at) SELECT md5(n::text), now() FROM generate_series(1, 4321) n",
                "CREATE TABLE memory (fact text)",
                "INSERT INTO memory VALUES ('anna likes lakes')",
                "SELECT 1",
            )
        )
        memu = Memu(tmp_path / "memu", database)
        app = memu.fill(chat)
        ran = memu.run("start")
        assert ran.status == 0, ran
        (archive,) = memu.archives
        with tarfile.open(archive) as tar:
            assert {"photos", "synapse", "ollama", "config/nginx", "pgdata"} <= set(tar.getnames())
        before = memu.files()
        rows = in_a_loop_of_its_own(query(chat, EVERYTHING.format("events")))
        counted = in_a_loop_of_its_own(count_rows(chat))

        # The hardware failure: what is left is a copy, elsewhere, and the settings.
        copy = Path(shutil.copy2(archive, tmp_path))
        memu.is_lost()
        shutil.rmtree(memu.backups)
        in_a_loop_of_its_own(query(postgres.url(), f"DROP DATABASE {name} WITH (FORCE)", "SELECT 1"))
        ran = memu.run("restore", str(copy), "--in-place", "--yes")
        assert ran.status == 0 and "All of it is back" in ran.out, ran
        assert memu.files() == before
        assert in_a_loop_of_its_own(query(chat, EVERYTHING.format("events"))) == rows
        assert in_a_loop_of_its_own(count_rows(chat)) == counted == {"public.events": 4321, "public.memory": 1}
        assert app.runs() and app.log == ["stop", "start"] * 2
        assert memu.audit()[0]["outcome"] == "done"
