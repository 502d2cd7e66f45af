"""Input of one JSON object a line."""

import json
import os
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import msgspec
import pytest

from rlrec.cli.program.files import Refusals
from rlrec.cli.program.shared import Settings
from rlrec.cli.text.lines import decode, decode_group, groups, key_type
from rlrec.cli.text.strict import LIMIT, decode_json
from rlrec.errors import InputError


class Line(msgspec.Struct, forbid_unknown_fields=True):
    decision_id: int | None = None
    value: float = 0.0
    events: dict[str, float] = {}
    context: dict[str, Any] | None = None
    key: str = ""
    arms: list[str] = []
    censor: bool | None = None


@pytest.fixture
def read(tmp_path: Path) -> Any:
    def lines(data: Any, **options: Any) -> Any:
        (tmp_path / "in.ndjson").write_bytes(data)
        return list(groups(str(tmp_path / "in.ndjson"), **options))

    return lines


@pytest.fixture
def pipe() -> Iterator[tuple[str, int]]:
    """A pipe as a file to read: its path, and the end to write to."""
    end, start = os.pipe()
    yield f"/dev/fd/{end}", start
    os.close(end)


# -- groups --


def test_bom_crlf_blank_lines_and_a_missing_last_newline_are_fine(read: Any) -> None:
    assert read(b'\xef\xbb\xbf{"a": 1}\r\n\r\n  \n{"a": 2}\n\n{"a": 3}') == [
        [(1, b'{"a": 1}'), (4, b'{"a": 2}'), (6, b'{"a": 3}')]
    ]


@pytest.mark.parametrize("data", [b"", b"\n\n", b"\xef\xbb\xbf", b"\r\n"])
def test_an_empty_input_has_no_groups(read: Any, data: Any) -> None:
    assert read(data) == []


@pytest.mark.parametrize("eager", [True, False])
def test_a_group_closes_at_its_size(read: Any, eager: Any) -> None:
    sizes = [len(group) for group in read(b"x\n" * 2500, eager=eager)]
    assert sizes == [1000, 1000, 500]


def test_lines_longer_than_a_block_stay_whole(read: Any) -> None:
    long = b"x" * 200_000
    assert read(long + b"\n" + long) == [[(1, long), (2, long)]]


def test_a_too_long_line_is_cut_and_the_next_one_read(read: Any) -> None:
    ((first, second),) = read(b"x" * (LIMIT + 300_000) + b"\n{}")
    assert len(first[1]) == LIMIT + 1
    assert second == (2, b"{}")
    with pytest.raises(InputError, match="longer than 10 MB"):
        decode(first[1], Line, line=1)


def test_a_flush_line_closes_a_group_and_is_dropped(read: Any) -> None:
    data = b'a\n{"op": "flush"}\n{"op":"flush"}\nb\n'
    assert read(data, flush=True, eager=False) == [[(1, b"a")], [(4, b"b")]]
    assert len(read(data)[0]) == 4


def test_lines_are_numbered_across_blocks(read: Any) -> None:
    data = b'\xef\xbb\xbf{"op": "flush"}\n' + b"\n".join(b"%d" % n if n % 7 else b" \t\r" for n in range(2, 40_000))
    for flush in (True, False):
        lines = [line for group in read(data, flush=flush) for line in group]
        assert lines[1 - flush :] == [(n, b"%d" % n) for n in range(2, 40_000) if n % 7]


def test_a_producer_that_waits_for_its_answer_gets_it(pipe: tuple[str, int]) -> None:
    path, start = pipe
    os.write(start, b"one\n")
    observed = []
    for group in groups(path, eager=True):
        observed.append([raw for _, raw in group])
        if len(observed) < 3:
            os.write(start, b"next\nhalf" if len(observed) == 1 else b" of it\n")
        else:
            os.close(start)
    assert observed == [[b"one"], [b"next"], [b"half of it"]]


def test_a_group_that_is_not_eager_waits_for_the_end(pipe: tuple[str, int]) -> None:
    path, start = pipe
    os.write(start, b"one\n")

    def send() -> None:
        os.write(start, b"two\n")
        os.close(start)

    late = threading.Timer(0.2, send)
    late.start()
    assert list(groups(path, eager=False)) == [[(1, b"one"), (2, b"two")]]
    late.join()


# -- decoding --


def refused(raw: Any) -> Any:
    with pytest.raises(InputError) as caught:
        decode(raw, Line, line=12)
    assert caught.value.line == 12
    assert caught.value.message.isprintable()
    assert len(caught.value.message) < 200
    return caught.value


@pytest.mark.parametrize(
    ("raw", "field"),
    [
        (b'{"value": NaN}', "value"),
        (b'{"context": {"a": [1, -Infinity]}}', "context.a[1]"),
        (b'{"value": 1e999}', "value"),
        (b'{"context": {"a": 1e999}}', "context.a"),
        (b'{"value": "1"}', "value"),
        (b'{"events": {"a": 1, "click": "1"}}', "events.click"),
        (b'{"events": {"click": true}}', "events.click"),
        (b'{"events": {"click": null}}', "events.click"),
        (b'{"decision_id": true}', "decision_id"),
        (b'{"decision_id": 1.0}', "decision_id"),
        (b'{"decision_id": 9223372036854775808}', "decision_id"),
        (b'{"value":123456789012345678901234567890}', "value"),
        (b'{"context": {"a":[-9223372036854775809]}}', "context.a[0]"),
        (b'{"context": {"a": ' + b"1" * 5000 + b"}}", "context.a"),
        (b'{"key": "a\\u0000b"}', "key"),
        (b'{"context": {"\\u0000": 1}}', "context"),
        (b'{"key": "\\ud800"}', "key"),
        (b'{"context": {"a": "\\udc00x"}}', "context.a"),
        (b'{"arms": ["a", 5]}', "arms[1]"),
        (b'{"censor": 1}', "censor"),
        (b'{"decision_id": 1, "decision_id": 1}', "decision_id"),
        (b'{"events": {"click": 1, "click" : 2}}', "events.click"),
        (b'{"context": {"a": [{"b\\\\": 1, "b\\\\": 2}]}}', "context.a[0].b\\"),
    ],
)
def test_what_is_refused_is_named_by_its_field(raw: Any, field: str) -> None:
    assert refused(raw).field == field


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        (b'{"value": 1', "not JSON: expecting ',' delimiter at column 12"),
        (b'{"value": 1} {}', "extra data at column 14"),
        (b"{'value': 1}", "not JSON"),
        (b'{"key": "\xff"}', "not UTF-8: byte 0xff at column 10"),
        (b'{"key": "\xed\xa0\x80"}', "not UTF-8"),
        (b'"text"', "expected an object, got \"text\""),
        (b"null", "expected an object, got null"),
        (b'{"context": ' + b'{"a":' * 2000 + b"1" + b"}" * 2001, "nested more than 64 deep"),
        (b'{"context": {"a":' + b"[" * 70 + b"]" * 70 + b"}}", "nested more than 64 deep"),
        (b"[" * 100_000, "nested more than 64 deep"),
    ],
)  # fmt: skip
def test_what_is_no_object_is_refused(raw: Any, message: Any) -> None:
    assert message in refused(raw).message


@pytest.mark.parametrize(
    ("raw", "hint"),
    [
        (b'[{"value": 1}]', "jq -c '.[]'"),
        (b"[", "jq -c"),
        (b"{", "jq -c"),
        (b"decision_id,event", "rlrec help formats"),
        (b'{"evnts": {}}', "did you mean events"),
        (b'{"zzz": 1}', "known: decision_id, value"),
        (b"\x1f\x8b\x08", "zcat"),
        (b"\xff\xfe{\0", "UTF-16"),
    ],
)
def test_the_way_out_is_named(raw: Any, hint: Any) -> None:
    assert hint in (refused(raw).hint or "")


@pytest.mark.parametrize(
    "raw",
    [
        b'{"decision_id": 9223372036854775807, "value": -0.0, "key": "\\ud83d\\ude00"}',
        b'{"key": "12345678901234567890123", "value": 0.00123456789012345678901}',
        b'{"key": ": \\":", "context": {"a": ":", "b\\"": ": \\u00e9", "c": {"a": 1}}}',
        b'{"key": "NaN \\\\u0000"}',
        b'{"value" : 1e308, "context": {"a": ' + b"[" * 60 + b"]" * 60 + b"}}",
    ],
)
def test_odd_but_right_lines_pass(raw: Any) -> None:
    line = decode(raw, Line, line=1)
    assert {name: getattr(line, name) for name in json.loads(raw)} == json.loads(raw)


class Ask(msgspec.Struct, tag_field="op", tag="ask", forbid_unknown_fields=True):
    session: str = ""


class Tell(msgspec.Struct, tag_field="op", tag="tell", forbid_unknown_fields=True):
    events: dict[str, float] = {}


@pytest.mark.parametrize(
    ("raw", "message", "field", "hint"),
    [
        (b'{"session": "s"}', "is missing", "op", "it is ask or tell"),
        (b'{"op": "askk"}', "'askk' is not ask or tell", "op", "did you mean ask?"),
        (b'{"op": 7}', "expected text, got 7", "op", None),
        (b'{"op": "ask", "evens": {}}', "unknown field", "evens", "known: session"),
        (b'{"op": "tell", "evens": {}}', "unknown field", "evens", "did you mean events?"),
        (b'{"op": "tell", "op": "ask"}', "is given twice", "op", None),
    ],
)
def test_a_tag_tells_what_a_line_is(raw: Any, message: Any, field: str, hint: Any) -> None:
    good = b'{"session": "s", "op": "ask"}'
    first, second, third = decode_group([(1, good), (2, raw), (3, b'{"op": "tell"}')], Ask | Tell)
    assert (first, third) == (Ask("s"), Tell())
    assert (second.message, second.field, second.hint, second.line) == (message, field, hint, 2)


# -- groups at once --

ODD = [
    b'{"key": "a", "arms": ["b"]}', b'{"value": NaN}', b'{"key": "a\\u0000b"}', b'{"key": "\\ud800"}',
    b'{"decision_id": 1, "decision_id": 1}', b'{"events": {"click": 1, "click" : 2}}', b'{"value" : 1, "key": "x" }',
    b'{"key": "\\u0022:", "key": ""}', b'{"key": "a", "key": "\\u0022\\u003a"}', b'{"key": "a\\\\u0022:"}',
    b'{"context": {"a":123456789012345678901}}', b'{"context": {"a": 0.1234567890123456789012}}',
    b'{"key": "12345678901234567890"}', b'{"context": {"a":' + b"[" * 70 + b"]" * 70 + b"}}",
    b'{"key": "' + b"[" * 200 + b'"}',
    b'{} {}', b"{},{}", b'{"context": {', b'}}', b'"a": 1}', b"{", b"}", b"[{}]", b"[{}", b"{}]", b"{}", b" {}", b"{} ",
    b'{"key": "\xff"}', b'{"key": ":\\":"}', b'{"key": "}', b'{"}', b'{"key"\t:"a", "key":"\\"\\t:"}', b"7",
    b'{"zzz": 1}',
    b'{"key": "a  :", "context": {"b\\"  :": "\\" :"}}', b'{"context": {"a": {"b": 1, "b": 2}, "c": "\\u003A"}}',
]  # fmt: skip


def singly(group: Any) -> Any:
    def tried(number: int, raw: Any) -> Any:
        try:
            return decode(raw, Line, line=number)
        except InputError as error:
            return error

    return [tried(*line) for line in group]


def plain(values: Any) -> Any:
    return [vars(value) | {"text": str(value)} if isinstance(value, InputError) else value for value in values]


@pytest.mark.parametrize("first", ODD)
def test_a_group_is_decoded_like_its_lines(first: Any) -> None:
    for second in ODD:
        group = [(3, b'{"key": "x"}'), (4, first), (7, second)]
        assert plain(decode_group(group, Line)) == plain(singly(group))


@pytest.mark.parametrize("parts", [(b'{"context": {"a": {}', b"{}}}", b"{} {}"), (b'{"key": "}', b'{"}', b"{}{}")])
def test_values_that_lie_across_lines_are_none(parts: Any) -> None:
    group = list(enumerate(parts, 1))
    assert plain(decode_group(group, Line)) == plain(singly(group))


def test_a_good_group_is_decoded_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rlrec.cli.text.lines.decode", None)
    text = (
        b'{"decision_id": 7, "events": {"click": 1}, "key": "\xc3\xa9 \\": \\u00e9", "context": {"a": [{"b": null}]}}'
    )
    lines = decode_group([(number, text) for number in range(1, 1001)], Line)
    assert [line.decision_id for line in lines] == [7] * 1000
    assert decode_group([(1, b'{"value": 2}')], Line)[0].value == 2
    broad = b'{"context": {"a": [' + b",".join([b"{}"] * 200) + b"]}}"  # many brackets, none of them deep
    assert decode_group([(1, broad)], Line)[0].context == {"a": [{}] * 200}


@pytest.mark.parametrize(
    ("raw", "message", "field"),
    [
        (b'{"key": ""}', "a key has 1 to 200 characters, '' has 0", "key"),
        (b'{"arms": ["a", "' + b"x" * 201 + b'"]}', "characters, '" + "x" * 19 + "…' has 201", "arms"),
        (b'{"key": "\\u0000"}', "'\\x00' holds a NUL character", "key"),
        (b'{"key": 7}', "expected text, got 7", "key"),
        (b'{"arms": ["' + "😀".encode() * 200 + b'"]}', None, None),
    ],
)
def test_a_key_is_checked_on_the_way(raw: Any, message: Any, field: str) -> None:
    kind = msgspec.defstruct("Kind", [("key", key_type(), "a"), ("arms", list[key_type()] | None, None)])
    (result,) = decode_group([(5, raw)], kind)
    if message is None:
        assert len(result.arms[0]) == 200
    else:
        assert message in result.message
        assert (result.field, result.line) == (field, 5)


def test_any_json_is_decoded_as_strictly() -> None:
    assert decode_json(b' {"a": [1, 2.5, "x", null]} ') == {"a": [1, 2.5, "x", None]}
    for raw in (b"123456789012345678901", b'{"a":1,"a":1}', b'"\\u0000"', b"", b"NaN"):
        with pytest.raises(InputError):
            decode_json(raw)


def test_a_reject_keeps_reason_and_text(tmp_path: Path) -> None:
    rejects = Refusals(str(tmp_path / "bad.ndjson"))
    with click.Context(click.Command("x"), obj=Settings()), rejects.file:
        rejects.reading("in")
        rejects.refuse(refused(b'{"value": "1"}'), b'{"value": "\xff\xc3\xa9"}')
    row = msgspec.json.decode((tmp_path / "bad.ndjson").read_bytes())
    assert list(row.values()) == [12, 'expected a number, got "1"', "value", '{"value": "\\xffé"}', "in", 2]
    assert list(row) == ["line", "error", "field", "text", "file", "code"]
