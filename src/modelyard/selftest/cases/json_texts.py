"""Texts for JSON parsers, of the kinds that the well-known suites have: what RFC 8259 allows, what it forbids, and what
it leaves open. Each is tried alone as a body, and as the value of a field inside a request.

`NO` must be refused in both places; of `YES` and `OPEN` nothing worse may come than a refusal."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

Kind = Literal["yes", "no", "open"]
_CONTROL = range(0x20)


@dataclass(frozen=True, slots=True)
class JsonText:
    name: str
    text: bytes
    kind: Kind


def _numbers() -> Iterator[JsonText]:
    good = "0 -0 1 -1 123 0.5 -0.5 1e3 1E3 1e+3 1e-3 1.5e3 0e1 0e+1 0E0 20e1 -1.25e-7 1234567890 9007199254740993"
    for text in good.split():
        yield JsonText(f"the number {text}", text.encode(), "yes")
    bad = (
        "+1 .5 -.5 1. -1. 0. 01 -01 00 012 1e 1e+ 1e- 1E 1.e3 0.e1 .e1 1.2.3 1..2 --1 -+1 +-1 ++1 - + -- 1-2 1+2 0x1 "
        "0x 0b1 0o7 1_000 1,000.0,5 1f 1L 1n 1e3.5 1e1e1 1.5e 0.3e 0e 0e+ -e 2.e+3 2.e-3 1ea 1e1a 1a 1.a -a "
        "NaN nan -NaN Infinity -Infinity +Infinity inf -inf Inf 1eE2 ½ \uff11"
    )
    for text in bad.split():
        yield JsonText(f"not the number {text}", text.encode(), "no")
    for text in ("1 2", "- 1", "1 .5", "1e 3", "1\x00", "\x001", "1\xa0"):
        yield JsonText(f"not a number in two parts {text!r}", text.encode("latin-1"), "no")
    for text in ("1e999", "-1e999", "1e-999", "9" * 400, "-" + "9" * 400, "0." + "1" * 400, "1e" + "9" * 20):
        yield JsonText(f"a number beyond what floats hold, of {len(text)} characters", text.encode(), "open")


def _strings() -> Iterator[JsonText]:
    good = (
        '"" "a" "\\"" "\\\\" "\\/" "\\b\\f\\n\\r\\t" "\\u0041" "\\u00e9" "\\uD834\\uDD1E" "\\u0000" "\\u2028" "é" "漢" '
        '"𝄞" "\u2028" "\u2029" "\u007f" "\ufeff" "\uffff" "\\uFFFE" "\\u0012" "/" "\\\\u0041" "[]" "{}" "," ":" "//" '
        '"\\uDBFF\\uDFFF" "a/*b*/c" "\u200d" "\\u005C" "\\u0022"'
    )
    for text in good.split(" "):
        yield JsonText(f"the string {text}", text.encode(), "yes")
    for code in _CONTROL:
        yield JsonText(f"not a string with a bare control character {code}", b'"a%cb"' % code, "no")
        if code not in (9, 10, 13):
            yield JsonText(f"a control character {code} outside a string", b"[1%c]" % code, "no")
    bad = (
        '" a" \'a\' "a\' "\\" "\\x41" "\\a" "\\v" "\\0" "\\\'" "\\u" "\\u1" "\\u12" "\\u123" "\\u123g" '
        '"\\U0041" "\\u 041" "\\uD834\\" "\\uD834\\u" "\\uD834\\uD" "\\😀" "a"b "a"" ""a `a` “a” "\\ " "\\\n"'
    )
    for text in bad.split(" "):
        yield JsonText(f"not the string {text}", text.encode(), "no")
    for name, text in {
        "a lone first surrogate": b'"\\uD800"',
        "a lone second surrogate": b'"\\uDC00"',
        "two first surrogates": b'"\\uD800\\uD800"',
        "surrogates the wrong way round": b'"\\uDD1E\\uD834"',
        "half a pair, then text": b'"\\uD800abc"',
    }.items():
        yield JsonText(name, text, "open")
    for name, text in {
        "a byte that begins nothing": b'"\xff"',
        "an overlong slash": b'"\xc0\xaf"',
        "an overlong NUL": b'"\xc0\x80"',
        "a surrogate in UTF-8": b'"\xed\xa0\x80"',
        "a character cut after one byte": b'"\xe2"',
        "a character cut after two bytes": b'"\xe2\x82"',
        "a continuation alone": b'"\x80"',
        "beyond the last character": b'"\xf4\xbf\xbf\xbf"',
        "Latin-1": b'"\xe9"',
        "five bytes": b'"\xf8\x88\x80\x80\x80"',
    }.items():
        yield JsonText(f"bytes that are no UTF-8: {name}", text, "no")


def _structures() -> Iterator[JsonText]:
    good = (
        '[] {} [[]] [{}] {"a":[]} {"a":{}} [1,2] {"a":1,"b":2} {"":0} {"a":null} [null,true,false] true false null '
        '{"\\u0061":1} [[[[[]]]]] {"a":{"b":{"c":[1]}}} ["",""] {"a":"}"} ["]"] [1e1,""]'
    )
    for text in good.split(" "):
        yield JsonText(f"the value {text}", text.encode(), "yes")
    for name, text in {
        "spaces": " [ 1 , 2 ] ",
        "tabs": "\t{\t}\t",
        "lines": "\n[\r\n1\n]\n",
        "a space": "  1  ",
    }.items():
        yield JsonText(f"a value among {name}", text.encode(), "yes")
    bad = (
        '[ ] [1 [1, [,] [1,] [,1] [1,,2] [1,2,] [] ] [[] [[]]] [1]] [{] {]} [} {a:1} {1:1} {null:1} {[]:1} {"a"} '
        '{"a":} {"a":1,} {,} {,"a":1} {"a":1,,"b":2} {"a"1} {"a"::1} {"a":1:2} {"a":1 {"a":1}} { {" {"a {"a" '
        '{"a": {"a":{} {"a":[} {\'a\':1} {"a":1;"b":2} {"a",1} {"a":"b",} {"a":1}# [1]# {}{} [][] [1][2] {}[] {}, '
        "[]; tru true1 True TRUE fals False nul Null NULL nulll none None undefined nill yes [tru] [nul] "
        "(1) <1> <a/> /**/1 1/**/ //1 #1 [1//2] [1/*2*/] @ $ % & * ~ ^ ! ? | \\ ` = [1=2] {a} {{}} {{}:1} {true} "
        '[*] [?] [-] [+] [.] [e] [1:2] ["a":1] ["a" ["a [" ["a",\n [1,\n1\n,1 ["a\nb"] ...  , : ; \' " -- **'
    )
    seen: set[str] = set()
    for text in bad.split(" "):
        if text and text not in seen and text != "[]":
            seen.add(text)
            yield JsonText(f"not the value {text!r}", text.encode(), "no")
    for name, text in {
        "nothing": b"",
        "a space alone": b" ",
        "line ends alone": b"\r\n",
        "NUL alone": b"\x00",
        "a mark of byte order": b"\xef\xbb\xbf1",
        "a mark of byte order before an object": b"\xef\xbb\xbf{}",
        "a space that is not ASCII": "[\u00a01]".encode(),
        "a space of no width": "\u2060[]".encode(),
        "a form feed": b"[\x0c]",
        "UTF-16": '{"a":1}'.encode("utf-16"),
        "UTF-16 without a mark": '["é"]'.encode("utf-16-le"),
        "UTF-32": "[1]".encode("utf-32"),
        "brackets without an end": b"[" * 10_000,
        "objects without an end": b'{"a":' * 10_000,
        "brackets of 100,000 levels, closed": b"[" * 100_000 + b"]" * 100_000,
        "a number of 5,000 digits in a list that does not end": b"[" + b"9" * 5000,
        "gzip": b"\x1f\x8b\x08\x00\x00\x00\x00\x00",
        "a form": b"a=1&b=2",
        "a line of XML": b"<?xml version='1.0'?><a/>",
        "a line of YAML": b"a: 1",
        "a number of 5,000 digits": b"9" * 5000,
    }.items():
        yield JsonText(name, text, "no")
    for name, text in {
        "500 levels": b"[" * 500 + b"]" * 500,
        "a key twice": b'{"a":1,"a":2}',
        "a key twice, once escaped": b'{"a":1,"\\u0061":2}',
        "a key twice with one value": b'{"a":1,"a":1}',
        "an empty key twice": b'{"":1,"":2}',
        "a key of 100,000 characters": b'{"%b":1}' % (b"k" * 100_000),
        "a string of 1,000,000 characters": b'"%b"' % (b"s" * 1_000_000),
        "10,000 values": b"[" + b"0," * 9_999 + b"0]",
        "10,000 keys": b"{" + b",".join(b'"%d":0' % number for number in range(10_000)) + b"}",
    }.items():
        yield JsonText(name, text, "open")


TEXTS: tuple[JsonText, ...] = (*_numbers(), *_strings(), *_structures())
