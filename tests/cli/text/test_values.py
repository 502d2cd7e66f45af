"""Words from a shell to values and back."""

import time
from pathlib import Path
from typing import Any

import pytest

from rlrec import times
from rlrec.cli.text import values
from rlrec.errors import InputError
from tests.conftest import Run

NOON = 1_769_860_800_000_000  # 2026-01-31T12:00:00Z


@pytest.mark.parametrize(
    ("text", "micros"),
    [
        ("2026-01-31T12:00:00Z", NOON),
        ("2026-01-31t12:00:00z", NOON),
        ("2026-01-31 12:00", NOON),
        ("2026-01-31T12:00:00", NOON),
        ("2026-01-31T14:30:00+02:30", NOON),
        ("2026-01-31T02:00:00-10:00", NOON),
        ("2026-01-31", NOON - 12 * 3600 * 10**6),
        ("2026-01-31T12:00:00.123456789Z", NOON + 123_456),
        ("2026-01-31T11:59:60Z", NOON),
        ("1969-12-31T23:59:59.5Z", -500_000),
    ],
)
def test_times_are_utc_microseconds(text: str, micros: Any) -> None:
    assert times.parse(text) == micros


def test_a_clock_may_be_relative_to_that_of_the_machine() -> None:
    before = time.time_ns() // 1_000
    assert 0 <= values.parse_clock("+1h30m") - before - 5_400 * times.SECOND < 60 * times.SECOND
    assert values.parse_clock("2026-01-31") == times.parse("2026-01-31")


@pytest.mark.parametrize(
    "text",
    ["", "now", "1769860800", "2026-02-30", "2026-01-31T24:00:00Z", "2026-01-31T12", "2026-1-31",
     "2026-01-31T12:00:00+25:00", "0001-01-01T00:00:00+01:00", "２026-01-31", "2026-01-31T12:00:00Z\n"],
)  # fmt: skip
def test_what_is_no_time_is_refused(text: str) -> None:
    with pytest.raises(InputError):
        times.parse(text)


@pytest.mark.parametrize("micros", [NOON, NOON + 1, -1, times.FIRST, times.LAST])
def test_times_print_in_a_form_that_reads_back(micros: Any) -> None:
    text = times.format_time(micros)
    assert text.endswith("Z")
    assert len(text) == 27
    assert times.parse(text) == micros


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("90s", 90), ("30m", 1800), ("7d", 604_800), ("1h30m", 5400), ("1.5h", 5400), ("250ms", 0.25), ("0s", 0)],
)  # fmt: skip
def test_durations_add_their_units(text: str, seconds: Any) -> None:
    assert values.parse_duration(text) == seconds * 10**6
    assert values.parse_duration(times.format_duration(values.parse_duration(text))) == seconds * 10**6


@pytest.mark.parametrize("text", ["", "30", "m", "30m1h", "-5m", "1h1h", "1 h", "nan", "9" * 400 + "d"])
def test_what_is_no_duration_is_refused(text: str) -> None:
    with pytest.raises(InputError):
        values.parse_duration(text)


@pytest.mark.parametrize("text", ["nan", "inf", "-inf", "1e999", "1_000", " 1", "", "0x10", "１", "9" * 400])
def test_numbers_are_finite_and_plain(text: str) -> None:
    with pytest.raises(InputError):
        values.parse_number(text)


def test_numbers_keep_their_sign_and_exponent() -> None:
    assert [values.parse_number(t) for t in ("-1.5", "1e-3", ".5", "+2")] == [-1.5, 0.001, 0.5, 2.0]


@pytest.mark.parametrize("text", ["9223372036854775808", "-9223372036854775809", "9" * 5000, "1.0", "1_0", "١", ""])
def test_integers_fit_into_64_bits(text: str) -> None:
    with pytest.raises(InputError):
        values.parse_integer(text)


def test_integers_reach_both_ends_of_64_bits() -> None:
    assert values.parse_integer("-9223372036854775808") == -(2**63)
    assert values.parse_integer("0009223372036854775807") == 2**63 - 1


@pytest.mark.parametrize("text", ["", "-a", ".a", "a b", "a" * 65, "é", "a/b", "a@1", "a\n"])
def test_names_are_plain_words(text: str) -> None:
    with pytest.raises(InputError):
        values.parse_name(text)


@pytest.mark.parametrize("text", ["007", "1e5", " a ", "é", "a\nb", "-x", "k" * 200])
def test_keys_stay_verbatim(text: str) -> None:
    assert values.parse_key(text) == text


@pytest.mark.parametrize("text", ["", "k" * 201, "a\0b", "a\udc80"])
def test_keys_that_no_database_takes_are_refused(text: str) -> None:
    with pytest.raises(InputError):
        values.parse_key(text)


def test_arms_come_as_a_comma_list_or_as_json() -> None:
    assert values.parse_keys("a, b,007") == ["a", "b", "007"]
    assert values.parse_keys('["a,b", " c "]') == ["a,b", " c "]


@pytest.mark.parametrize("text", ["a,,b", "", "[1]", '["a"', '[""]'])
def test_lists_of_arms_hold_keys_only(text: str) -> None:
    with pytest.raises(InputError):
        values.parse_keys(text)


def test_json_comes_from_a_file_after_an_at_sign(tmp_path: Path) -> None:
    file = tmp_path / "context é.json"
    file.write_bytes(b'\xef\xbb\xbf{\n "hour": 9\n}\n')
    assert values.parse_object(f"@{file}") == {"hour": 9}


@pytest.mark.parametrize(
    "text", ["[1]", "1", "null", '{"a": NaN}', '{"a": 1, "a": 2}', "{", "@", "@/no/such", "{'a': 1}"]
)
def test_a_context_is_a_strict_json_object(text: str) -> None:
    with pytest.raises(InputError):
        values.parse_object(text)


@pytest.mark.parametrize(
    "text",
    [
        "postgresql://u:s3cret@h/db",
        "cannot open postgresql+psycopg://u:s3cret@h:5432/db?sslmode=require now",
        "postgresql://u:s3c/s3cret@x@h/db",
        "postgresql://h/db?user=u&password=s3cret&x=1",
        "host=h password='a s3cret' user=u",
        "host=h PASSWORD=s3cret",
        "postgresql://h/db?sslpassword=s3cret",
    ],
)
def test_passwords_are_masked(text: str) -> None:
    assert "s3cret" not in values.mask_secrets(text)
    assert "***" in values.mask_secrets(text)


@pytest.mark.parametrize("text", ["http://h:80/path", "mail a@b.c", "sqlite:///x.db", "postgresql://u@h:5432/db"])
def test_what_holds_no_password_stays(text: str) -> None:
    assert values.mask_secrets(text) == text


def test_a_known_password_is_masked_wherever_it_turns_up() -> None:
    url = "postgresql://u:my%20pass word@h/db"
    shown = values.mask_secrets("bad port 'my pass word', my%20pass word", values.passwords(url))
    assert shown == "bad port '***', ***"


def test_a_long_word_is_searched_for_passwords_once() -> None:
    """From each of its letters it would take hours."""
    word = "x" * 10_000_000
    assert values.mask_secrets(word) == word
    assert (
        values.mask_secrets("9postgresql://u:s3cret@h/db x.y+z://u:s3cret@h")
        == "9postgresql://u:***@h/db x.y+z://u:***@h"
    )


def test_an_error_leaves_out_the_middle_of_what_is_long(run_sqlite: Run) -> None:
    refused = run_sqlite("policy", "show", "x" * 100_000)
    assert (refused.exit_code, len(refused.stderr) < 2_100) == (2, True)
    line = f'{{"policy": "{"x" * 100_000}", "session": "s"}}\n'
    assert len(run_sqlite("recommend", "--input", "-", stdin=line).lines[0]["error"]) < 2_100
