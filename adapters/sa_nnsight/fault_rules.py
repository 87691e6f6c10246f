"""Patterns of what the client and the server of NDIF throw, with what each means.

Kinds: "unreachable" (nobody listens), "address" (the URL is wrong), "unavailable" (the server is
there and cannot work now), "cut_off" (it went away in the middle), "key", "not_deployed",
"model_name" (the model has no name that a server knows), "versions", "registration", "payload",
"crashed" (the model's process died), "timeout", "evicted", "cancelled", "size", "memory",
"weights", "order", "block" (the code that was sent failed).

The first rule that matches counts. `{host}` is the server's URL; other fields are groups of the
pattern.
"""

from __future__ import annotations

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
        "{host} took the model away while the request ran, to make room for another. "
        "Send it again.",
    ),
    Rule(
        "cancelled", False, r"cancelled by operator", "an operator of {host} cancelled the request."
    ),
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
        "read there: sa_nnsight.capabilities.recover_projection gets those of a linear map.",
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
