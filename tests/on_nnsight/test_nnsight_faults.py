"""What the client and the server of NDIF threw, word for word, and what it is explained as.

`recorded/ndif_faults.json` holds what was raised against a real server (nnsight 0.8.1, ndif 0.1.2):
class names and texts along the chain of causes. `written` below holds sentences copied from ndif's
source that were not provoked. tests/remote/test_faults.py provokes the main ones anew.
"""

from __future__ import annotations

import json
from pathlib import Path

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
