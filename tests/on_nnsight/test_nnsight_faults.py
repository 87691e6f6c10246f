"""What the client and the server of NDIF threw, word for word, and what it is explained as.

`recorded/ndif_faults.json` holds what was raised against a real server (nnsight 0.8.1, ndif 0.1.2):
class names and texts along the chain of causes. `written` below holds sentences copied from ndif's
source that were not provoked. tests/remote/test_faults.py provokes the main ones anew.
"""

from __future__ import annotations

import base64
import json
import traceback
from pathlib import Path
from types import SimpleNamespace
from urllib.parse import quote, quote_plus

import pytest

from sa_nnsight.faults import RemoteFault, classify, explain_fault, strike

HOST = "http://ndif.example:8001"
RECORDED = json.loads((Path(__file__).parents[1] / "recorded/ndif_faults.json").read_text("utf-8"))
AGAIN = {"unreachable", "unavailable", "cut_off", "crashed", "evicted"}
SAYS = {
    "unreachable": f"nobody answers at {HOST}",
    "address": "NDIF_HOST",
    "not_deployed": "not deployed",
    "crashed": "died",
    "cut_off": "was cut",
    "registration": "nnsight.register",
    "versions": "ndif.compare()",
    "memory": "ran out of memory",
    "order": "OutOfOrderError",
    "block": "mat1 and mat2 shapes cannot be multiplied",
    "payload": "cannot travel",
    "unavailable": "cannot work now",
}
written = [
    ("Your job exceeded the execution timeout of 3.0s.", "timeout", False, "3.0 s"),
    (
        "Replica was evicted while processing your request. Sorry for the inconvenience. "
        "Please try again later.",
        "evicted",
        True,
        "another",
    ),
    ("Your job was cancelled or preempted by the server.", "evicted", True, "Send it again"),
    ("Request cancelled by operator.", "cancelled", False, "operator"),
    (
        "Your request payload could not be read (ZstdError: cannot decompress). It may be truncated "
        "or corrupted in transit",
        "payload",
        True,
        "ZstdError",
    ),
    ("Failed to send request: Invalid API key.", "key", False, "NDIF_API_KEY"),
    (
        "Failed to send request: Missing or invalid API key. Please visit https://login.ndif.us/",
        "key",
        False,
        "NDIF_API_KEY",
    ),
    (
        "Failed to send request: Client nnsight version 0.7.0 is below the minimum supported 0.8.0.",
        "versions",
        False,
        "below the minimum supported 0.8.0",
    ),
    (
        "Failed to send request: Service temporarily unavailable: compute backend is reconnecting. "
        "Please try again in a few minutes.",
        "unavailable",
        True,
        "compute backend",
    ),
    ("Failed to send request: Client error '413 Request Entity Too Large'", "size", False, "fewer samples"),
    (
        'Traceback (most recent call last):\n  File "a.py", line 1\nNotImplementedError: Cannot '
        "copy out of meta tensor; no data!\n",
        "weights",
        False,
        "recover_projection",
    ),
    (
        'Traceback (most recent call last):\n  File "a.py", line 1\n'
        "botocore.exceptions.EndpointConnectionError: Could not connect to the endpoint URL\n",
        "size",
        True,
        "object store",
    ),
]


def rebuilt(chain):
    """The recorded exceptions, each the cause of the one before."""
    builtin = {"ConnectionRefusedError": ConnectionRefusedError, "TypeError": TypeError}
    error = None
    for name, text in reversed(chain):
        kind = builtin.get(name) or type(name, (Exception,), {})
        made = kind(text)
        made.__cause__ = error
        error = made
    return error


@pytest.mark.parametrize("row", RECORDED, ids=lambda row: row["name"])
def test_recorded(row):
    fault = classify(rebuilt(row["chain"]), host=HOST)
    assert fault.kind == row["kind"]
    assert fault.retry == (fault.kind in AGAIN)
    assert SAYS[fault.kind] in fault.text
    assert "Traceback" not in fault.text.splitlines()[0]


@pytest.mark.parametrize(("text", "kind", "retry", "says"), written, ids=lambda value: None)
def test_sentences_of_the_server(text, kind, retry, says):
    fault = classify(type("RemoteError", (Exception,), {})(text), host=HOST)
    assert (fault.kind, fault.retry) == (kind, retry)
    assert says in fault.text


def test_the_misleading_one_names_the_module():
    (row,) = [row for row in RECORDED if row["name"] == "unregistered"]
    text = str(explain_fault(rebuilt(row["chain"])))
    assert "nnsight.register('saplug_absent')" in text
    assert "that does not help" in text


def test_words_in_the_users_own_traceback_decide_nothing():
    said = "Traceback (most recent call last):\n  File 'a.py'\nValueError: Connection refused\n"
    fault = classify(type("RemoteError", (Exception,), {})(said), host=HOST)
    assert (fault.kind, fault.retry) == ("block", False)
    assert "ValueError: Connection refused" in fault.text


def test_keys_are_struck_everywhere(monkeypatch):
    monkeypatch.setenv("NDIF_API_KEY", "sk-very-secret")
    cause = OSError("header ndif-api-key: other-key; sk-very-secret")
    error = type("RemoteError", (Exception,), {})(
        "Failed to send request: Invalid API key format: 'typed-wrong'. sk-very-secret"
    )
    error.__cause__ = cause
    fault = explain_fault(error, host="http://me:password@ndif.example")
    for text in (str(fault), str(error), str(cause)):
        for secret in ("sk-very-secret", "typed-wrong", "other-key", "password"):
            assert secret not in text
    assert fault.kind == "key"
    refused = explain_fault(ConnectionRefusedError(111, "refused"), host="http://me:password@x:1")
    assert "password" not in str(refused)
    assert "x:1" in str(refused)


def test_a_key_in_nnsights_configuration_is_struck(monkeypatch):
    nnsight = pytest.importorskip("nnsight")
    monkeypatch.setattr(nnsight.CONFIG.API, "APIKEY", "configured-secret")
    assert "configured-secret" not in strike("it was configured-secret")


SECRET = "sk-Very/secret+123"


class Telling(Exception):
    def __str__(self):
        return f"it is {SECRET}"


class Asking(Exception):
    def __init__(self):
        super().__init__("no")
        self.headers = {"ndif-api-key": "another-key", b"Authorization": b"Bearer x"}
        self.request = SimpleNamespace(headers={"ndif-api-key": SECRET, "host": "x"})


def with_note(error):
    error.add_note(f"key {SECRET}")
    return error


def caused(error):
    error.__cause__ = ValueError("no")
    error.__cause__.__context__ = KeyError(SECRET)
    error.__context__ = OSError(5, SECRET, f"/tmp/{SECRET}")
    return error


LEAKS = {
    "plain": lambda: RuntimeError(f"bad key {SECRET}"),
    "case": lambda: RuntimeError(SECRET.upper(), SECRET.lower()),
    "bytes": lambda: RuntimeError(f"x {SECRET}".encode()),
    "deep": lambda: RuntimeError({"a": [(SECRET.encode(), {"b": {SECRET: 1}})]}),
    "header": lambda: RuntimeError({"headers": {"NDIF-API-Key": "another-key"}}),
    "url": lambda: RuntimeError(f"http://x/?key={quote(SECRET, safe='')}&a={quote_plus(SECRET)}"),
    "basic": lambda: RuntimeError(base64.b64encode(SECRET.encode()).decode()),
    "note": lambda: with_note(RuntimeError("x")),
    "cause": lambda: caused(RuntimeError("x")),
    "group": lambda: ExceptionGroup("g", [RuntimeError(SECRET), with_note(ValueError("y"))]),
    "name of a group": lambda: ExceptionGroup(SECRET, [RuntimeError("x")]),
    "own text": Telling,
    "attributes": Asking,
    "os": lambda: OSError(2, SECRET, SECRET),
    "decode": lambda: UnicodeDecodeError("utf-8", SECRET.encode(), 0, 1, SECRET),
    "json": lambda: json.JSONDecodeError("no", f'{{"key": "{SECRET}"', 3),
}


@pytest.mark.parametrize("name", LEAKS)
def test_keys_are_struck_from_every_form_of_text(monkeypatch, name):
    monkeypatch.setenv("NDIF_API_KEY", SECRET)
    error = LEAKS[name]()
    fault = explain_fault(error, host=HOST)
    try:
        raise fault from fault.__cause__
    except RemoteFault as raised:
        text = "".join(traceback.format_exception(raised))
    held = repr([vars(link) for link in (fault, fault.__cause__)]) + repr(
        vars(getattr(error, "request", fault))
    )
    for form in (SECRET, quote(SECRET, safe=""), base64.b64encode(SECRET.encode()).decode(), "another-key"):
        assert form.lower() not in text.lower()
        assert form.lower() not in held.lower()


def test_explained_once():
    fault = explain_fault(ConnectionRefusedError(111, "Connection refused"), host=HOST)
    assert explain_fault(fault) is fault
    assert isinstance(fault, RemoteFault)
    assert fault.retry


def test_unknown_is_passed_on():
    fault = classify(KeyError("what"), host=HOST)
    assert (fault.kind, fault.retry) == ("unknown", False)
    assert "KeyError: 'what'" in fault.text


def test_a_timeout_of_the_client_keeps_its_words():
    fault = classify(TimeoutError("job 7 did not finish within 3 s"), host=HOST)
    assert (fault.kind, fault.retry) == ("timeout", False)
    assert "job 7 did not finish" in fault.text
