"""What goes wrong between a client and an NDIF server, said in the user's terms.

The client throws whatever its HTTP library, its websocket or its parser throws, and the server
answers with sentences written for its operators. Each is recognised by its class name and text, as
recorded from nnsight 0.8.1 and ndif 0.1.2, and becomes one `Fault`: what happened, what to do, and
whether sending the same request again can help. What is not recognised is passed on as it is. The
first rule that matches counts; in its text `{host}` is the server's URL, and other fields are groups
of the pattern.

| kind | what happened |
|---|---|
| `unreachable`, `address` | nobody listens; the URL is wrong |
| `unavailable`, `cut_off` | the server is there and cannot work now; it went away in the middle |
| `key`, `not_deployed`, `model_name` | the API key; the model is not up; it has no name a server knows |
| `versions`, `registration`, `payload` | the two sides differ; a module was not shipped; unreadable |
| `crashed`, `timeout`, `evicted`, `cancelled` | the model's process died; too slow; pushed out; stopped |
| `size`, `memory` | the request, or what it computes, is too large |
| `weights`, `order`, `block` | the code that was sent failed: kept weights, order of reads, anything |

Some of it misleads. "Your request payload could not be read (ModuleNotFoundError ...). Re-sending
it usually resolves this" means that a module was not registered, and re-sending never helps. "Error
submitting request to model deployment" means that the model's process died.

API keys: the server quotes a malformed key in its answer, and a URL may hold a password. Both are
struck from every text here, and from the error that was explained and what caused it, so that a
traceback shows neither.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple


class Rule(NamedTuple):
    """What to look for, and what to say."""

    kind: str
    retry: bool
    pattern: str
    text: str


_KEY = (
    "{host} does not accept the API key: set the environment variable NDIF_API_KEY, or "
    "nnsight.CONFIG.set_default_api_key(...), to a key of this server."
)
_REGISTER = (
    "the server has no module '{module}', which the request refers to. Ship it with the request: "
    "nnsight.register('{module}') before the call. A registered module must not import "
    "itself inside a function body, nor be imported inside the trace. (The server calls this an "
    "unreadable payload and suggests sending it again; that does not help.)"
)
_VERSIONS = (
    "Compare both sides: from nnsight import ndif; print(ndif.compare()), and install the server's "
    "versions of transformers, nnsight and torch here."
)

TRANSPORT: tuple[Rule, ...] = (
    Rule("timeout", False, r"\A(?:RemoteTimeout|TimeoutError): (?P<said>[^\n]+)", "{said}"),
    Rule(
        "address",
        False,
        r"Invalid host URL: '?(?P<given>[^';]*)'?; must start with",
        "the server's URL {given} has no scheme: write http://{given} or https://{given} "
        "(NDIF_HOST, or nnsight.CONFIG.API.HOST).",
    ),
    Rule(
        "address",
        False,
        r"Name or service not known|nodename nor servname|getaddrinfo failed"
        r"|No address associated with hostname",
        "{host} is no name this network knows: check NDIF_HOST, or nnsight.CONFIG.API.HOST.",
    ),
    Rule("key", False, r"API key format|Invalid API key|Missing or invalid API key", _KEY),
    Rule(
        "versions",
        False,
        r"(?P<said>Client (?:nnsight|python) version [^\n\"]*)",
        "{host} refuses this client's version: {said}",
    ),
    Rule(
        "size",
        False,
        r"'413 |Request Entity Too Large|Content Too Large|Payload Too Large",
        "{host} refuses a request of this size: send fewer samples a request (a smaller batch, or "
        "fewer traces a session).",
    ),
    Rule(
        "unavailable",
        True,
        r"compute backend is reconnecting|Auth backend unavailable|Server error '50[0234]"
        r"|Handshake status 50[0234]|Internal server error",
        "{host} answers but cannot work now: its compute backend, key service or proxy is away. "
        "Wait some minutes; nnsight.ndif_status() shows what is deployed.",
    ),
    Rule(
        "address",
        False,
        r"Handshake status \d|<!doctype html|<html|Client error '4\d\d|'404 Not Found",
        "something answers at {host}, but not as an NDIF server does: check host and port in "
        "NDIF_HOST, or nnsight.CONFIG.API.HOST.",
    ),
    Rule(
        "timeout",
        True,
        r"ReadTimeout|WriteTimeout|PoolTimeout",
        "{host} took the connection and did not answer in time: it is overloaded, or the request "
        "is large. Send fewer samples a request.",
    ),
    Rule(
        "cut_off",
        True,
        r"WebSocketConnectionClosed|Connection to remote host was lost|ConnectionReset|BrokenPipe"
        r"|RemoteProtocolError|ReadError|Invalid JSON: EOF while parsing a value at line 1 column 0"
        r"|Connection reset by peer|Server disconnected",
        "the connection to {host} was cut while the request was under way: the server went down, "
        "or a proxy closed it. The job may or may not have run. Send it again once {host}/ping "
        "answers.",
    ),
    Rule(
        "unreachable",
        True,
        r"Connection refused|ConnectTimeout|ConnectError|No route to host|Network is unreachable"
        r"|ConnectionRefused|timed out",
        "nobody answers at {host}: the server is down, or NDIF_HOST (nnsight.CONFIG.API.HOST) "
        "names the wrong host or port. Look at {host}/ping.",
    ),
    Rule(
        "model_name",
        False,
        r"HFValidationError|RepositoryNotFound|OfflineModeIsEnabled|LocalEntryNotFound"
        r"|Repo id must be",
        "nnsight asks the Hugging Face hub for the model's id before it sends anything, and got "
        "none: make the model from a repository id, TransformersModel('owner/name'), not from a "
        "loaded module, and let this machine reach the hub.",
    ),
    Rule(
        "payload",
        False,
        r"(?P<said>cannot pickle '[^']*'[^\n]*|Can't (?:pickle|get local)[^\n]*)",
        "the request holds an object that cannot travel ({said}): use tensors, numbers, plain "
        "functions and registered modules inside the trace; no locks, generators or open files.",
    ),
)

SERVER: tuple[Rule, ...] = (
    Rule(
        "registration",
        False,
        r"payload could not be read \((?:ModuleNotFoundError|ImportError): "
        r"No module named '(?P<module>\w+)",
        _REGISTER,
    ),
    Rule(
        "versions",
        False,
        r"payload could not be read "
        r"\((?P<said>(?:AttributeError|ImportError|TypeError)[^\n]*?)\)\. ",
        "the server cannot rebuild an object of the request ({said}): its packages differ from "
        f"this machine's. {_VERSIONS}",
    ),
    Rule(
        "payload",
        True,
        r"payload could not be read \((?P<said>[^\n]*?)\)\. It may be",
        "the server could not read the request ({said}): it was cut off on its way, or packed by "
        f"another version. Send it again; if it fails again: {_VERSIONS}",
    ),
    Rule(
        "versions",
        False,
        r"has no module at '(?:Module:)?(?P<module>[^']*)'",
        "the server's model has no module {module}: it is another checkpoint under this name, or "
        f"another version of transformers builds it otherwise. {_VERSIONS}",
    ),
    Rule(
        "not_deployed",
        False,
        r"Could not deploy this model\.(?P<said>.*)\Z",
        "the model is not deployed on {host}, and the server did not deploy it now: {said}\n"
        "See nnsight.ndif_status() for what runs there, or ask its operators to deploy this model.",
    ),
    Rule(
        "crashed",
        True,
        r"Error submitting request to model deployment",
        "the model's process on {host} died or could not take the request; the server starts it "
        "anew. If the same request does it again, the request kills it: too much memory (send "
        "fewer samples a request), or a function without source from another version of Python.",
    ),
    Rule(
        "timeout",
        False,
        r"exceeded the execution timeout of (?P<limit>[\d.]+)s",
        "the request ran longer than the {limit} s that {host} allows: send fewer samples a "
        "request, or fewer layers.",
    ),
    Rule(
        "evicted",
        True,
        r"Replica was evicted|cancelled or preempted",
        "{host} took the model away while the request ran, to make room for another. Send it again.",
    ),
    Rule("cancelled", False, r"cancelled by operator", "an operator of {host} cancelled the request."),
    Rule(
        "size",
        True,
        r"^(?P<said>(?:botocore|urllib3|boto3)[\w.]*: [^\n]*|[^\n]*EntityTooLarge[^\n]*)\s*\Z",
        "the result could not be stored on the server ({said}). Results over a few MiB, and those "
        "of requests that are not waited for, go through its object store, which is away or "
        "refuses the size: bring back less (reduce in the trace), or fewer samples a request.",
    ),
    Rule(
        "memory",
        False,
        r"^(?P<said>[^\n]*(?:can't allocate memory|out of memory|MemoryError)[^\n]*)\s*\Z",
        "the server ran out of memory on this request ({said}): send shorter samples, fewer a "
        "request, or fewer layers.",
    ),
    Rule(
        "weights",
        False,
        r"^(?P<said>[^\n]*Cannot copy out of meta tensor[^\n]*)\s*\Z",
        "the server runs requests in a sandbox that holds no weights, so module weights cannot be "
        "read there: sa_nnsight.remote.recover_projection gets those of a linear map.",
    ),
    Rule(
        "order",
        False,
        r"^(?P<said>[\w.]*OutOfOrderError[^\n]*)\s*\Z",
        "a module was read before one that runs earlier, or is not run at all by this input, or a "
        "gradient was asked for in a sandbox ({said}).",
    ),
    Rule(
        "registration",
        False,
        r"^ModuleNotFoundError: No module named '(?P<module>\w+)[^\n]*\s*\Z",
        "the code that was sent imports {module} while it runs, and the server has no such "
        "package: import it at the top of a module and ship that with nnsight.register, or do "
        "without it on the server.",
    ),
    Rule(
        "block",
        False,
        r"\ATraceback.*^(?P<said>\S[^\n]*)\s*\Z",
        "the code that was sent failed on the server: {said}",
    ),
)


STRUCK = "<struck>"
SHOWN = 600


@dataclass(frozen=True)
class Fault:
    """What went wrong.

    Attributes:
        kind: One of `fault_rules`' kinds, or "unknown".
        text: What happened, what was expected, what to do.
        retry: Whether the same request may succeed when it is sent again.
    """

    kind: str
    text: str
    retry: bool


class RemoteFault(RuntimeError):
    """A request to an NDIF server failed.

    Attributes:
        kind, retry: Those of the fault.
    """

    def __init__(self, fault: Fault) -> None:
        super().__init__(fault.text)
        self.kind = fault.kind
        self.retry = fault.retry


def explain_fault(error: BaseException, *, host: str | None = None) -> RemoteFault:
    """Say what an error of nnsight's remote client means.

    Args:
        error: As it was raised. API keys are struck from its arguments and from its causes'.
        host: URL of the server, for the text; by default nnsight's configuration.

    Returns:
        The exception to raise from `error`; `error` itself if it was explained before.

    Example:
        >>> explain_fault(ConnectionRefusedError(111, "Connection refused"), host="http://x:1").kind
        'unreachable'
    """
    if isinstance(error, RemoteFault):
        return error
    secrets = _secrets(host)
    for link in _chain(error):
        _strike_arguments(link, secrets)
    return RemoteFault(classify(error, host=host))


def classify(error: BaseException, *, host: str | None = None) -> Fault:
    """`explain` without an exception to raise; leaves `error` as it is.

    Args:
        error: As it was raised.
        host: URL of the server, for the text.

    Example:
        >>> classify(RuntimeError("no")).kind
        'unknown'
    """
    secrets = _secrets(host)
    place = strike(host or _configured("HOST") or "the NDIF server", secrets)
    told = _told_by_server(error)
    if told is not None:
        found = _first(SERVER, told, place)
    else:
        lines = (f"{type(link).__name__}: {link}" for link in _chain(error))
        found = _first(TRANSPORT, "\n".join(lines), place)
    if found is None:
        said = told if told is not None else f"{type(error).__name__}: {error}"
        found = Fault("unknown", f"{place} or the way to it failed: {said[-SHOWN:]}", False)
    return Fault(found.kind, strike(found.text, secrets), found.retry)


def strike(text: str, secrets: list[str] | None = None) -> str:
    """Take API keys and passwords out of a text.

    Args:
        text: Any.
        secrets: What else to strike; by default the keys of nnsight's configuration and of the
            environment.

    Example:
        >>> strike("http://me:word@ndif.example/request")
        'http://<struck>@ndif.example/request'
    """
    for secret in _secrets() if secrets is None else secrets:
        text = text.replace(secret, STRUCK)
    text = re.sub(r"(?<=://)[^/@\s]+(?=@)", STRUCK, text)
    text = re.sub(r"(?i)(ndif-api-key['\"]?\s*[:=,]\s*)(['\"]?)[^'\"\s,)}]+\2", rf"\1{STRUCK}", text)
    return re.sub(r"(API key format: )'[^']*'", rf"\1{STRUCK}", text)


def _first(rules: tuple[Rule, ...], text: str, place: str) -> Fault | None:
    for rule in rules:
        if found := re.search(rule.pattern, text, re.DOTALL | re.MULTILINE):
            named = {name: (value or "").strip() for name, value in found.groupdict().items()}
            return Fault(rule.kind, rule.text.format(host=place, **named), rule.retry)
    return None


def _told_by_server(error: BaseException) -> str | None:
    """The server's own words, which may hold any text; not what the way there threw."""
    for link in _chain(error):
        if type(link).__name__ == "RemoteError":
            text = str(link)
            return None if text.startswith("Failed to send request") else text
    return None


def _chain(error: BaseException) -> Iterator[BaseException]:
    seen: set[int] = set()
    link: BaseException | None = error
    while link is not None and id(link) not in seen:
        seen.add(id(link))
        yield link
        link = link.__cause__ or link.__context__


def _strike_arguments(error: BaseException, secrets: list[str]) -> None:
    struck = tuple(strike(a, secrets) if isinstance(a, str) else a for a in error.args)
    if struck != error.args:
        error.args = struck


def _secrets(host: str | None = None) -> list[str]:
    found = [os.environ.get("NDIF_API_KEY"), _configured("APIKEY")]
    for url in (host, _configured("HOST")):
        found += re.findall(r"://([^/@\s]+)@", url or "")
    return [secret for secret in found if secret]


def _configured(name: str) -> str | None:
    """A setting of nnsight, if it is loaded: nothing is imported to read it."""
    config = getattr(sys.modules.get("nnsight"), "CONFIG", None)
    value = getattr(getattr(config, "API", None), name, None)
    return value if isinstance(value, str) else None
