"""The endpoint as an OpenAPI document, in the shape that fal gives the documents of its own endpoints."""

from collections.abc import Mapping
from typing import Any

from server.schema import ENDPOINT, ImageToVideoInput, ImageToVideoOutput

INPUT = "Ltx23QualityImageToVideoInput"
OUTPUT = "Ltx23QualityImageToVideoOutput"
REQUEST = f"/{ENDPOINT}/requests/{{request_id}}"

JsonSchema = dict[str, Any]


def document(*, queue_url: str, docs_url: str) -> dict[str, Any]:
    """The document of a server whose queue answers at `queue_url`."""
    paths = _paths()
    return {
        "openapi": "3.0.4",
        "info": {
            "title": f"Queue OpenAPI for {ENDPOINT}",
            "version": "1.0.0",
            "description": f"The OpenAPI schema for the {ENDPOINT} queue.",
            "x-fal-metadata": {
                "endpointId": ENDPOINT,
                "category": "image-to-video",
                "playgroundUrl": docs_url,
                "documentationUrl": docs_url,
            },
        },
        "components": {
            "securitySchemes": {
                "apiKeyAuth": {"type": "apiKey", "in": "header", "name": "Authorization", "description": "Fal Key"}
            },
            "schemas": {name: _in_order(schema) for name, schema in _schemas().items()},
        },
        "paths": paths,
        "servers": [{"url": queue_url}],
        "security": [{"apiKeyAuth": []}],
        "x-fal-order-paths": list(paths),
    }


def input_schema() -> JsonSchema:
    """The schema of the input, with its parts under `$defs`."""
    return ImageToVideoInput.model_json_schema(ref_template=_REF)


def output_schema() -> JsonSchema:
    """The schema of the output, with its parts under `$defs`."""
    return ImageToVideoOutput.model_json_schema(ref_template=_REF, mode="serialization")


_REF = "#/components/schemas/{model}"


def _schemas() -> dict[str, JsonSchema]:
    parts: dict[str, JsonSchema] = {}
    for name, schema in ((INPUT, input_schema()), (OUTPUT, output_schema())):
        parts |= schema.pop("$defs", {})
        parts[name] = schema | {"title": name}
    # why: the docstrings of our classes speak to us
    shown = {
        name: _whole({key: of for key, of in part.items() if key != "description"}) for name, part in parts.items()
    }
    return shown | {"QueueStatus": _QUEUE_STATUS, "Error": _ERROR}


def _whole(schema: JsonSchema) -> JsonSchema:
    """The schema with limits of whole numbers inclusive: OpenAPI 3.0 knows no number for an exclusive one."""
    fields = {}
    for name, field in schema["properties"].items():
        above = field.get("exclusiveMinimum")
        if above is not None and field["type"] == "integer":
            field = {key: of for key, of in field.items() if key != "exclusiveMinimum"} | {"minimum": above + 1}
        fields[name] = field
    return schema | {"properties": fields}


def _in_order(schema: JsonSchema) -> JsonSchema:
    return schema | {"x-fal-order-properties": list(schema["properties"])}


def _paths() -> dict[str, Any]:
    request_id = {
        "name": "request_id",
        "in": "path",
        "required": True,
        "schema": {"type": "string", "description": "Request ID"},
    }
    logs = {
        "name": "logs",
        "in": "query",
        "required": False,
        "schema": {
            "type": "number",
            "description": "Whether to include logs (`1`) in the response or not (`0`).",
        },
    }
    return {
        f"/{ENDPOINT}": {
            "post": {
                "requestBody": {"required": True, "content": _json(INPUT)},
                "responses": _answers({"200": ("The request status.", "QueueStatus")}, 400, 401, 403, 413, 429, 503),
            }
        },
        f"{REQUEST}/status": {
            "get": {
                "parameters": [request_id, logs],
                "responses": _answers(
                    {"200": ("The request status.", "QueueStatus"), "202": ("It has not ended yet.", "QueueStatus")},
                    401,
                    403,
                    404,
                    413,
                    503,
                ),
            }
        },
        f"{REQUEST}/cancel": {
            "put": {
                "parameters": [request_id],
                "responses": {
                    "200": {
                        "description": "The request was cancelled. fal lists this answer; here it is 202.",
                        "content": {
                            "application/json": {
                                "schema": {
                                    "type": "object",
                                    "properties": {
                                        "success": {
                                            "type": "boolean",
                                            "description": "Whether the request was cancelled successfully.",
                                        }
                                    },
                                }
                            }
                        },
                    }
                }
                | _answers({"202": ("The request was asked to end.", "Error")}, 400, 401, 403, 404, 413, 503),
            }
        },
        REQUEST: {
            "get": {
                "parameters": [request_id],
                "responses": _answers(
                    {"200": ("Result of the request.", OUTPUT)}, 400, 401, 403, 404, 413, 422, 429, 499, 500, 503, 504
                ),
            }
        },
    }


_MEANING = {
    400: "The request cannot be answered now or in this form.",
    401: "The key is missing or wrong.",
    403: "The caller may not do this.",
    404: "There is no such request.",
    413: "The body is too large.",
    422: "The input broke a rule; `detail` says which.",
    429: "Too many requests are waiting.",
    499: "The request was cancelled.",
    500: "The request failed through no fault of the caller.",
    503: "The server cannot take the request now.",
    504: "The request took too long.",
}


def _answers(good: Mapping[str, tuple[str, str]], *errors: int) -> dict[str, Any]:
    answers = {code: {"description": text, "content": _json(schema)} for code, (text, schema) in good.items()}
    return answers | {str(code): {"description": _MEANING[code], "content": _json("Error")} for code in errors}


def _json(schema: str) -> dict[str, Any]:
    return {"application/json": {"schema": {"$ref": _REF.format(model=schema)}}}


_QUEUE_STATUS: JsonSchema = {
    "title": "QueueStatus",
    "type": "object",
    "properties": {
        "status": {"type": "string", "enum": ["IN_QUEUE", "IN_PROGRESS", "COMPLETED"]},
        "request_id": {"type": "string", "description": "The request id."},
        "response_url": {"type": "string", "description": "The response url."},
        "status_url": {"type": "string", "description": "The status url."},
        "cancel_url": {"type": "string", "description": "The cancel url."},
        "logs": {
            "anyOf": [{"type": "array", "items": {"type": "object", "additionalProperties": True}}, {"type": "null"}],
            "description": "The lines of the log so far, or null unless they were asked for.",
        },
        "metrics": {"type": "object", "description": "The metrics.", "additionalProperties": True},
        "queue_position": {"type": "integer", "description": "The queue position."},
        "error": {"type": "string", "description": "How the request failed."},
        "error_type": {"type": "string", "description": "The type of the failure."},
    },
    "required": ["status", "request_id"],
}

_ERROR: JsonSchema = {
    "title": "Error",
    "type": "object",
    "properties": {
        "detail": {
            "anyOf": [
                {"type": "string"},
                {"type": "array", "items": {"type": "object", "additionalProperties": True}},
            ],
            "description": "A sentence, or one entry for each error with `loc`, `msg`, `type` and `url`.",
        },
        "error_type": {"type": "string", "description": "The type of a failure whose detail is a sentence."},
        "status": {
            "type": "string",
            "enum": ["NOT_FOUND", "ALREADY_COMPLETED", "CANCELLATION_REQUESTED"],
            "description": "What became of the request that was named.",
        },
    },
}
