"""`make test-remote`: a real NDIF server, the tests against it in both modes, and nothing left.

    python tests/remote/run.py                  # trusted, then sandboxed
    python tests/remote/run.py --mode trusted -- -k faults
    python tests/remote/run.py --mode trusted --bench        # bench_wire.py instead of the tests

Builds the server's environment when it is missing (about 3 GB to download, 5.5 GB in
`~/.cache/sa_plugin/ndif`), and says what it needs otherwise: Linux, Python 3.12, redis-server,
SmolLM2's weights. Run it with the project's own Python. Takes about 5 GB of memory.
"""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
sys.path[:0] = [str(HERE), str(HERE.parent), str(ROOT), str(ROOT / "adapters")]

import environment  # noqa: E402
import models  # noqa: E402
import server  # noqa: E402


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--mode", choices=["trusted", "sandboxed"], help="by default both")
    parser.add_argument("--bench", action="store_true", help="run bench_wire.py instead of the tests")
    parser.add_argument("arguments", nargs="*", help="for pytest, or for the benchmark, after --")
    given = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    # A shell ignores Ctrl-C for what it runs in the background.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    try:
        folders = [models.smollm2(), *map(models.tiny, models.TINY)]
        environment.build()
        modes = [given.mode] if given.mode else ["trusted", "sandboxed"]
        codes = [_round(mode, folders, given.arguments, given.bench) for mode in modes]
    except (RuntimeError, FileNotFoundError) as error:
        print(error, file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    return max(codes)


def _round(mode: str, folders: list[Path], arguments: list[str], bench: bool) -> int:
    state = server.default_state()
    try:
        print(f"{mode} server: starting ({state})", flush=True)
        server.up(mode, state)
        for folder in folders:
            server.deploy(folder, state)
            print(f"{mode} server: deployed {folder.name}", flush=True)
        return _run(mode, state, arguments, bench)
    finally:
        # A second Ctrl-C must not leave processes behind.
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        print(f"{mode} server: stopped {server.down(state)} processes", flush=True)
        signal.signal(signal.SIGINT, signal.default_int_handler)


def _run(mode: str, state: Path, arguments: list[str], bench: bool) -> int:
    given = os.environ.get("PYTHONPATH", "")
    path = os.pathsep.join([*map(str, (ROOT, ROOT / "adapters", HERE.parent)), given])
    variables = {"SA_NDIF": mode, "SA_NDIF_STATE": str(state), "NDIF_HOST": server.HOST, "PYTHONPATH": path}
    tests = ["-m", "pytest", "-q", str(HERE), "--confcutdir", str(HERE)]
    command = [sys.executable, *([str(HERE / "bench_wire.py")] if bench else tests)]
    process = subprocess.Popen([*command, *arguments], env=os.environ | variables, cwd=ROOT)
    try:
        code = process.wait()
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()
    no_tests_collected = 5
    return 0 if code == no_tests_collected and arguments and not bench else code


if __name__ == "__main__":
    sys.exit(main())
