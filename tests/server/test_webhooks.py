"""Webhooks: what is sent, when, and how it is signed."""


def test_the_public_key_is_read_without_a_key_under_each_of_its_addresses(server):
    sets = [
        server.http.get("/.well-known/jwks.json"),
        server.http.get("/rest/.well-known/jwks.json"),
        server.http.get("/.well-known/jwks.json", headers={"host": "rest.fal.ai"}),
    ]
    (key,) = sets[0].json()["keys"]
    assert (key["kty"], key["crv"], len(key["x"])) == ("OKP", "Ed25519", 44)
    assert all(found.json() == sets[0].json() for found in sets)
