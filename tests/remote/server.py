"""A real NDIF server on this machine's CPU, for tests: up, deploy, down.

    python tests/remote/server.py up --mode trusted
    python tests/remote/server.py deploy FOLDER
    python tests/remote/server.py down

What it starts, on loopback: redis, moto in place of NDIF's object store, Ray's head, the controller
inside Ray, and the API with its dispatcher. Not stock NDIF: models load on the CPU in float32
(`server/cpu_actor.py`), Ray is told of a GPU that is not there, and there is no database of keys.
Linux only, no packages: the server's own are those of `environment.py`.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent)]

import environment  # noqa: E402
import processes  # noqa: E402

ACTORS = {"trusted": "cpu_actor.TrustedActor", "sandboxed": "cpu_actor.SandboxedActor"}
REDIS, STORE, API, GCS, CLIENT, DASHBOARD = 6390, 9010, 8001, 6385, 10001, 8265
# Ray takes 127.0.0.1 for "this machine" and then listens on its outward address.
NODE = "127.0.0.2"
HOST = f"http://127.0.0.1:{API}"
RAY = f"ray://{NODE}:{CLIENT}"
PATIENCE = 180.0


def default_state() -> Path:
    """Where logs and pids lie."""
    return environment.cache() / "state"


def up(mode: str, state: Path) -> None:
    """Start everything and wait until the API reaches Ray; on any failure stop it all again.

    Raises:
        RuntimeError: A port is taken, something died, or nothing answers in time.
    """
    down(state)
    _require_free_ports()
    shutil.rmtree(state, ignore_errors=True)
    state.mkdir(parents=True)
    _write(state, {"mode": mode, "processes": {}, "token": secrets.token_hex(32)})
    with _stopped_on_failure(state):
        _start(state, mode)
        _await_api(state)


def _start(state: Path, mode: str) -> None:
    binaries, variables = environment.ready(), _variables(state, mode)

    def daemon(name: str, *command: str, **more: str) -> None:
        pid = processes.start(command, state / f"{name}.log", variables | more)
        _record(state, name, pid)

    redis = shutil.which("redis-server") or "redis-server"
    daemon("redis", redis, "--port", str(REDIS), "--bind", "127.0.0.1", "--save", "")
    daemon("store", f"{binaries}/moto_server", "-H", "127.0.0.1", "-p", str(STORE))
    resources = {"head": 10, "cuda_memory_bytes": 8 * 10**9, "cpu_memory_bytes": 8 * 10**9}
    daemon(
        "ray",
        f"{binaries}/ray",
        "start",
        "--head",
        "--block",
        f"--node-ip-address={NODE}",
        f"--port={GCS}",
        "--num-cpus=8",
        "--num-gpus=1",
        f"--resources={json.dumps(resources)}",
        "--object-store-memory=200000000",
        "--include-dashboard=true",
        f"--dashboard-host={NODE}",
        f"--dashboard-port={DASHBOARD}",
        f"--ray-client-server-port={CLIENT}",
        f"--temp-dir={state / 'ray'}",
    )
    _await(state, "Ray", lambda: _listens(NODE, CLIENT))
    controller = "ndif.services.ray.deployments.controller.controller"
    _run(state, "controller", [f"{binaries}/python", "-m", controller], variables)
    _start_api(state)


def _start_api(state: Path) -> None:
    command = [
        f"{environment.ready()}/gunicorn",
        "--config",
        "python:ndif.services.api.gunicorn_conf",
        "--bind",
        f"127.0.0.1:{API}",
        "ndif.services.api.app:app",
    ]
    # nnsight's `save` on every object breaks uploads in the API's web framework.
    settings = {"NNSIGHT_CONFIG": str(HERE / "server/nnsight_api.yaml")}
    variables = _variables(state, _read(state)["mode"])
    _record(state, "api", processes.start(command, state / "api.log", variables | settings))


def deploy(folder: Path, state: Path, timeout: float | None = None) -> None:
    """Place a checkpoint folder on the server; it answers to the folder's path.

    Raises:
        RuntimeError: The server says no, or is not there.
    """
    binaries = environment.ready()
    command = [f"{binaries}/python", str(HERE / "server/deploy.py"), str(folder.resolve()), RAY]
    command += [] if timeout is None else [str(timeout)]
    _run(state, "deploy", command, _variables(state, _read(state).get("mode", "trusted")))


def down(state: Path) -> int:
    """Stop what `up` started, by pid; returns how many processes there were."""
    leaders = {pid: then for pid, then in _read(state).get("processes", {}).values()}
    count = processes.stop(leaders)
    (state / "processes.json").unlink(missing_ok=True)
    return count


def restart_api(state: Path) -> None:
    """Start the API anew after a test killed it; Ray and the models stay."""
    kill(state, "api")
    # Else the new API answers "connected" from what the killed dispatcher left, and then not.
    with socket.create_connection(("127.0.0.1", REDIS), timeout=10) as redis:
        redis.sendall(b"DEL ray:connected\r\n")
        redis.recv(64)
    _start_api(state)
    _await_api(state)


def restart_store(state: Path) -> None:
    """Start the object store anew after a test killed it, and what hangs because it was away."""
    command = (f"{environment.ready()}/moto_server", "-H", "127.0.0.1", "-p", str(STORE))
    variables = _variables(state, _read(state)["mode"])
    _record(state, "store", processes.start(command, state / "store.log", variables))
    _await(state, "the object store", lambda: _listens("127.0.0.1", STORE))
    # It forgot its bucket, which NDIF makes once.
    made = urllib.request.Request(f"http://127.0.0.1:{STORE}/ndif-results", method="PUT")
    urllib.request.urlopen(made, timeout=10).close()
    restart_api(state)


def kill(state: Path, name: str) -> None:
    """Kill one of "redis", "store", "ray", "api" at once, with what it started."""
    pid, then = _read(state)["processes"][name]
    processes.stop({pid: then}, grace=0)


def _variables(state: Path, mode: str) -> dict[str, str]:
    binaries = environment.folder() / "bin"
    return {
        **{k: v for k, v in os.environ.items() if not k.startswith(("NDIF_", "RAY_", "PYTHON"))},
        "PATH": f"{binaries}:{os.environ.get('PATH', '')}",
        "PYTHONPATH": str(HERE / "server"),
        "OMP_NUM_THREADS": "1",
        "HF_HUB_OFFLINE": "1",
        "RAY_ADDRESS": f"{NODE}:{GCS}",
        "RAY_USAGE_STATS_ENABLED": "0",
        # Ray's head listens on every address, whatever it is told.
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": str(_read(state).get("token", "")),
        "GRPC_ENABLE_FORK_SUPPORT": "0",
        "AWS_EC2_METADATA_DISABLED": "true",
        "NDIF_HOME": str(state / "home"),
        "NDIF_REDIS_URL": f"redis://127.0.0.1:{REDIS}",
        "NDIF_OBJECT_STORE_URL": f"http://127.0.0.1:{STORE}",
        "NDIF_API_PORT": str(API),
        "NDIF_API_URL": HOST,
        "NDIF_RAY_ADDRESS": RAY,
        "NDIF_RAY_HEAD_PORT": str(GCS),
        "NDIF_RAY_TEMP_DIR": str(state / "ray"),
        "NDIF_MODEL_IMPORT_PATH": ACTORS[mode],
        "NDIF_DEFAULT_DTYPE": "float32",
        "NDIF_DEFAULT_PADDING_BIAS": "0",
        "SA_NDIF_MODE": mode,
    }


def _run(state: Path, name: str, command: Sequence[str], variables: dict[str, str]) -> None:
    with (state / f"{name}.log").open("ab") as log:
        try:
            done = subprocess.run(
                command, stdout=log, stderr=log, env=variables, timeout=PATIENCE, check=False
            )
        except subprocess.TimeoutExpired:
            raise RuntimeError(f"{name} took over {PATIENCE:.0f} s. {_tail(state, name)}") from None
    if done.returncode:
        raise RuntimeError(f"{name} failed (exit {done.returncode}). {_tail(state, name)}")


def _record(state: Path, name: str, pid: int) -> None:
    found = _read(state)
    found["processes"][name] = [pid, processes.started(pid)]
    _write(state, found)


def _write(state: Path, found: dict[str, Any]) -> None:
    path = state / "processes.json"
    path.touch(mode=0o600)
    path.write_text(json.dumps(found))


def _read(state: Path) -> dict[str, Any]:
    try:
        return dict(json.loads((state / "processes.json").read_text()))
    except FileNotFoundError:
        return {}


def _await_api(state: Path) -> None:
    _await(state, "the API", _connected)


def _connected() -> bool:
    try:
        with urllib.request.urlopen(f"{HOST}/connected", timeout=5) as answer:
            return bool(answer.status == 200)
    except OSError:
        return False


def _await(state: Path, what: str, there: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE
    while not there():
        for name, (pid, _) in _read(state)["processes"].items():
            if not processes.alive(pid):
                raise RuntimeError(f"{name} ended while starting. {_tail(state, name)}")
        if time.monotonic() > deadline:
            raise RuntimeError(f"{what} did not answer in {PATIENCE:.0f} s; logs in {state}")
        time.sleep(0.5)


def _listens(address: str, port: int) -> bool:
    with contextlib.suppress(OSError), socket.create_connection((address, port), timeout=1):
        return True
    return False


def _require_free_ports() -> None:
    wanted = [("127.0.0.1", port) for port in (REDIS, STORE, API)]
    wanted += [(NODE, port) for port in (GCS, CLIENT, DASHBOARD)]
    if taken := [f"{address}:{port}" for address, port in wanted if _listens(address, port)]:
        raise RuntimeError(
            f"something listens on {', '.join(taken)} already: stop it, or another server of this "
            "script (server.py down --state ITS_FOLDER)"
        )


def _tail(state: Path, name: str) -> str:
    path = state / f"{name}.log"
    text = path.read_text(errors="replace")[-1500:] if path.exists() else ""
    return f"The end of {path}:\n{text}"


@contextlib.contextmanager
def _stopped_on_failure(state: Path) -> Iterator[None]:
    previous = signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    try:
        yield
    except BaseException:
        down(state)
        raise
    finally:
        signal.signal(signal.SIGTERM, previous)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("action", choices=["up", "deploy", "down"])
    parser.add_argument("folder", nargs="?", type=Path, help="checkpoint to deploy")
    parser.add_argument("--mode", choices=sorted(ACTORS), default="trusted")
    parser.add_argument("--state", type=Path, default=default_state())
    parser.add_argument("--timeout", type=float, help="seconds one request may run (deploy)")
    given = parser.parse_args(arguments)
    try:
        if given.action == "up":
            up(given.mode, given.state.resolve())
            print(f"NDIF_HOST={HOST}")
        elif given.action == "deploy":
            if given.folder is None:
                parser.error("deploy needs the folder of a checkpoint")
            deploy(given.folder, given.state.resolve(), given.timeout)
            print(f"deployed {given.folder.resolve()}")
        else:
            print(f"stopped {down(given.state.resolve())} processes")
    except RuntimeError as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
