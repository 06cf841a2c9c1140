"""docs/fal-compatibility.md against the schema and the routes of the server."""

import json
import re
from pathlib import Path

import pytest

from server.schema import APP, ENDPOINT, File, ImageToVideoInput, ImageToVideoOutput

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs/fal-compatibility.md"
VERDICTS = ("same", "different", "not offered")
ROW = re.compile(r"^\| (?P<behaviour>.+?) \| (?P<here>[^|]+?) \| (?P<note>.*?) \|$")
HEADERS = re.compile(r"(?:`x-[^`]+`(?:, | and )?)+", re.IGNORECASE)
"""The headers that a row begins with, which it tells of."""

ROUTE = re.compile(r"^`(?P<method>[A-Z]+) (?P<path>/\S*?)`")


def rows() -> list[dict[str, str]]:
    found, section = [], ""
    for line in PAGE.read_text().splitlines():
        if line.startswith("## "):
            section = line
        row = ROW.match(line)
        if row and row["behaviour"] != "behaviour":
            found.append({"section": section, **row.groupdict()})
    return found


@pytest.fixture(scope="module")
def offered(routes) -> set[tuple[str, str]]:
    """Method and path of every route, with ids by one name."""
    return {(method, re.sub(r"\{\w*id\}", "{id}", path)) for method, path in routes}


def told_routes() -> dict[tuple[str, str], str]:
    told = {}
    for row in rows():
        if route := ROUTE.match(row["behaviour"]):
            path = re.sub(r"(?<=/)E(?=/|$)", ENDPOINT, re.sub(r"(?<=/)A(?=/|$)", APP, route["path"]))
            told[route["method"], path.partition("?")[0]] = row["here"]
    return told


def test_every_row_says_same_different_or_not_offered():
    assert len(rows()) > 80
    assert {row["here"] for row in rows()} == set(VERDICTS)


def test_what_is_the_same_is_shown_by_a_test_and_what_is_not_says_why():
    for row in rows():
        shown = re.findall(r"`(tests/[\w/]+\.py)`", row["note"])
        assert all((ROOT / path).exists() for path in shown), row
        if row["here"] == "same":
            assert shown, row
        else:
            assert len(re.sub(r"`.*?`", "", row["note"])) > 10, row


def test_no_behaviour_is_told_twice():
    told = [(row["section"], row["behaviour"]) for row in rows()]
    assert sorted(set(told)) == sorted(told)
    leads = [lead[0] for row in rows() if (lead := HEADERS.match(row["behaviour"]))]
    headers = [name.lower() for lead in leads for name in re.findall(r"`(x-[\w-]+)", lead, re.IGNORECASE)]
    assert len(headers) > 10
    assert sorted(set(headers)) == sorted(headers)


@pytest.mark.parametrize(
    ("heading", "fields"),
    [
        ("Fields of the request", list(ImageToVideoInput.model_fields)),
        ("Fields of the answer", list(ImageToVideoOutput.model_fields)),
    ],
)
def test_every_field_has_its_row_in_its_order(heading, fields):
    section = PAGE.read_text().partition(f"## {heading}\n")[2].partition("\n## ")[0]
    assert re.findall(r"^\| `(\w+)`", section, re.MULTILINE) == fields


def test_every_field_of_a_file_is_named():
    (row,) = [row for row in rows() if row["behaviour"].startswith("`video`:")]
    assert re.findall(r"`(\w+)`", row["behaviour"])[1:] == list(File.model_fields)


def test_every_route_of_the_server_has_a_row(offered):
    assert len(offered) > 15
    assert offered - set(told_routes()) == set()


def test_every_route_that_is_told_is_there_and_none_that_is_not_offered(offered):
    told = told_routes()
    assert {route for route, here in told.items() if here != "not offered"} - offered == set()
    assert not {route for route, here in told.items() if here == "not offered"} & offered


def test_every_header_and_parameter_of_fals_that_the_server_reads_or_sends_is_told():
    sources = "\n".join(path.read_text() for path in (ROOT / "server").rglob("*.py"))
    headers = {name.lower() for name in re.findall(r"(?i)\bx-(?:app-)?fal-[a-z-]+[a-z]\b", sources)}
    parameters = set(re.findall(r'(?:query_params|parse_qs\(query\))\.get\("(\w+)"', sources))
    assert {"x-fal-queue-priority", "x-fal-error-type"} < headers
    assert {"fal_webhook", "fal_jwt_token"} < parameters
    page = PAGE.read_text().lower()
    assert {name for name in headers if not re.search(rf"{name}(?![a-z-])", page)} == set()
    assert {name for name in parameters if name not in page} == set()


def test_the_table_of_clients_says_of_each_in_every_way_whether_it_works():
    lines = (ROOT / "docs/clients.md").read_text().splitlines()
    table = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if line.startswith("|")]
    clients = {row[0]: row[1:] for row in table[2:]}
    packages = json.loads((ROOT / "tests/contract/package.json").read_text())["dependencies"]
    javascript = [f"{name} {of}" for name, of in packages.items() if name.startswith("@fal-ai/")]
    javascript += [of.removeprefix("npm:").replace("@1", " 1") for of in packages.values() if of.startswith("npm:")]
    assert len(javascript) == 4
    python = [f"fal-client {version}" for version in ("0.11.0", "0.13.2", "1.0.3")]
    told = {name.replace("`", "").removesuffix(", Node") for name in clients}
    assert {*javascript, *python} < told
    for client, ways in clients.items():
        assert len(ways) == 4
        assert all(way.startswith(("works", "impossible")) for way in ways), client
