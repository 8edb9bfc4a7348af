"""The key of what is sealed: made once, kept private, and never silently another one."""

import stat
from pathlib import Path

import pytest

from cogflare.store.base import Database
from cogflare.store.secrets import add_first_secret, find_secrets, forget_secrets
from cogflare.vault import KEY_FILE, Vault, VaultError

pytestmark = pytest.mark.anyio

KEY = "k" * 32


async def unlocked(db: Database, folder: Path, key: str | None = None) -> Vault:
    vault = Vault(key, folder)
    await vault.unlock(db)
    return vault


async def test_the_first_start_makes_a_key_for_this_user_only(store: Database, tmp_path: Path) -> None:
    folder = tmp_path / "data"
    sealed = (await unlocked(store, folder)).seal(b"a secret")
    assert stat.S_IMODE((folder / KEY_FILE).stat().st_mode) == 0o600
    assert [file.name for file in folder.iterdir()] == [KEY_FILE]
    assert (await unlocked(store, folder)).open(sealed) == b"a secret"
    assert "a secret" not in sealed


async def test_a_key_that_is_given_needs_no_file(store: Database, tmp_path: Path) -> None:
    sealed = (await unlocked(store, tmp_path / "data", KEY)).seal(b"x")
    assert not (tmp_path / "data").exists()
    assert (await unlocked(store, tmp_path, f" {KEY}\n")).open(sealed) == b"x"


async def test_the_key_of_a_file_may_be_given_as_the_setting(store: Database, tmp_path: Path) -> None:
    sealed = (await unlocked(store, tmp_path)).seal(b"x")
    key = (tmp_path / KEY_FILE).read_text()
    assert (await unlocked(store, tmp_path / "elsewhere", key)).open(sealed) == b"x"


async def test_another_key_is_refused_with_what_to_do(store: Database, tmp_path: Path) -> None:
    await unlocked(store, tmp_path / "one")
    with pytest.raises(VaultError, match=r"setting secret_key is not the one .*COGFLARE_SECRET_KEY") as refused:
        await unlocked(store, tmp_path / "one", KEY)
    assert KEY not in str(refused.value)
    (tmp_path / "two").mkdir()
    (tmp_path / "two" / KEY_FILE).write_text(KEY)
    with pytest.raises(VaultError, match=r"two/secret\.key is not the one"):
        await unlocked(store, tmp_path / "two")


async def test_a_server_without_the_key_makes_no_other_one(store: Database, tmp_path: Path) -> None:
    await unlocked(store, tmp_path / "one")
    with pytest.raises(VaultError, match=r"the key for them is not here.*copy of its file secret\.key"):
        await unlocked(store, tmp_path / "two")
    assert not (tmp_path / "two").exists()


async def test_two_servers_that_start_at_once_agree_on_one_key(store: Database, tmp_path: Path) -> None:
    first, second = Vault(None, tmp_path), Vault(None, tmp_path)
    await first.unlock(store)
    assert second._make() == (tmp_path / KEY_FILE).read_text().strip()
    await second.unlock(store)
    assert second.open(first.seal(b"x")) == b"x"


@pytest.mark.parametrize("content", ["", "\n", "cut off"])
async def test_a_file_without_a_key_is_left_alone(store: Database, tmp_path: Path, content: str) -> None:
    (tmp_path / KEY_FILE).write_text(content)
    with pytest.raises(VaultError, match=r"secret\.key holds no key"):
        await unlocked(store, tmp_path)
    assert [file.name for file in tmp_path.iterdir() if KEY_FILE in file.name] == [KEY_FILE]
    assert (tmp_path / KEY_FILE).read_text() == content


async def test_after_a_reset_another_key_is_as_good(store: Database, tmp_path: Path) -> None:
    vault = await unlocked(store, tmp_path / "one")
    await add_first_secret(store, "ada", "webhooks", vault.seal(b"x"), 1)
    assert await forget_secrets(store) == 1
    assert await find_secrets(store, "ada", "webhooks", 1) == []
    await unlocked(store, tmp_path / "two", KEY)


async def test_a_key_too_short_or_unreadable(store: Database, tmp_path: Path) -> None:
    with pytest.raises(VaultError, match="32 characters or more"):
        Vault("short", tmp_path)
    (tmp_path / KEY_FILE).mkdir()
    with pytest.raises(VaultError, match="cannot read"):
        await unlocked(store, tmp_path)


def test_what_is_damaged_is_not_opened() -> None:
    vault = Vault(KEY, Path())
    with pytest.raises(VaultError, match="damaged"):
        vault.open(vault.seal(b"x")[:-4] + "AAAA")
    with pytest.raises(VaultError, match="damaged"):
        vault.open("é")
