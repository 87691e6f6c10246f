"""Laws of the distribution that need no build; `wheel_law.py` checks the wheel itself."""

import importlib.metadata
import re
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

ROOT = Path(__file__).resolve().parents[2]
PROJECT: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text())
EXTRAS: dict[str, list[str]] = PROJECT["project"]["optional-dependencies"]
HOSTS = ("transformer_lens", "nnsight", "interp_engine", "transformers")


def pins() -> dict[str, Version]:
    """Name to version, for every line of constraints.txt."""
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    named = [line.split("==") for line in lines if line and not line.startswith("#")]
    return {canonicalize_name(name): Version(version) for name, version in named}


def declared() -> list[tuple[str, Requirement]]:
    """Every requirement of the core and of each extra, with where it stands."""
    groups = {"dependencies": PROJECT["project"]["dependencies"], **EXTRAS}
    return [(group, Requirement(text)) for group, texts in groups.items() for text in texts]


def test_importing_the_core_imports_no_host() -> None:
    code = (
        "import sys, sa_plugin; "
        f"loaded = [name for name in {HOSTS} if name in sys.modules]; "
        "sys.exit(f'importing sa_plugin imported {loaded}' if loaded else 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("group", ["dependencies", *EXTRAS])
def test_every_declared_requirement_is_locked_within_its_range(group: str) -> None:
    locked = pins()
    wanted = [req for where, req in declared() if where == group and req.name != "sa_plugin"]
    assert wanted or group == "all"
    for requirement in wanted:
        pin = locked.get(canonicalize_name(requirement.name))
        assert pin is not None, f"{requirement.name} of {group} is not in constraints.txt"
        assert pin in requirement.specifier, f"{requirement} does not allow the pinned {pin}"


def test_every_requirement_has_a_lower_bound() -> None:
    for group, requirement in declared():
        if requirement.name != "sa_plugin":
            operators = {part.operator for part in requirement.specifier}
            assert ">=" in operators, f"{requirement} of {group}"


def test_what_the_requirements_pull_in_is_locked_too() -> None:
    locked = pins()
    todo = [(req.name, frozenset(req.extras)) for _, req in declared() if req.name != "sa_plugin"]
    seen = set(todo)
    while todo:
        name, extras = todo.pop()
        # Under Linux torch names each release of CUDA's parts itself; its build for CPUs brings none.
        if canonicalize_name(name).startswith(("cuda-", "nvidia-", "triton")):
            continue
        assert canonicalize_name(name) in locked, f"{name} is not in constraints.txt: make lock"
        for text in importlib.metadata.requires(name) or []:
            requirement = Requirement(text)
            asked = [{"extra": extra} for extra in extras or {""}]
            if requirement.marker and not any(map(requirement.marker.evaluate, asked)):
                continue
            found = (requirement.name, frozenset(requirement.extras))
            if found not in seen:
                seen.add(found)
                todo.append(found)
    assert len(seen) > len(declared())


def test_the_lock_is_valid_on_any_machine() -> None:
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    for line in lines:
        assert line.startswith("#") or re.fullmatch(r"[\w.-]+==[\w.]+", line), line
    named = [line for line in lines if not line.startswith("#")]
    assert len(named) == len(pins()), "a package is pinned twice"


def test_no_install_goes_unconstrained() -> None:
    for name in ("Makefile", ".ci/run", "tests/wheel_law.py"):
        for line in (ROOT / name).read_text().splitlines():
            if re.search(r"\bpip\W+install\b", line) and not line.lstrip().startswith("#"):
                assert re.search(r"\W-c\W", line), f"{name}: {line.strip()}"


def test_all_is_every_extra_for_users() -> None:
    (whole,) = (Requirement(text) for text in EXTRAS["all"])
    assert whole.extras == set(EXTRAS) - {"all", "dev", "docs"}


def test_entry_points_and_packages_name_the_same_adapters() -> None:
    wheel = PROJECT["tool"]["hatch"]["build"]["targets"]["wheel"]
    shipped = {Path(path).name for path in wheel["packages"]} - {"sa_plugin"}
    entry_points = PROJECT["project"]["entry-points"]["sa_plugin.adapters"]
    assert {target.split(":")[0] for target in entry_points.values()} == shipped
    assert {path.parent.name for path in ROOT.glob("adapters/*/__init__.py")} == shipped
