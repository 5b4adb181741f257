"""The bot is signed in once, its account vouches for its device, and nothing half-done stays where that fails."""

from __future__ import annotations

import json
import os
import stat
from pathlib import Path

import pytest

from memu_backup.chat.account import Safe
from memu_backup.chat.homeserver import client
from memu_backup.chat.identity import Identity, master_key, vouches
from memu_backup.chat.login import _publish, _query, log_in
from memu_backup.errors import ChatAway, ChatError, ChatRefused
from tests.chat.conftest import Account, Person
from tests.chat.family import PASSWORD
from tests.home import Home
from tests.synapse import Refused, Synapse


@pytest.fixture
def safe(tmp_path: Path) -> Safe:
    return Safe(tmp_path / "state")


async def test_others_see_that_its_account_vouches_for_the_device(
    synapse: Synapse, account: Account, person: Person, safe: Safe
) -> None:
    bot, anna = await account("bot"), await person("anna")
    made = await log_in(safe, synapse.url, bot, PASSWORD)
    assert vouches(bot, made.device_id, await anna.device_trust(bot))
    assert safe.account() == made and made.user_id == bot
    assert made.token not in repr(made) and made.pickle_key not in repr(made)


async def test_signing_in_anew_is_a_new_device_of_the_same_identity(
    synapse: Synapse, account: Account, person: Person, safe: Safe
) -> None:
    bot, anna = await account("bot"), await person("anna")
    first = await log_in(safe, synapse.url, bot, PASSWORD)
    before = (await anna.device_trust(bot))["master_keys"]
    second = await log_in(safe, synapse.url, bot, PASSWORD)
    now = await anna.device_trust(bot)
    assert now["master_keys"] == before
    assert vouches(bot, second.device_id, now)
    assert first.device_id not in now["device_keys"][bot], "the login before it is ended"
    # The service may have the keys of the login before it open just now.
    kept = safe.folder / "keys" / first.device_id
    safe.tidy(second)
    assert kept.exists()
    os.utime(kept, (0, 0))
    safe.tidy(second)
    assert [p.name for p in (safe.folder / "keys").iterdir()] == [second.device_id]
    with pytest.raises(Refused, match="401"):
        await synapse.ask("GET", "/_matrix/client/v3/account/whoami", None, token=first.token)


async def test_an_identity_that_was_made_elsewhere_is_not_replaced(
    synapse: Synapse, account: Account, person: Person, safe: Safe, tmp_path: Path
) -> None:
    bot, anna = await account("bot"), await person("anna")
    elsewhere = await log_in(safe, synapse.url, bot, PASSWORD)
    before = await anna.device_trust(bot)
    other = Safe(tmp_path / "other")
    with pytest.raises(ChatError, match="has an identity already that was made elsewhere"):
        await log_in(other, synapse.url, bot, PASSWORD)
    assert (other.account(), other.identity()) == (None, None)
    assert list((other.folder / "keys").iterdir()) == []
    after = await anna.device_trust(bot)
    assert after["master_keys"] == before["master_keys"]
    assert set(after["device_keys"][bot]) == {elsewhere.device_id}, "no device stays behind"


async def test_a_homeserver_that_asks_for_the_password_once_more_is_given_it(
    synapse: Synapse, account: Account, safe: Safe
) -> None:
    """Synapse takes an account's first identity as it is, and asks for each that takes its place."""
    bot = await account("bot")
    made = await log_in(safe, synapse.url, bot, PASSWORD)
    before, new = safe.identity(), Identity.new()
    async with client(synapse.url, bot) as signed_in:
        signed_in.access_token, signed_in.user_id = made.token, bot
        with pytest.raises(ChatRefused, match="asks for the password once more"):
            await _publish(signed_in, new, "wrong")
        await _publish(signed_in, new, PASSWORD)
        queried = await _query(signed_in)
    assert before and before.master.public != new.master.public == master_key(bot, queried)


@pytest.mark.slow
async def test_what_fails_leaves_the_login_as_it_was(synapse: Synapse, account: Account, safe: Safe) -> None:
    bot = await account("bot")
    made = await log_in(safe, synapse.url, bot, PASSWORD)
    with pytest.raises(ChatRefused, match="check the account's name and its password"):
        await log_in(safe, synapse.url, bot, "wrong")
    synapse.stop()
    with pytest.raises(ChatAway, match="does not answer"):
        await log_in(safe, synapse.url, bot, PASSWORD)
    synapse.start()
    assert safe.account() == made


def test_damaged_keys_are_not_taken_for_none(safe: Safe) -> None:
    safe.folder.mkdir(parents=True)
    for name in ("identity.json", "account.json"):
        (safe.folder / name).write_text("{}")
    for look in (safe.identity, safe.account):
        with pytest.raises(ChatError, match="is damaged"):
            look()


async def test_the_command_asks_on_a_terminal_and_says_what_comes_next(
    synapse: Synapse, account: Account, tmp_path: Path, database: str
) -> None:
    home = Home(tmp_path / "home", database)
    bot = await account("bot")
    refused = home.run("chat", "login", "--homeserver", synapse.url, "--user", bot)
    assert refused.status == 2 and "--password-file" in refused.err
    (home.folder / "password").write_text(f"{PASSWORD}\n")
    ran = home.run("chat", "login", "--homeserver", synapse.url, "--user", bot, "--password-file", "password")
    assert ran.status == 0 and f"let one of the admins invite {bot} to the room, unless" in ran.out, ran.err
    assert "backup_notification_room = " in ran.out and 'admins = ["@you' in ran.out
    assert PASSWORD not in ran.out + ran.err
    chat = home.folder / "state" / "chat"
    assert json.loads((chat / "account.json").read_text())["user_id"] == bot
    for path in (chat, *chat.rglob("*")):
        assert stat.S_IMODE(path.stat().st_mode) & 0o077 == 0, path
    typed = home.on_a_terminal("chat", "login", answer=f"{synapse.url}\n{bot}\n{PASSWORD}\n")
    assert typed.status == 0 and "is signed in" in typed.out, typed.out
    assert PASSWORD not in typed.out
