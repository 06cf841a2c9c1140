"""Where a request goes, by the three ways of naming a role, and how addresses in its answer begin."""

import pytest

from server.roles import HOSTS, SITE, NotFalError, hostname, resolve
from server.schema import APP, ENDPOINT

RUN = f"/{ENDPOINT}"
REQUEST = f"/{APP}/requests/1"


def target(path: str, *, host: str = "127.0.0.1:8000", target_url: str | None = None, scheme: str = "http"):
    return resolve(scheme=scheme, host=host, path=path, target_url=target_url)


def test_no_path_holds_a_nul_which_postgres_would_refuse():
    assert target(f"/{APP}/requests/\0").path == f"/queue/{APP}/requests/\ufffd"
    assert target("/api", target_url="https://v3.fal.media/files/a%00b/c").path == "/files/a\ufffdb/c"


@pytest.mark.parametrize(
    ("path", "role", "inside", "base"),
    [
        (RUN, "run", f"/run{RUN}", ""),
        (f"{RUN}/", "run", f"/run{RUN}", ""),
        (f"/run{RUN}/", "run", f"/run{RUN}", "/run"),
        (f"/queue{RUN}", "queue", f"/queue{RUN}", "/queue"),
        (f"/queue{REQUEST}/status/", "queue", f"/queue{REQUEST}/status", "/queue"),
        (f"/run{REQUEST}/status", "queue", f"/queue{REQUEST}/status", "/run"),
        (f"{REQUEST}/response", "queue", f"/queue{REQUEST}/response", ""),
        (f"{RUN}/requests/1", "queue", f"/queue{RUN}/requests/1", ""),
        ("/rest/storage/auth/token", "rest", "/rest/storage/auth/token", "/rest"),
        ("/cdn/files/upload", "cdn", "/files/upload", "/cdn"),
        ("/cdn/other", "cdn", "/cdn/other", "/cdn"),
        ("/files/1/a.mp4", "site", "/files/1/a.mp4", ""),
        ("/health", "site", "/health", ""),
        ("/", "site", "/", ""),
    ],
)
def test_a_role_is_named_by_the_first_segment_and_is_run_without_one(path, role, inside, base):
    found = target(path)
    assert (found.caller.role, found.path) == (role, inside)
    assert found.caller.base == f"http://127.0.0.1:8000{base}"
    assert found.query is None


PATHS = {
    "run": (RUN, f"/run{RUN}"),
    "queue": (RUN, f"/queue{RUN}"),
    "rest": ("/storage/auth/token", "/rest/storage/auth/token"),
    "cdn": ("/files/upload", "/files/upload"),
    "site": ("/health", "/health"),
}


@pytest.mark.parametrize(("name", "role"), HOSTS.items())
@pytest.mark.parametrize("spelt", ["{}", "{}:8443", "{}:443"])
def test_fals_own_names_choose_the_role(name, role, spelt):
    path, inside = PATHS[role]
    for host in (spelt.format(name), spelt.format(name.upper())):
        found = target(path, host=host, scheme="https")
        assert found.path == inside
        assert found.caller.origin == f"https://{host}"


@pytest.mark.parametrize(("name", "role"), HOSTS.items())
def test_a_target_url_chooses_the_role_and_files_stay_where_the_server_is(name, role):
    path, inside = PATHS[role]
    found = target("/api/fal/proxy", target_url=f"https://{name}{path}/?logs=1")
    assert (found.path, found.query) == (inside, "logs=1")
    assert found.caller.base == f"https://{name}"
    assert found.caller.origin == "http://127.0.0.1:8000"


@pytest.mark.parametrize(
    "path", [f"/queue{RUN}", f"/run{RUN}", "/rest/storage/auth/token", "//health", "/cdn/files/upload"]
)
def test_the_site_has_no_route_of_another_role(path):
    for found in (target(path, host="fal.ai"), target("/api/fal/proxy", target_url=f"https://fal.ai{path}")):
        assert found.caller.role == "site"
        assert found.path == f"/site{path}"


def test_the_site_keeps_its_own_pages():
    for path in (*(f"/{name}/x" for name in SITE), "/"):
        found = target("/api/fal/proxy", target_url=f"https://fal.ai{path}")
        assert (found.caller.role, found.path) == ("site", path)


@pytest.mark.parametrize("host", ["localhost:1", "[::1]:8000", "box.lan", "queue.localhost:8000", "10.1.2.3", ""])
def test_addresses_begin_with_the_scheme_and_the_name_that_the_client_used(host):
    for scheme in ("http", "https"):
        found = target(f"/queue{RUN}", host=host, scheme=scheme)
        assert found.caller.base == f"{scheme}://{host}/queue"
        assert found.caller.origin == f"{scheme}://{host}"


@pytest.mark.parametrize(
    "url",
    [
        "",
        "x",
        "https://[",
        "http://fal.run/x",
        "https://fal.run.evil.example/",
        "https://evil.example/fal.run",
        "//fal.run",
    ],
)
def test_a_target_that_is_none_of_fals_is_refused(url):
    with pytest.raises(NotFalError):
        target("/api/fal/proxy", target_url=url)


@pytest.mark.parametrize(
    ("host", "name"),
    [
        ("localhost", "localhost"),
        ("LocalHost:8000", "localhost"),
        ("localhost:", "localhost"),
        ("my_box-1.lan:65535", "my_box-1.lan"),
        ("127.0.0.1:80", "127.0.0.1"),
        ("[::1]", "::1"),
        ("[FE80::1%eth0]:8000", "fe80::1%eth0"),
        ("", ""),
    ],
)
def test_a_host_is_a_name_or_an_address_and_perhaps_a_port(host, name):
    assert hostname(host) == name


NO_AUTHORITIES = [
    "{}:" + 60_000 * "1",
    "{}:000080",
    "{}:8x",
    "{}:-1",
    "{}:\u0661",
    "a@{}",
    "a b.{}",
    254 * "a" + ".{}",
    "[{}",
]
NO_HOSTS = [*NO_AUTHORITIES, "{}/a", "{}?a", "{}#a", "{}\n"]


@pytest.mark.parametrize("form", NO_HOSTS, ids=lambda form: ascii(form[:12]))
def test_what_is_no_host_has_no_name(form):
    assert hostname(form.format("localhost")) == ""


@pytest.mark.parametrize("form", NO_AUTHORITIES, ids=lambda form: ascii(form[:12]))
def test_a_target_whose_host_is_none_is_refused(form):
    with pytest.raises(NotFalError):
        target("/api/fal/proxy", target_url=f"https://{form.format('fal.run')}/")
