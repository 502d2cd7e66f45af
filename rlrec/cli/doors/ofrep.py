"""Functions here translate between OpenFeature's remote evaluation protocol and lines of requests. A flag is a policy
or a route, and the value of the flag is the arm drawn.

Source: OpenFeature Remote Evaluation Protocol 0.2, evaluation of one flag. The protocol can also ask for all flags
at once. This is not supported, since each flag would become a logged decision that nobody sees."""

from __future__ import annotations

import json
from http import HTTPStatus
from typing import Any

FLAGS_PATH = "/ofrep/v1/evaluate/flags"
# attributes that are fields of a request, not of its context
REQUEST_FIELDS = ("session", "user", "k", "arms", "request_id")
METADATA_KEYS = ("decision_id", "propensity", "policy", "version", "experiment", "variant", "route", "session")


class InvalidContext(Exception):
    """An InvalidContext error says that the body of a request is no evaluation context of the protocol.

    `code` is an error code of the protocol."""

    def __init__(self, code: str, details: str) -> None:
        super().__init__(details)
        self.code = code

    def body(self, key: str) -> bytes:
        """Return the JSON body of the answer to the invalid request.

        `key` is the key of the flag."""
        return json.dumps({"key": key, "errorCode": self.code, "errorDetails": str(self)}).encode()


def request_line(key: str, body: bytes) -> bytes:
    """Return the line that requests the arms of a flag. The targeting key becomes the user and the session, unless the
    evaluation context has attributes `user` or `session`. Attributes that are not fields of a request become the
    context of the policy. Raises InvalidContext for a body that is no evaluation context.

    `key` is the key of the flag, and `body` is the JSON body of the evaluation request."""
    try:
        document = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise InvalidContext("PARSE_ERROR", str(error)) from None
    context = document.get("context") if isinstance(document, dict) else None
    if not isinstance(context, dict):
        raise InvalidContext("INVALID_CONTEXT", 'send {"context": {"targetingKey": "USER", ...}}')
    attributes = dict(context)
    target = attributes.pop("targetingKey", None)
    fields = {name: attributes.pop(name) for name in REQUEST_FIELDS if name in attributes}
    if target:
        fields = {"session": target, "user": target} | fields
    if "session" not in fields:
        raise InvalidContext("TARGETING_KEY_MISSING", "a request needs a targetingKey, or a session")
    return json.dumps({"policy": key, "context": attributes, **fields}).encode()


def flag_answer(key: str, answer: dict[str, Any]) -> tuple[int, bytes]:
    """Return the HTTP status and the JSON body that answer the evaluation of a flag. The value of the flag is the arm
    of the slate, or a list of arms unless the slate has exactly one slot.

    `key` is the key of the flag, and `answer` is the answer to the line of its request."""
    if "error" in answer:
        is_unknown = answer["field"] == "policy"
        code = "FLAG_NOT_FOUND" if is_unknown else "INVALID_CONTEXT"
        status = HTTPStatus.NOT_FOUND if is_unknown else HTTPStatus.BAD_REQUEST
        details = answer["error"] if is_unknown or not answer["field"] else f"{answer['field']}: {answer['error']}"
        return status, json.dumps({"key": key, "errorCode": code, "errorDetails": details}).encode()
    arms = [slot["arm"] for slot in answer["slate"]]
    metadata = {name: answer[name] for name in METADATA_KEYS if answer.get(name) is not None}
    return HTTPStatus.OK, json.dumps({
        "key": key, "value": arms[0] if len(arms) == 1 else arms, "variant": ",".join(arms), "reason": "SPLIT",
        "metadata": metadata,
    }).encode()  # fmt: skip
