"""What the server says of itself: OpenAPI, the page for people, the page for language models."""

import json
import re
from pathlib import Path
from typing import Any

import pytest

from server.model_page import ModelPage
from server.schema import ENDPOINT, ImageToVideoInput

OPENAPI = "/api/openapi/queue/openapi.json"
LLMS = f"/models/{ENDPOINT}/llms.txt"
# read from fal's page by `told` below: name, type, default, range, options and examples, in its order
SEED_PAGE = json.loads(Path(__file__).with_name("seed_page.json").read_text())

HEAD = re.compile(r"^- \*\*`(\w+)`\*\* \(`(.+)`, _(required|optional)_\):$")
LINE = re.compile(r"^  - (Default|Range|One of|Options|Examples): (.*)$")


def told(page: str) -> dict[str, Any]:
    """The facts of a model's page in fal's form."""
    inputs, _, rest = page.partition("### Input Schema")[2].partition("### Output Schema")
    outputs = rest.partition("## Usage Examples")[0]
    return {
        "input": _fields(inputs),
        "output": _fields(outputs),
        "examples": [json.loads(found) for found in re.findall(r"```json\n(.*?)```", inputs + outputs, re.DOTALL)],
    }


def _fields(section: str) -> list[dict[str, Any]]:
    fields: list[dict[str, Any]] = []
    for line in section.splitlines():
        if head := HEAD.match(line):
            fields.append({"name": head[1], "type": head[2], "required": head[3] == "required"})
        elif fact := LINE.match(line):
            fields[-1][fact[1]] = fact[2]
        elif "Default value:" in line:
            fields[-1]["said"] = line.partition("Default value:")[2].strip()
    return fields


@pytest.fixture
def document(server) -> dict[str, Any]:
    answer = server.http.get(OPENAPI, params={"endpoint_id": ENDPOINT})
    assert answer.headers["content-type"] == "application/json"
    return answer.json()


def test_the_page_for_language_models_reads_as_fals_does(server):
    answer = server.http.get(LLMS)
    assert answer.headers["content-type"] == "text/plain; charset=utf-8"
    assert told(answer.text) == SEED_PAGE


def test_prices_and_links_of_that_page_are_our_own(server):
    text = server.http.get(LLMS).text
    assert "costs nothing" in text
    links = set(re.findall(r"https?://[^/\s`\"')]+", text))
    assert links == {server.url, "https://storage.googleapis.com"}


def test_the_page_for_people_names_every_field_and_may_load_nothing(server):
    answer = server.http.get("/docs", headers={"sec-fetch-site": "none"})
    assert answer.headers["content-type"] == "text/html; charset=utf-8"
    assert answer.headers["content-security-policy"].startswith("default-src 'none'")
    assert all(f"<code>{name}</code>" in answer.text for name in ImageToVideoInput.model_fields)
    assert "<script" not in answer.text


def test_a_host_name_cannot_write_into_the_page(launch):
    assert "<b>" not in ModelPage().html(origin="http://<b>", openapi_url="http://<b>/api")
    with launch(trusted_hosts=("<b>",)) as server:
        assert server.http.get("/docs", headers={"host": "<b>"}).status_code == 403


def test_another_endpoint_has_no_document(server):
    for asked in ({}, {"endpoint_id": "fal-ai/flux"}):
        answer = server.http.get(OPENAPI, params=asked)
        assert (answer.status_code, answer.json()) == (404, None)


def test_the_document_has_fals_frame(document):
    assert document["openapi"] == "3.0.4"
    assert document["info"]["title"] == f"Queue OpenAPI for {ENDPOINT}"
    assert document["info"]["version"] == "1.0.0"
    assert document["info"]["x-fal-metadata"]["endpointId"] == ENDPOINT
    assert document["security"] == [{"apiKeyAuth": []}]
    key = document["components"]["securitySchemes"]["apiKeyAuth"]
    assert (key["type"], key["in"], key["name"]) == ("apiKey", "header", "Authorization")
    operations = {(method, path) for path, item in document["paths"].items() for method in item}
    request = f"/{ENDPOINT}/requests/{{request_id}}"
    assert operations == {
        ("post", f"/{ENDPOINT}"),
        ("get", f"{request}/status"),
        ("put", f"{request}/cancel"),
        ("get", request),
    }
    assert document["x-fal-order-paths"] == list(document["paths"])


def test_every_schema_says_the_order_of_its_fields(document):
    schemas = document["components"]["schemas"]
    for schema in schemas.values():
        assert schema["x-fal-order-properties"] == list(schema["properties"])
    ordered = schemas["Ltx23QualityImageToVideoInput"]["x-fal-order-properties"]
    assert ordered == [field["name"] for field in SEED_PAGE["input"]]
    assert schemas["QueueStatus"]["required"] == ["status", "request_id"]
    assert schemas["QueueStatus"]["properties"]["status"]["enum"] == ["IN_QUEUE", "IN_PROGRESS", "COMPLETED"]


def test_every_reference_of_the_document_leads_somewhere(document):
    names = set(re.findall(r'"#/components/schemas/(\w+)"', json.dumps(document)))
    assert names
    assert names <= set(document["components"]["schemas"])


def test_the_input_has_examples_titles_and_limits(document):
    fields = document["components"]["schemas"]["Ltx23QualityImageToVideoInput"]["properties"]
    assert fields["prompt"]["examples"]
    assert fields["image_url"]["ui"] == {"field": "image"}
    assert fields["num_frames"]["title"] == "Num Frames"
    assert (fields["num_frames"]["minimum"], fields["num_frames"]["maximum"]) == (9, 481)
    size = document["components"]["schemas"]["ImageSize"]["properties"]["width"]
    assert (size["minimum"], size["maximum"]) == (1, 14_142)
    assert "exclusiveMinimum" not in json.dumps(document)


@pytest.mark.parametrize(
    ("host", "wanted"), [("fal.ai", "https://queue.fal.run"), ("localhost:9", "http://localhost:9/queue")]
)
def test_the_document_leads_where_its_reader_came_from(server, host, wanted):
    answer = server.http.get(OPENAPI, params={"endpoint_id": ENDPOINT}, headers={"host": host})
    assert answer.json()["servers"] == [{"url": wanted}]
