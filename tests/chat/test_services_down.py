"""What a backup had stopped and what does not come up again: the family hears of it, and when all runs again."""

from __future__ import annotations

import asyncio
from pathlib import Path

from tests.chat.family import Family, joined
from tests.test_standstill import App


async def test_what_does_not_come_up_again_is_told_and_that_all_runs_again(family: Family, tmp_path: Path) -> None:
    app = App(tmp_path / "app")
    app.script("start", "exit 4")
    family.home.configure(
        top=f'backup_notification_room = "{family.room}"',
        sources='[sources.photos]\nkind = "directory"\npath = "photos"\nneeds_stop = true\n',
        more=f'consistency = "stop"\n[chat]\nadmins = ["{family.anna.user_id}"]\n{app.table()}',
    )
    async with family.bot_runs():
        await joined(family)
        ran = await asyncio.to_thread(family.home.run, "start")
        assert ran.status == 0, ran
        assert await family.hears() == (
            "Backup Alert\nAfter a backup not everything came up again: app\n"
            "Action needed: On the server, type: memu-backup services recover\n\nUse /backup-status for details"
        )
        status = await family.answered("!backup status")
        assert "Health: Not everything runs again after a backup" in status
        app.script("start", 'touch "$0/../running"')
        assert (await asyncio.to_thread(family.home.run, "services", "recover")).status == 0
        await family.look()
        assert await family.hears() == "All well again\nWhat the backup had stopped runs again."
        assert "All systems healthy" in await family.answered("!backup status")
