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
| `answer` | what came back is not what was asked for: a count, shape, type, or NaN |

Some of it misleads. "Your request payload could not be read (ModuleNotFoundError ...). Re-sending
it usually resolves this" means that a module was not registered, and re-sending never helps. "Error
submitting request to model deployment" means that the model's process died.

API keys: the server quotes a malformed key in its answer, and a URL may hold a password. Both are
struck from every text here, in any case and as URLs, JSON and headers write them, and from the error
that was explained and all that hangs on it: causes, contexts, members of groups, notes, arguments and
attributes, texts and bytes, however deep. Where that is not enough, since an error makes its text as it
likes, the fault is raised from a stand-in that holds the struck text alone.
"""

from __future__ import annotations

import base64
import json
import os
import re
import sys
import traceback
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, NamedTuple
from urllib.parse import quote, quote_plus, unquote


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
# A shorter secret in base64 is a few letters that stand in many words.
SHORTEST = 8
_KEPT_IN = ("NDIF_API_KEY", "HF_TOKEN", "HUGGING_FACE_HUB_TOKEN")
_HEADER = r"(?:ndif-api-key|x-api-key|api[-_]?key|authorization)"
# Where errors of Python keep what they say, beside their own dictionary.
_SLOTS = ("args", "__notes__", "strerror", "filename", "filename2", "msg", "text", "object", "reason", "name")


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
        error: As it was raised. API keys are struck from it and from all that hangs on it.
        host: URL of the server, for the text; by default nnsight's configuration.

    Returns:
        The exception to raise, with its cause; `error` itself if it was explained before.

    Example:
        >>> explain_fault(ConnectionRefusedError(111, "Connection refused"), host="http://x:1").kind
        'unreachable'
    """
    if isinstance(error, RemoteFault):
        return error
    secrets = _secrets(host)
    fault = RemoteFault(classify(error, host=host))
    for link in _everything(error):
        _strike_error(link, secrets)
    text = "".join(traceback.format_exception(error))
    struck = strike(text, secrets)
    fault.__cause__ = error if struck == text else RuntimeError(f"this held an API key:\n{struck}")
    return fault


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
    """Take API keys and passwords out of a text, in whatever case and as URLs and JSON write them.

    Args:
        text: Any.
        secrets: What else to strike; by default the keys of nnsight's configuration and of the
            environment.

    Example:
        >>> strike("http://me:word@ndif.example/request")
        'http://<struck>@ndif.example/request'
    """
    forms = {form for secret in (_secrets() if secrets is None else secrets) for form in _forms(secret)}
    for form in sorted(forms, key=len, reverse=True):
        text = re.sub(re.escape(form), STRUCK, text, flags=re.IGNORECASE)
    text = re.sub(r"(?<=://)[^/@\s]+(?=@)", STRUCK, text)
    text = re.sub(rf"(?i)({_HEADER}['\"]?\s*[:=,]\s*b?)(['\"]?)[^'\"\s,)}}]+\2", rf"\1{STRUCK}", text)
    return re.sub(r"(API key format: )'[^']*'", rf"\1{STRUCK}", text)


def _forms(secret: str) -> set[str]:
    """A secret as it is, and as URLs, JSON, `repr` and headers of authorisation write it."""
    written = {
        secret,
        quote(secret, safe=""),
        quote_plus(secret),
        json.dumps(secret)[1:-1],
        repr(secret)[1:-1],
    }
    if len(secret) >= SHORTEST:
        written.add(base64.b64encode(secret.encode("utf-8", "surrogatepass")).decode().rstrip("="))
    return written


def _struck(value: Any, secrets: list[str], depth: int = 8) -> Any:
    """A value without secrets, of the same types; the value itself where it holds none."""
    if isinstance(value, str):
        found: Any = strike(value, secrets)
    elif isinstance(value, bytes | bytearray):
        # Latin-1 gives every byte a letter and takes it back.
        found = type(value)(strike(value.decode("latin-1"), _as_bytes(secrets)).encode("latin-1"))
    elif depth and isinstance(value, dict):
        found = {
            _struck(key, secrets, depth - 1): STRUCK
            if _is_key_name(key)
            else _struck(one, secrets, depth - 1)
            for key, one in value.items()
        }
    elif depth and type(value) in (list, tuple, set, frozenset):
        found = type(value)(_struck(one, secrets, depth - 1) for one in value)
    else:
        return value
    return value if found == value else found


def _as_bytes(secrets: list[str]) -> list[str]:
    return [secret.encode("utf-8", "surrogatepass").decode("latin-1") for secret in secrets]


def _is_key_name(name: object) -> bool:
    """Whether what stands under a name is a key, be it known or not."""
    text = name.decode("latin-1") if isinstance(name, bytes) else name
    return isinstance(text, str) and re.fullmatch(_HEADER, text.strip(), re.IGNORECASE) is not None


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


def _everything(error: BaseException) -> list[BaseException]:
    """An error, its causes and contexts, the members of groups, and all of theirs."""
    found: list[BaseException] = []
    waiting: list[BaseException | None] = [error]
    while waiting:
        link = waiting.pop()
        if link is None or any(link is known for known in found):
            continue
        found.append(link)
        waiting += [link.__cause__, link.__context__]
        waiting += link.exceptions if isinstance(link, BaseExceptionGroup) else []
    return found


def _strike_error(error: BaseException, secrets: list[str]) -> None:
    """Strike arguments, notes and attributes where they stand."""
    held = {name: getattr(error, name, None) for name in (*_SLOTS, *getattr(error, "__dict__", {}))}
    for name, value in held.items():
        # Some of these cannot be set; what then still shows a key is caught by `explain_fault`.
        with suppress(Exception):
            struck = _struck(value, secrets)
            if struck is not value:
                setattr(error, name, struck)
        headers: Any = getattr(value, "headers", None)
        with suppress(Exception):
            for key, one in list(headers.items() if headers is not None else ()):
                struck = STRUCK if _is_key_name(key) else _struck(one, secrets)
                if struck is not one:
                    headers[key] = struck


def _secrets(host: str | None = None) -> list[str]:
    found = [*map(os.environ.get, _KEPT_IN), _configured("APIKEY")]
    for url in (host, _configured("HOST")):
        for login in re.findall(r"://([^/@\s]+)@", url or ""):
            found += [login, unquote(login.partition(":")[2])]
    return [secret for secret in found if secret and secret.strip()]


def _configured(name: str) -> str | None:
    """A setting of nnsight, if it is loaded: nothing is imported to read it."""
    config = getattr(sys.modules.get("nnsight"), "CONFIG", None)
    value = getattr(getattr(config, "API", None), name, None)
    return value if isinstance(value, str) else None
