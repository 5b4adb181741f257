"""Signs the bot in, once, and makes its account vouch for the new device before anybody writes to it."""

from __future__ import annotations

from typing import Any

from nio import AsyncClient

from memu_backup.chat import homeserver as homeservers
from memu_backup.chat.account import Account, Safe, new_pickle_key
from memu_backup.chat.homeserver import call, good, translated
from memu_backup.chat.identity import Identity, master_key, vouches
from memu_backup.errors import ChatError, ChatRefused

_DEVICE_NAME = "memu-backup"


async def log_in(safe: Safe, homeserver: str, user: str, password: str) -> Account:
    """Sign in as a new device, with the identity of earlier logins where there was one.

    What fails leaves the login before it as it was, and no device behind. Raises ChatAway, ChatRefused, ChatError.
    """
    address = await _address(homeserver)
    async with homeservers.client(address, user) as bare:
        with translated(address):
            answer = await bare.login(password, _DEVICE_NAME)
        try:
            good(bare, answer)
        except ChatRefused as error:
            raise ChatRefused(f"{error} Nobody was signed in; check the account's name and its password.") from error
        try:
            account = Account(address, bare.user_id, bare.device_id, bare.access_token, new_pickle_key())
            await _introduce(safe, account, password)
            before = safe.account()
            safe.keep_account(account)
        except BaseException:
            safe.forget_keys(bare.device_id)
            await _leave(bare)
            raise
    if before:
        await _end(before)
    return account


async def _address(homeserver: str) -> str:
    """Where the homeserver really is, which people know by its name: ``/.well-known/matrix/client``."""
    address = homeserver.rstrip("/")
    if "://" not in address:
        address = f"https://{address}"
    async with homeservers.client(address, "") as asking:
        with translated(address):
            found = await asking.discovery_info()
    named = getattr(found, "homeserver_url", "")
    return named.rstrip("/") if named else address


async def _introduce(safe: Safe, account: Account, password: str) -> None:
    """Publish the keys of the device and let the identity vouch for it."""
    keys = safe.keys(account.device_id)
    opened = homeservers.client(
        account.homeserver, account.user_id, device_id=account.device_id, keys=keys, pickle_key=account.pickle_key
    )
    async with opened as client:
        client.restore_login(account.user_id, account.device_id, account.token)
        with translated(account.homeserver):
            good(client, await client.keys_upload())
        queried = await _query(client)
        identity = safe.identity() or Identity.new()
        known = master_key(account.user_id, queried)
        if known not in (None, identity.master.public):
            raise ChatError(
                f"{account.user_id} has an identity already that was made elsewhere, as by signing in with Element. It "
                "is not replaced, since everybody in the room would be warned; nobody was signed in. Make an account "
                "for memu-backup alone, and sign in with that one."
            )
        safe.keep_identity(identity)  # before anybody sees it: one that was lost could not be used again
        if known is None:
            await _publish(client, identity, password)
            queried = await _query(client)
        device = queried["device_keys"][account.user_id][account.device_id]
        signed = identity.signed_device(account.user_id, device)
        answer = await call(client, "POST", "/keys/signatures/upload", {account.user_id: {account.device_id: signed}})
        if answer.get("failures") or not vouches(account.user_id, account.device_id, await _query(client)):
            raise ChatRefused(f"The homeserver at {account.homeserver} did not take the signature of the bot's device.")


async def _query(client: AsyncClient) -> dict[str, Any]:
    return await call(client, "POST", "/keys/query", {"device_keys": {client.user_id: []}})


async def _publish(client: AsyncClient, identity: Identity, password: str) -> None:
    """Most homeservers take the first identity of an account as it is; others ask for the password once more."""
    path, body = "/keys/device_signing/upload", identity.public_keys(client.user_id)
    try:
        await call(client, "POST", path, body)
    except ChatRefused as error:
        if not error.session:
            raise
        user = {"type": "m.id.user", "user": client.user_id}
        auth = {"type": "m.login.password", "identifier": user, "password": password, "session": error.session}
        await call(client, "POST", path, {**body, "auth": auth})


async def _end(account: Account) -> None:
    """End an earlier login; where that fails its device stays in the list of devices, which harms nobody."""
    async with homeservers.client(account.homeserver, account.user_id) as client:
        client.access_token = account.token
        await _leave(client)


async def _leave(client: AsyncClient) -> None:
    try:
        await call(client, "POST", "/logout", {})
    except ChatError:
        return
