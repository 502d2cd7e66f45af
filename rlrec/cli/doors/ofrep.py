"""OpenFeature's remote evaluation protocol: a flag is a policy or a route, and its value the arm that is drawn.

Source: OpenFeature Remote Evaluation Protocol 0.2, evaluation of one flag. Its bulk evaluation asks for all flags at
once; each would be a logged decision that nobody sees, so that it is not served."""

from __future__ import annotations

import json
from http import HTTPStatus
from typing import Any

PATH = "/ofrep/v1/evaluate/flags"
REQUEST_FIELDS = ("session", "user", "k", "arms", "request_id")  # attributes that are fields of a request
METADATA = ("decision_id", "propensity", "policy", "version", "experiment", "variant", "route", "session")


class Invalid(Exception):
    """A body that is no evaluation context. code: as the protocol has it."""

    def __init__(self, code: str, details: str) -> None:
        super().__init__(details)
        self.code = code

    def body(self, key: str) -> bytes:
        """The answer to the request."""
        return json.dumps({"key": key, "errorCode": self.code, "errorDetails": str(self)}).encode()


def line(key: str, body: bytes) -> bytes:
    """The request for the arms of a flag. The targeting key is the user, and the session where the context has no other
    one; what is no field of a request is the context of the policy. Raises Invalid."""
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
    """The status and the evaluation of a flag: the arm of one slot, or the arms of several."""
    if "error" in answer:
        unknown = answer["field"] == "policy"
        code = "FLAG_NOT_FOUND" if unknown else "INVALID_CONTEXT"
        status = HTTPStatus.NOT_FOUND if unknown else HTTPStatus.BAD_REQUEST
        return status, json.dumps({"key": key, "errorCode": code, "errorDetails": answer["error"]}).encode()
    arms = [slot["arm"] for slot in answer["slate"]]
    metadata = {name: answer[name] for name in METADATA if answer.get(name) is not None}
    return HTTPStatus.OK, json.dumps({
        "key": key, "value": arms[0] if len(arms) == 1 else arms, "variant": ",".join(arms), "reason": "SPLIT",
        "metadata": metadata,
    }).encode()  # fmt: skip
