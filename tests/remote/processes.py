"""Processes that a server is made of: started as sessions, found and stopped by pid (Linux).

A daemon started here leads a session; what it starts belongs to that session or descends from it.
Both are read from /proc, so that nothing is ever stopped because of its name.
"""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

GRACE = 10.0


def start(command: Sequence[str], log: Path, environment: Mapping[str, str]) -> int:
    """Start a daemon that leads a session of its own; returns its pid."""
    with log.open("ab") as out:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=out,
            cwd=log.parent,
            env=dict(environment),
            start_new_session=True,
        )
    return process.pid


def alive(pid: int) -> bool:
    """Whether the process runs; a zombie does not."""
    found = _stat(pid)
    return found is not None and found[0] != "Z"


def started(pid: int) -> int | None:
    """Clock ticks from boot to the start of a process: with the pid, its identity."""
    found = _stat(pid)
    return None if found is None else found[3]


def stop(leaders: Mapping[int, int | None], grace: float = GRACE) -> int:
    """Stop sessions and all that descends from them: first politely, then not.

    Args:
        leaders: Pid of each leader, and when it started (`started`).
        grace: Seconds before they are killed.

    Returns:
        How many processes there were.
    """
    leaders = {pid: then for pid, then in leaders.items() if started(pid) in (None, then)}
    seen: set[int] = set()
    for leader in reversed(list(leaders)):
        seen |= _members([leader])
        _signal([leader], signal.SIGTERM if grace else signal.SIGKILL)
    deadline = time.monotonic() + grace
    while (left := _members(leaders) | {pid for pid in seen if alive(pid)}) != set():
        seen |= left
        late = time.monotonic() >= deadline
        _signal(left, signal.SIGKILL if late else signal.SIGTERM)
        time.sleep(0.5)
    return len(seen)


def _members(leaders: Iterable[int]) -> set[int]:
    """Living processes of these sessions, and their descendants."""
    roots = set(leaders)
    table = {pid: found for pid in _pids() if (found := _stat(pid)) is not None}
    members = {pid for pid, (_, _, session, _) in table.items() if session in roots}
    members |= roots & set(table)
    while grown := {p for p, (_, parent, _, _) in table.items() if parent in members} - members:
        members |= grown
    return {pid for pid in members if table[pid][0] != "Z"} - {os.getpid()}


def _signal(pids: Iterable[int], number: int) -> None:
    for pid in pids:
        try:
            os.kill(pid, number)
        except ProcessLookupError:
            continue


def _pids() -> list[int]:
    return [int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdigit()]


def _stat(pid: int) -> tuple[str, int, int, int] | None:
    """State, parent, session and start of a process."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return None
    # The name, in brackets, may hold spaces and brackets.
    fields = text.rpartition(")")[2].split()
    return fields[0], int(fields[1]), int(fields[3]), int(fields[19])
