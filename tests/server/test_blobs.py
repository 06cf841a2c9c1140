import hashlib

import pytest

from server.blobs import digest


async def test_a_blob_is_read_back_and_gone_once_deleted(blobs, tmp_path):
    source = tmp_path / "source"
    source.write_bytes(b"some bytes")
    known = digest(source)
    await blobs.put("a" * 32, source)
    assert (known.size, known.sha256) == (10, hashlib.sha256(b"some bytes").hexdigest())
    assert await blobs.read("a" * 32) == b"some bytes"
    assert (await blobs.local("a" * 32)).read_bytes() == b"some bytes"
    await blobs.delete("a" * 32)
    await blobs.delete("a" * 32)
    for lost in (blobs.read, blobs.local):
        with pytest.raises(FileNotFoundError):
            await lost("a" * 32)


async def test_a_blob_put_again_takes_the_place_of_the_first(blobs, tmp_path):
    for content in (b"first", b"second, and longer"):
        source = tmp_path / "source"
        source.write_bytes(content)
        await blobs.put("b" * 32, source)
        assert (await blobs.local("b" * 32)).read_bytes() == content


async def test_checking_leaves_nothing_behind(blobs, tmp_path):
    await blobs.check()
    assert not [path for path in tmp_path.rglob("*probe*") if path.is_file()]
