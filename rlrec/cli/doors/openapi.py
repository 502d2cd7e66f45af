"""This module makes the OpenAPI description of `rlrec serve` from the fields of requests and feedback."""

from __future__ import annotations

import json
from functools import cache
from typing import Any

import click

from rlrec import __version__
from rlrec.cli.commands.requests import feedback, recommend
from rlrec.cli.doors import ofrep

ERROR_SCHEMA = {
    "type": "object", "required": ["error", "code"],
    "properties": {
        "error": {"type": "string"}, "hint": {"type": ["string", "null"]}, "field": {"type": ["string", "null"]},
        "code": {"type": "integer", "description": "as the exit codes of commands"},
    },
}  # fmt: skip
FLAG_SCHEMA = {
    "type": "object", "required": ["key"],
    "properties": {
        "key": {"type": "string"}, "value": {}, "variant": {"type": "string"}, "reason": {"type": "string"},
        "metadata": {"type": "object"}, "errorCode": {"type": "string"}, "errorDetails": {"type": "string"},
    },
}  # fmt: skip
FLAG_REFUSALS = "Flag", "Error"  # how a flag is refused: by the protocol, or before it is looked at
REFUSAL_REASONS = {
    "400": "it is refused", "401": "a token is needed", "403": "browsers are refused", "408": "it came too slowly",
    "409": "its key is known with other content", "411": "it has no length", "413": "it is too large",
    "421": "the server has another name", "503": "the store is busy: send it again",
}  # fmt: skip


@cache
def description_json() -> bytes:
    """Return the OpenAPI description as JSON."""
    return json.dumps(api_description(), indent=1).encode()


def api_description() -> dict[str, Any]:
    """Return the description of the HTTP API as a mapping, in OpenAPI 3.1."""
    from msgspec.json import schema_components

    from rlrec.app.requests.credit import PersonalResult
    from rlrec.app.requests.feedback import Result
    from rlrec.app.requests.recommend import Answer

    commands: dict[str, click.Command] = {"Request": recommend.recommend, "Feedback": feedback.feedback}
    types = [recommend.line_type(), feedback.line_type(), Answer, Result, PersonalResult]
    _, schemas = schema_components(types, ref_template="#/components/schemas/{name}")
    for name, command in commands.items():
        options = {option.opts[0].lstrip("-"): option for option in command.params}
        for field, schema in schemas[name]["properties"].items():
            if (option := options.get(field.replace("_", "-"))) is not None:
                _describe_field(schema, option)
    outcomes = [{"$ref": f"#/components/schemas/{name}"} for name in ("Result", "PersonalResult")]
    context = {"type": "object", "properties": {"targetingKey": {"type": "string"}}, "additionalProperties": True}
    evaluation = {"type": "object", "required": ["context"], "properties": {"context": context}}
    schemas |= {"Error": ERROR_SCHEMA, "Flag": FLAG_SCHEMA, "Outcome": {"anyOf": outcomes}, "Evaluation": evaluation}
    lines = {"application/x-ndjson": {"schema": {"type": "string"}}}
    paths: dict[str, Any] = {
        "/v1/recommend": _post_operation("recommend", "Draw a slate, and log it", "Request", "Answer"),
        "/v1/feedback": _post_operation("feedback", "Record what the user did after a decision", "Feedback", "Outcome"),
        "/v1/pipe": {"post": {
            "operationId": "pipe", "summary": "Many requests and feedback, one JSON object a line with its `op`",
            "requestBody": {"required": False, "content": lines},
            "responses": {"200": {"description": "an answer a line, in order", "content": lines}}
            | _refusal_responses(),
        }},
        f"{ofrep.FLAGS_PATH}/{{key}}": _post_operation(
            "evaluateFlag", "A policy as an OpenFeature flag", "Evaluation", "Flag"
        ),
        "/healthz": _get_operation(
            "health", "Whether the store answers", {"application/json": {"schema": {"type": "object"}}}
        ),
        "/metrics": _get_operation("metrics", "Figures for Prometheus", {"text/plain": {"schema": {"type": "string"}}}),
    }  # fmt: skip
    flag = paths[f"{ofrep.FLAGS_PATH}/{{key}}"]
    flag["parameters"] = [{"name": "key", "in": "path", "required": True, "schema": {"type": "string"}}]
    refusals = {"400": "no context, or none that the policy takes", "404": "no policy and no route has this name"}
    content = {
        "application/json": {"schema": {"anyOf": [{"$ref": f"#/components/schemas/{name}"} for name in FLAG_REFUSALS]}}
    }
    flag["post"]["responses"] |= {code: {"description": text, "content": content} for code, text in refusals.items()}
    token = {"type": "http", "scheme": "bearer"}
    return {
        "openapi": "3.1.0", "info": {"title": "rlrec", "version": __version__},
        "servers": [{"url": "/"}], "paths": paths, "security": [{}, {"token": []}],
        "components": {"schemas": schemas, "securitySchemes": {"token": token}},
    }  # fmt: skip


def _describe_field(schema: dict[str, Any], option: click.Parameter) -> None:
    """Add the help of a command-line option to the schema of its field. If the option is a whole number, add its
    limits, too."""
    if text := getattr(option, "help", None):
        schema["description"] = text
    if isinstance(option.type, click.IntRange):
        number = next(kind for kind in schema.get("anyOf", [schema]) if kind["type"] == "integer")
        limits = {"minimum": option.type.min, "maximum": option.type.max}
        number |= {name: limit for name, limit in limits.items() if limit is not None}


def _json_content(name: str) -> dict[str, Any]:
    return {"application/json": {"schema": {"$ref": f"#/components/schemas/{name}"}}}


def _refusal_responses() -> dict[str, Any]:
    return {
        status: {"description": text, "content": _json_content("Error")} for status, text in REFUSAL_REASONS.items()
    }


def _post_operation(name: str, summary: str, body: str, answer: str) -> dict[str, Any]:
    return {"post": {
        "operationId": name, "summary": summary, "requestBody": {"required": True, "content": _json_content(body)},
        "responses": {"200": {"description": "done", "content": _json_content(answer)}} | _refusal_responses(),
    }}  # fmt: skip


def _get_operation(name: str, summary: str, content: dict[str, Any]) -> dict[str, Any]:
    responses = {"200": {"description": "the state", "content": content}}
    return {"get": {"operationId": name, "summary": summary, "responses": responses}}
