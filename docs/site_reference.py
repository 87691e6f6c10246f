"""The reference pages, made from the packages: what is public there is on a page here.

The names of `sa_plugin` stand on the first page, in the order of the work. Every room, the modules
beside the rooms, and both adapters follow, module by module: first what a module says of itself
(formula, source, what its numbers do not show), then what the room exports of it.
"""

import importlib
import inspect
import pkgutil
from collections.abc import Iterable
from functools import cache

GROUPS = {
    "A model and data": ("attach", "Host", "load", "labelled_corpus", "ConceptData", "check"),
    "Concept vectors and scores": ("collect", "fit", "ConceptBank", "score", "ScoreTable"),
    "The tail, detection, localisation": ("calibrate", "Promise", "Detector", "Resampling"),
    "A model while it generates": ("watch", "steer", "steering_curves"),
    "A corpus of any size": ("scan",),
    "The whole method": ("study", "Plan"),
    "How the tail forms": ("trace", "check_theory"),
    "When the tail wins": ("advise",),
    "Heads": (
        "head_ledger",
        "tail_waterfall",
        "head_alignment",
        "rank_heads",
        "ablate_heads",
        "ablation_curve",
    ),
    "Explaining the tail": ("Objective", "objective", "register_objective", "attribute", "compare"),
}
# Modules of adapters that users import from; their other modules show what the adapter exports.
ADAPTERS = {
    "sa_transformer_lens": ("explain", "hooks", "host", "mllama", "prefix", "towers"),
    "sa_nnsight": ("host", "paths", "remote", "trace_ops", "trace_setup"),
    "sa_interp_engine": ("host",),
}


def rooms():
    """The packages of `sa_plugin`, and the adapters."""
    import sa_plugin

    found = [m.name for m in pkgutil.iter_modules(sa_plugin.__path__, "sa_plugin.") if m.ispkg]
    return found + list(ADAPTERS)


def modules(package):
    """The public modules of a package that are no rooms, in order."""
    found = importlib.import_module(package)
    names = []
    for module in pkgutil.iter_modules(found.__path__, f"{package}."):
        private = module.name.rpartition(".")[2].startswith("_")
        if not private and not module.ispkg:
            names.append(module.name)
    return names


def public_homes():
    """Where each name of `sa_plugin` is defined: (module, name) -> the name in `sa_plugin`."""
    import sa_plugin

    found = {name: getattr(sa_plugin, name) for name in sa_plugin.__all__}
    return {(obj.__module__, obj.__name__): name for name, obj in found.items()}


def pages():
    """Every page of the reference, by name."""
    listed = {"index": first_page(), "modules": room_page("sa_plugin")}
    return listed | {name.removeprefix("sa_plugin."): room_page(name) for name in rooms()}


def first_page():
    """The public names of `sa_plugin`, in the order of the work."""
    lines = ["# Reference", "", "The names of `sa_plugin`, made from the docstrings."]
    lines += ["Rooms and adapters, with the formulas, are on the pages below.", ""]
    shorts = ["modules", *(name.removeprefix("sa_plugin.") for name in rooms())]
    lines += ["```{toctree}", ":maxdepth: 1", "", *shorts, "```", ""]
    for title, names in GROUPS.items():
        lines += [f"## {title}", ""]
        for name in names:
            lines += directive(f"sa_plugin.{name}", kind_of("sa_plugin", name))
    return "\n".join(lines) + "\n"


def room_page(package):
    """A package's page: its own words, its constants, then module after module."""
    title = "Modules of `sa_plugin` beside the rooms" if package == "sa_plugin" else f"`{package}`"
    lines = [f"# {title}", ""]
    if package != "sa_plugin":
        lines += [*wrapped(f".. automodule:: {package}"), *own_names(package)]
    for name in modules(package):
        lines += [f"## `{name}`", ""]
        shown = exported(package, name)
        options = [f"   :members: {', '.join(shown)}"] if shown else []
        lines += wrapped(f".. automodule:: {name}", *options)
        homes = public_homes()
        taken = [f"{{py:obj}}`sa_plugin.{homes[key]}`" for key in homes if key[0] == name]
        lines += [f"On the first page: {', '.join(taken)}.", ""] if taken else []
    return "\n".join(lines) + "\n"


def exported(package, module):
    """The functions and classes of a module to show: what a room exports, or all of them."""
    found = importlib.import_module(module)
    own = [
        name
        for name, obj in vars(found).items()
        if not name.startswith("_")
        and (inspect.isclass(obj) or inspect.isfunction(obj))
        and obj.__module__ == module
        and (module, name) not in public_homes()
    ]
    if module.rpartition(".")[2] in ADAPTERS.get(package, ()) or package == "sa_plugin":
        return own
    return [name for name in own if (module, name) in faces()]


@cache
def faces():
    """Where the functions and classes are defined that rooms and adapters export."""
    packages = [importlib.import_module(name) for name in rooms()]
    found = [getattr(package, name) for package in packages for name in package.__all__]
    return {(obj.__module__, obj.__name__) for obj in found if callable(obj)}


def own_names(package):
    """What stands in the package itself: constants by their values, and functions."""
    found = importlib.import_module(package)
    lines, below = [], []
    for name in getattr(found, "__all__", ()):
        kind, obj = kind_of(package, name), getattr(found, name)
        if kind == "data":
            lines.append(f"- `{name}`: {values(obj)}")
        elif obj.__module__ == package:
            below += directive(f"{package}.{name}", kind)
    return [*lines, *([""] if lines else []), *below]


def values(constant):
    """A constant in a line: a mapping by its keys."""
    if isinstance(constant, str):
        return constant
    if isinstance(constant, Iterable):
        return ", ".join(f"`{value}`" for value in constant)
    return f"`{constant!r}`"


def kind_of(package, name):
    """The autodoc directive for a name."""
    obj = getattr(importlib.import_module(package), name)
    if inspect.isclass(obj):
        return "class"
    return "function" if inspect.isroutine(obj) else "data"


def directive(name, kind):
    """One object, members of a class included."""
    return wrapped(f".. auto{kind}:: {name}", *(["   :members:"] if kind == "class" else []))


def wrapped(*lines):
    """reStructuredText inside a MyST page."""
    return ["```{eval-rst}", *lines, "```", ""]


def write(folder):
    """Write the pages that changed, and remove those of modules that are gone."""
    folder.mkdir(exist_ok=True)
    made = {f"{name}.md": text for name, text in pages().items()}
    for old in folder.glob("*.md"):
        if old.name not in made:
            old.unlink()
    for name, text in made.items():
        file = folder / name
        if not file.exists() or file.read_text() != text:
            file.write_text(text)
