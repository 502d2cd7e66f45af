"""OpenFeature's remote evaluation protocol: a flag is a policy or a route, and its value is the arm drawn.

Source: OpenFeature Remote Evaluation Protocol 0.2, evaluation of one flag. Its bulk evaluation asks for all flags at
once; it is not supported, since each flag would become a logged decision that nobody sees."""

from __future__ import annotations

import json
from http import HTTPStatus
from typing import Any

PATH = "/ofrep/v1/evaluate/flags"
# attributes that are fields of a request, not of its context
REQUEST_FIELDS = ("session", "user", "k", "arms", "request_id")
METADATA = ("decision_id", "propensity", "policy", "version", "experiment", "variant", "route", "session")


class Invalid(Exception):
    """A request body that is no evaluation context. code: an error code of the protocol."""

    def __init__(self, code: str, details: str) -> None:
        super().__init__(details)
        self.code = code

    def body(self, key: str) -> bytes:
        """The answer to the request."""
        return json.dumps({"key": key, "errorCode": self.code, "errorDetails": str(self)}).encode()


def line(key: str, body: bytes) -> bytes:
    """The request for the arms of a flag. The targeting key is the user and the session, unless the context names
    others; attributes that are no fields of a request form the context of the policy. Raises Invalid."""
    try:
        document = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise Invalid("PARSE_ERROR", str(error)) from None
    context = document.get("context") if isinstance(document, dict) else None
    if not isinstance(context, dict):
        raise Invalid("INVALID_CONTEXT", 'send {"context": {"targetingKey": "USER", ...}}')
    attributes = dict(context)
    target = attributes.pop("targetingKey", None)
    fields = {name: attributes.pop(name) for name in REQUEST_FIELDS if name in attributes}
    if target:
        fields = {"session": target, "user": target} | fields
    if "session" not in fields:
        raise Invalid("TARGETING_KEY_MISSING", "a request needs a targetingKey, or a session")
    return json.dumps({"policy": key, "context": attributes, **fields}).encode()


def evaluation(key: str, answer: dict[str, Any]) -> tuple[int, bytes]:
    """The HTTP status and the evaluation of a flag: one arm, or a list of arms if the slate has several slots."""
    if "error" in answer:
        unknown = answer["field"] == "policy"
        code = "FLAG_NOT_FOUND" if unknown else "INVALID_CONTEXT"
        status = HTTPStatus.NOT_FOUND if unknown else HTTPStatus.BAD_REQUEST
        details = answer["error"] if unknown or not answer["field"] else f"{answer['field']}: {answer['error']}"
        return status, json.dumps({"key": key, "errorCode": code, "errorDetails": details}).encode()
    arms = [slot["arm"] for slot in answer["slate"]]
    metadata = {name: answer[name] for name in METADATA if answer.get(name) is not None}
    return HTTPStatus.OK, json.dumps({
        "key": key, "value": arms[0] if len(arms) == 1 else arms, "variant": ",".join(arms), "reason": "SPLIT",
        "metadata": metadata,
    }).encode()  # fmt: skip
