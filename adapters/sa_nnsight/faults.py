"""What goes wrong between a client and an NDIF server, said in the user's terms.

The client throws whatever its HTTP library, its websocket or its parser throws, and the server
answers with sentences written for its operators. Each is recognised by its class name and text, as
recorded from nnsight 0.8.1 and ndif 0.1.2, and becomes one `Fault`: what happened, what to do, and
whether sending the same request again can help. What is not recognised is passed on as it is.

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

from sa_nnsight.fault_rules import SERVER, TRANSPORT, Rule

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


def explain(error: BaseException, *, host: str | None = None) -> RemoteFault:
    """Say what an error of nnsight's remote client means.

    Args:
        error: As it was raised. API keys are struck from its arguments and from its causes'.
        host: URL of the server, for the text; by default nnsight's configuration.

    Returns:
        The exception to raise from `error`; `error` itself if it was explained before.

    Example:
        >>> explain(ConnectionRefusedError(111, "Connection refused"), host="http://x:1").kind
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
    text = re.sub(
        r"(?i)(ndif-api-key['\"]?\s*[:=,]\s*)(['\"]?)[^'\"\s,)}]+\2", rf"\1{STRUCK}", text
    )
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
