"""What all nodes share: made once, and turned over without a gap."""

import asyncio
import base64
import contextlib
import itertools
import re
import threading

import pytest
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from sqlalchemy import select, update

from server.__main__ import main
from server.control import ask
from server.shared import DAY, LEAD, REFRESH_SECONDS, Secrets
from server.signing import Signer, make_signing_key
from server.tables import SECRETS
from server.tokens import Holder, Tokens

JWKS = "/rest/.well-known/jwks.json"


@pytest.fixture
def node(database):
    """Another node of one store."""
    counter = itertools.count(1)
    make = {
        "authority": lambda: b"authority %d" % next(counter),
        "token-secret": lambda: b"secret %02d" % next(counter) * 4,
        "webhook-signing-key": make_signing_key,
    }

    async def start() -> Secrets:
        it = Secrets(database, make, left={})
        await it.load()
        return it

    return start


async def pass_time(database, seconds: float) -> None:
    """Makes every secret so much older."""

    def work(connection) -> None:
        for row in connection.scalars(select(SECRETS.c.name)).all():
            name, _, since = row.partition("@")
            if since:
                older = f"{name}@{float(since) - seconds:.0f}"
                connection.execute(update(SECRETS).where(SECRETS.c.name == row).values(name=older))

    await database.write(work)


async def test_a_secret_is_made_once_for_all_nodes(node):
    found = await asyncio.gather(*(node() for _ in range(3)))
    assert len({it.current("token-secret") for it in found}) == 1
    assert (await node()).known("token-secret") == [found[0].current("token-secret")]


async def test_a_new_key_of_webhooks_is_published_before_it_signs_and_the_old_one_for_a_day_after(node, database):
    one, two = await node(), await node()
    old = one.current("webhook-signing-key")
    await one.rotate("webhook-signing-key", at_once=False)
    await two.load()
    _, new = two.known("webhook-signing-key")
    lead = LEAD["webhook-signing-key"]
    steps = [(lead - 60, old, [old, new]), (120, new, [old, new]), (DAY - 120, new, [old, new]), (120, new, [new])]
    for seconds, signs, published in steps:
        await pass_time(database, seconds)
        for it in (one, two):
            await it.load()
            assert it.current("webhook-signing-key") == signs
            assert it.known("webhook-signing-key") == published


async def test_a_webhook_is_checked_by_the_published_keys_at_every_time_of_a_change(node, database):
    secrets = await node()
    signer = Signer(secrets)

    def signed_by() -> list[bool]:
        headers = signer.headers(b"{}", request_id="r", user_id="u")
        lines = ["r", "u", headers["X-Fal-Webhook-Timestamp"]]
        digest = "44136fa355b3678a1146ad16f7e8649e94fb4fc21fe77e8310c060f61caaff8a"
        message = "\n".join([*lines, digest]).encode()
        return [is_signature(key["x"], headers["X-Fal-Webhook-Signature"], message) for key in signer.jwks()["keys"]]

    assert signed_by() == [True]
    await secrets.rotate("webhook-signing-key", at_once=False)
    assert signed_by() == [True, False]
    await pass_time(database, LEAD["webhook-signing-key"])
    await secrets.load()
    assert signed_by() == [False, True]


def test_a_new_key_of_webhooks_signs_when_every_list_without_it_is_too_old_to_be_kept(server):
    kept = re.search(r"max-age=(\d+)", server.http.get(JWKS).headers["cache-control"])
    # a node that has just not read the new key, then a cache, then a verifier for its day
    assert LEAD["webhook-signing-key"] >= REFRESH_SECONDS + int(kept[1]) + DAY


def is_signature(x: str, signature: str, message: bytes) -> bool:
    try:
        Ed25519PublicKey.from_public_bytes(base64.urlsafe_b64decode(x)).verify(bytes.fromhex(signature), message)
    except InvalidSignature:
        return False
    return True


async def test_a_token_outlives_the_change_of_its_secret_on_every_node(node, database):
    one, two = await node(), await node()
    before, _ = Tokens(one).upload_token(Holder("key"))
    await one.rotate("token-secret", at_once=False)
    await two.load()
    assert Tokens(two).holder(before) == Holder("key")
    await pass_time(database, LEAD["token-secret"])
    await one.load()
    after, _ = Tokens(one).upload_token(Holder("key"))
    # the other node has not read the secrets since, and knows the time all the same
    for it in (one, two):
        assert Tokens(it).holder(before) == Tokens(it).holder(after) == Holder("key")
    await pass_time(database, DAY)
    await one.load()
    assert Tokens(one).holder(before) is None
    assert Tokens(one).holder(after) == Holder("key")


@pytest.mark.parametrize("name", ["token-secret", "webhook-signing-key", "authority"])
async def test_at_once_leaves_nothing_of_the_old_secret(node, name):
    secrets = await node()
    before = secrets.current(name)
    await secrets.rotate(name, at_once=False)
    await secrets.rotate(name, at_once=True)
    (now,) = secrets.known(name)
    assert now not in (before, b"")
    assert secrets.current(name) == now


async def test_a_secret_that_waits_for_its_time_gives_way_to_a_newer_one_and_old_ones_are_removed(node, database):
    secrets = await node()
    first = secrets.current("token-secret")
    await secrets.rotate("token-secret", at_once=False)
    gone = secrets.known("token-secret")[-1]
    await secrets.rotate("token-secret", at_once=False)
    assert secrets.known("token-secret")[0] == first
    assert gone not in secrets.known("token-secret")
    await pass_time(database, 2 * DAY)
    await secrets.rotate("token-secret", at_once=False)
    rows = await database.read(lambda connection: connection.scalars(select(SECRETS.c.value)).all())
    assert first not in rows


async def test_of_two_changes_of_a_secret_at_once_none_is_lost(node):
    both = threading.Barrier(2)

    def adding(word: bytes):
        def change(value: bytes) -> bytes:
            if threading.current_thread() is not threading.main_thread():
                with contextlib.suppress(threading.BrokenBarrierError):
                    both.wait(1)
            return value if word in value else value + word

        return change

    one, two = await node(), await node()
    await asyncio.gather(one.amend("authority", adding(b" one")), two.amend("authority", adding(b" two")))
    found = (await node()).current("authority")
    assert b" one" in found
    assert b" two" in found


async def test_however_many_turn_over_a_secret_at_the_same_time_one_generation_waits_for_its_time(node):
    nodes = [await node() for _ in range(8)]
    first = nodes[0].current("token-secret")
    await asyncio.gather(*(it.rotate("token-secret", at_once=False) for it in nodes))
    kept, waits = (await node()).known("token-secret")
    assert kept == first
    await asyncio.gather(*(it.rotate("token-secret", at_once=True) for it in nodes))
    (now,) = (await node()).known("token-secret")
    assert now not in (kept, waits)


def test_the_command_turns_over_the_key_of_a_running_server_at_once_and_of_one_that_does_not_run(launch, capsys):
    with launch() as it:
        (old,) = it.http.get(JWKS).json()["keys"]
        data = f"--data={it.settings.data}"
        assert main(["secrets", "rotate", "webhooks", data]) == 0
        assert "both keys" in capsys.readouterr().out
        published = it.http.get(JWKS).json()["keys"]
        assert published[0] == old
        assert len(published) == 2
    assert main(["secrets", "rotate", "webhooks", "--at-once", data]) == 0
    said = capsys.readouterr().out
    assert "both keys" not in said
    assert "believes none for up to a day" in said
    with launch() as it:
        (new,) = it.http.get(JWKS).json()["keys"]
        assert new not in published


def test_a_token_of_a_running_server_is_void_once_its_secret_is_turned_over_at_once(launch, capsys):
    with launch() as it:
        data = f"--data={it.settings.data}"
        assert main(["keys", "create", "--name=a", data]) == 0
        key = capsys.readouterr().out.strip().removeprefix("FAL_KEY=")
        wish = {"allowed_apps": ["ltx-2.3-quality"]}
        token = it.http.post("/rest/tokens/", json=wish, headers={"authorization": f"Key {key}"}).json()
        url, headers = "/queue/fal-ai/ltx-2.3-quality/requests/x/status", {"authorization": f"Key {token}"}
        assert it.http.get(url, headers=headers).status_code == 404
        assert main(["secrets", "rotate", "tokens", data]) == 0
        assert "stay good" in capsys.readouterr().out
        assert it.http.get(url, headers=headers).status_code == 404
        assert main(["secrets", "rotate", "tokens", "--at-once", data]) == 0
        said = capsys.readouterr().out
        assert "stay good" not in said
        assert "are void" in said
        assert it.http.get(url, headers=headers).status_code == 401


def test_an_unknown_order_on_the_socket_is_refused(launch):
    with launch() as it:
        said = asyncio.run(ask(it.settings.data, {"do": "rotate", "name": "upload-secret", "at_once": True}))
        assert "another version" in said["error"]
