"""`make test-hosts`: each stack in an environment of its own, resolved by pip with our extras.

    python tests/hosts/run.py                        # every environment, then the tables
    python tests/hosts/run.py tl-3.9-saelens         # one
    python tests/hosts/run.py --page docs/compatibility.md

An environment is made once, in the cache folder (some 1.5 GB each), and made anew when what it is made
of changes. In each: pip resolves the extras beside the other packages and finds nothing broken; the
environment's tests; the laws of `check` and the record of `fidelity.py` on real models; one notebook in
the small setting. Run it with the project's own Python, after `make weights`.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
sys.path[:0] = [str(ROOT), str(HERE), str(HERE.parent)]

import fidelity  # noqa: E402
from environments import build, call, locked  # noqa: E402

MARKS = ("<!-- hosts: begin -->", "<!-- hosts: end -->")
# What the tests and notebooks themselves need, and what an editable install is built with; what comes as
# sources alone too, of which an older setuptools makes no wheel.
TOOLS = ("pytest", "pytest-xdist", "beartype", "accelerate", "gguf", "ipykernel", "nbclient", "nbformat")
BUILD = ("hatchling", "editables", "setuptools>=70.1")
SHOWN = (
    "transformer-lens",
    "nnsight",
    "sae-lens",
    "circuitkit",
    "circuit-tracer",
    "interp-engine",
    "transformers",
    "torch",
)


@dataclass(frozen=True)
class Environment:
    """What is installed together, and what has to hold there.

    Attributes:
        extras: Of this package.
        beside: Other requirements, resolved in one go with it.
        pinned: Packages held at the version of constraints.txt; the rest is pip's choice.
        records: Models on which each stack is recorded.
        tests: Files or folders for pytest.
        notebook: One to execute.
    """

    extras: str
    beside: tuple[str, ...]
    records: dict[str, tuple[str, ...]]
    tests: tuple[str, ...] = ()
    notebook: str | None = "01_superactivators"
    pinned: tuple[str, ...] = ("torch", "transformers", "numpy")


TEXTS = ("smollm2", "minilm")
ALL = (*TEXTS, "vit")
ENVIRONMENTS: dict[str, Environment] = {
    "tl-3.6": Environment(
        "transformer-lens,attribution,images",
        ("transformer-lens==3.6.0",),
        {"TransformerBridge": TEXTS},
        notebook="04_heads_and_theory",
    ),
    "tl-3.8-circuitkit": Environment(
        "transformer-lens,attribution,images",
        ("transformer-lens==3.8.0", "circuitkit==0.2.0"),
        {"TransformerBridge": ALL, "HookedTransformer": TEXTS},
        ("tests/on_hooked",),
        # The first calls `explain`, which wants 3.9.
        notebook="04_heads_and_theory",
    ),
    "tl-3.9-saelens": Environment(
        "transformer-lens,attribution,images",
        ("transformer-lens==3.9.0", "sae-lens==6.54.12"),
        {"TransformerBridge": ALL, "HookedTransformer": TEXTS},
        ("tests/on_hooked",),
    ),
    "tl-4.3": Environment(
        "transformer-lens,attribution,images", ("transformer-lens==4.3.0",), {"TransformerBridge": ALL}
    ),
    "nnsight": Environment("nnsight,images", (), {"nnsight": ALL}, notebook="03_nnsight_remote"),
    # circuit-tracer caps transformers at 4.57.3, which no TransformerLens from 3.5 on takes.
    "nnsight-circuit-tracer": Environment(
        "nnsight,images",
        ("circuit-tracer==0.5.0",),
        {"nnsight": TEXTS},
        notebook="03_nnsight_remote",
        pinned=("torch", "numpy"),
    ),
    "interp-engine": Environment(
        "interp-engine,transformer-lens,nnsight,images",
        ("interp-engine==1.14.2",),
        {"interp-engine": ("smollm2",)},
        ("tests/on_interp_engine",),
        notebook=None,
    ),
}


def folder(name: str) -> Path:
    """The virtual environment, in the cache folder."""
    return fidelity.default_folder().parent / "hosts" / name


def python_of(name: str) -> str:
    """The environment's Python; made first if it is not there or made of something else.

    Raises:
        RuntimeError: pip found no versions that go together, or failed.
    """
    environment = ENVIRONMENTS[name]
    # The tree too: the install is editable, and another tree's code would be tested.
    project = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    made_of = json.dumps([str(ROOT), asdict(environment), project])
    pinned = [f"{one}=={version}" for one, version in locked().items() if one in environment.pinned]
    ours = ("--no-build-isolation", "-e", f"{ROOT}[{environment.extras}]", *environment.beside, *TOOLS)
    return str(build(folder(name), made_of, pinned, BUILD, ours))


def run(name: str, models: Sequence[str] = fidelity.MODELS) -> dict[str, Any]:
    """Everything that has to hold in one environment; also written beside it as a file.

    Args:
        name: Of `ENVIRONMENTS`.
        models: Records are made of these alone.

    Raises:
        RuntimeError: Something does not hold; the command and its words are above it.
    """
    environment, begun = ENVIRONMENTS[name], time.monotonic()
    print(f"== {name}", flush=True)
    python = python_of(name)
    found: dict[str, Any] = {"name": name, "python": sys.version.split()[0], "tests": "", "notebook": ""}
    listed = json.loads(_call(python, "-m", "pip", "list", "--format", "json", read=True))
    versions = {one["name"].lower(): one["version"] for one in listed}
    found["versions"] = {one: versions[one] for one in SHOWN if one in versions}
    if environment.tests:
        said = _call(python, "-m", "pytest", "-q", "-p", "no:cacheprovider", *environment.tests, read=True)
        found["tests"] = said.strip().splitlines()[-1].partition(" in ")[0]
        if not re.match(r"\d+ passed", found["tests"]):
            raise RuntimeError(f"{name}: {environment.tests} ran no test: {found['tests']}")
    for stack, recorded in environment.records.items():
        if wanted := [model for model in recorded if model in models]:
            _call(python, str(HERE / "fidelity.py"), "record", stack, "--models", *wanted)
    if environment.notebook:
        path = ROOT / "docs" / "notebooks" / f"{environment.notebook}.ipynb"
        command = (str(Path(python).with_name("jupyter-execute")), "--timeout=900", str(path))
        _call(*command, variables={"SA_PLUGIN_SMALL": "1"})
        found["notebook"] = environment.notebook
    found["seconds"] = round(time.monotonic() - begun)
    _result(name).write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    return found


def table() -> str:
    """Every environment that held, as Markdown."""
    head = ("environment", "extras", "versions", "tests", "notebook", "pip")
    lines: list[Sequence[str]] = [head, ("---",) * len(head)]
    for name, environment in ENVIRONMENTS.items():
        path = _result(name)
        if not path.is_file():
            lines.append((name, environment.extras, "not run here", "", "", ""))
            continue
        found = json.loads(path.read_text(encoding="utf-8"))
        versions = ", ".join(f"{one} {version}" for one, version in found["versions"].items())
        lines.append((name, environment.extras, versions, found["tests"], found["notebook"], "resolves"))
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the environments asked for, one after the other; 1 if one of them fails."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("names", nargs="*", metavar="ENVIRONMENT", help=", ".join(ENVIRONMENTS))
    parser.add_argument("--models", nargs="+", choices=fidelity.MODELS, default=list(fidelity.MODELS))
    parser.add_argument("--page", type=Path, help="put the tables between the marks of this page")
    given = parser.parse_args(arguments)
    if unknown := [name for name in given.names if name not in ENVIRONMENTS]:
        parser.error(f"no environment {unknown[0]!r}: expected {', '.join(ENVIRONMENTS)}")
    failed = []
    for model in given.models:
        if not (fidelity.default_folder() / model / "bank").is_dir():
            fidelity.write_bank(model, fidelity.default_folder())
    for name in given.names or ENVIRONMENTS:
        try:
            run(name, given.models)
        except RuntimeError as error:
            print(f"{name}: {error}", file=sys.stderr, flush=True)
            failed.append(name)
    environments, (records, drifts) = table(), fidelity.table(fidelity.default_folder())
    print(f"{environments}\n\n{records}")
    if given.page:
        fidelity.into_page(given.page, environments, MARKS)
        fidelity.into_page(given.page, records)
    if failed:
        print(f"failed: {', '.join(failed)}", file=sys.stderr)
    return int(bool(failed) or drifts)


def _result(name: str) -> Path:
    # with_suffix would cut "tl-3.9" at its point.
    return folder(name).parent / f"{name}.json"


def _call(*command: str, read: bool = False, variables: dict[str, str] | None = None) -> str:
    return call(
        *command, read=read, variables={"MPLBACKEND": "Agg", "OMP_NUM_THREADS": "1"} | (variables or {})
    )


if __name__ == "__main__":
    raise SystemExit(main())
