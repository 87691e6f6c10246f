"""A bank as tensors and a record, and back: what an artefact (`sa_plugin.concepts.artefact`) holds of it.

Loading onto another model, hook point or weight processing is refused with the reason, when the bank is
used there.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

from torch import Tensor

from sa_plugin.concepts.artefact import artefact_folder, naming, read, write
from sa_plugin.concepts.bank import ComponentMeans, ConceptBank, Origin, VectorSet
from sa_plugin.concepts.canary import Canary, canary_of, canary_parts
from sa_plugin.concepts.canary_scores import canary_or_none, require_canary
from sa_plugin.concepts.saved_schema import MEANS, SETS, check_bank
from sa_plugin.host.protocol import Host


def bank_parts(bank: ConceptBank, canary: Canary | None = None) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """A bank as tensors and a record, with the canaries' scores where there are any."""
    from sa_plugin.concepts.sae import LatentSet, saved_parts

    tensors: dict[str, Tensor] = {}
    for name in SETS:
        vectors: VectorSet | None = getattr(bank, name)
        if vectors is not None and not isinstance(vectors, LatentSet):
            for part in ("vectors", "mean", "scale"):
                tensors[f"{name}.{part}"] = getattr(vectors, part)
    if bank.component_means is not None:
        for name in MEANS:
            tensors[f"component_means.{name}"] = getattr(bank.component_means, name)
    record: dict[str, Any] = {
        "concepts": bank.concepts,
        "units": bank.units,
        "layers": bank.layers,
        "hook_point": bank.hook_point,
        "kind": bank.kind,
        "scoring": bank.token.scoring,
        "origin": asdict(bank.origin),
    }
    if isinstance(bank.token, LatentSet):
        found, record["saes"] = saved_parts(bank.token)
        tensors |= {f"sae.{name}": tensor for name, tensor in found.items()}
    of_canary, about = canary_parts(canary)
    return tensors | of_canary, record | about


def bank_of(tensors: Mapping[str, Tensor], record: Mapping[str, Any], sae: object = None) -> ConceptBank:
    """The bank of `bank_parts`.

    Args:
        tensors: As saved.
        record: As saved.
        sae: The SAE, or one a layer, of a bank of latents; its weights are not saved.

    Raises:
        DamagedFileError: A type, shape, range or name does not hold, a value is not finite.
        ValueError: The SAE is missing or another one.
    """
    from sa_plugin.concepts.sae import load_parts

    check_bank(tensors, record)

    def vectors(name: str) -> VectorSet | None:
        if f"{name}.vectors" not in tensors:
            return None
        stacked, mean, scale = (tensors[f"{name}.{part}"] for part in ("vectors", "mean", "scale"))
        return VectorSet(stacked, mean, scale, record["scoring"])

    token = vectors("token")
    if sae is not None and "saes" not in record:
        raise ValueError("sae is given, and no unit of the bank is a latent of one: leave it out.")
    if "saes" in record:
        found = {k.removeprefix("sae."): v for k, v in tensors.items() if k.startswith("sae.")}
        token = load_parts(found, record["saes"], sae, record["layers"])
    assert token is not None
    means = None
    if "component_means.z" in tensors:
        means = ComponentMeans(*(tensors[f"component_means.{name}"] for name in MEANS))
    origin = dict(record["origin"])
    origin["sink_layers"] = tuple(origin["sink_layers"])
    return ConceptBank(
        tuple(record["concepts"]),
        tuple(record["units"]),
        tuple(record["layers"]),
        record["hook_point"],
        record["kind"],
        token,
        vectors("permuted"),
        vectors("pooled"),
        means,
        Origin(**origin),
        vectors("cls"),
        canary_of(tensors, record),
    )


def save_bank(bank: ConceptBank, folder: str | Path, *, host: Host | None = None) -> Path:
    """Save a bank.

    Args:
        bank: The vectors.
        folder: A new folder, or one that holds an artefact to replace.
        host: The model they are for: scores of a few inputs of ours (`sa_plugin.concepts.canary`) are
            saved with them, at the cost of a forward pass each.

    Raises:
        FileExistsError: The folder holds something else.
        OSError: It cannot be written, or is being written; the text names it.
    """
    with artefact_folder(Path(folder)):
        tensors, record = bank_parts(bank, canary_or_none(bank, host))
        return write(Path(folder), tensors, {"what": "ConceptBank", "bank": record})


def push_bank(
    bank: ConceptBank,
    repo_id: str,
    *,
    host: Host | None = None,
    private: bool = True,
    branch: str | None = None,
    message: str = "",
) -> str:
    """Save a bank into a repository of the Hugging Face hub, with a card written from it.

    Args:
        bank: The vectors.
        repo_id: "user/name"; made if it is not there.
        host: As for `save_bank`.
        private: Of a new repository.
        branch: By default the main one.
        message: Of the commit.

    Returns:
        The commit, for `load_bank("user/name", revision=commit)`.

    Raises:
        ImportError: huggingface_hub is not installed.
        ValueError: `repo_id` is not "user/name".
    """
    from sa_plugin.concepts.hub import card_of, push

    load = (
        f"from sa_plugin.concepts import load_bank\n\nbank = load_bank({repo_id!r}, host=host, revision=...)"
    )
    parts = {"Vectors": bank}
    card = card_of(repo_id, f"A concept bank: {bank.headline()}", parts, bank.concepts, bank.origin, load)
    save = partial(save_bank, bank, host=host)
    return push(save, card, repo_id, private=private, branch=branch, message=message)


def load_bank(
    folder: str | Path,
    *,
    host: Host | None = None,
    sae: object = None,
    allow_drift: bool = False,
    revision: str | None = None,
) -> ConceptBank:
    """Load a bank; `score` and `calibrate` refuse it on another model.

    Args:
        folder: Where it lies; or "user/name" on the Hugging Face hub, if no folder here begins so.
        host: The model it will be used on: it has to give the scores that the bank was saved with.
        sae: The SAE, or one a layer, of a bank of latents; its weights are not saved.
        allow_drift: Take a model that gives other scores; every result then says so.
        revision: Commit, tag or branch on the hub; a commit alone does not move.

    Raises:
        FileNotFoundError: No artefact there.
        DamagedFileError: It is damaged.
        DriftError: The model gives the canaries other scores; the text names the likely cause.
        ValueError: Another kind of artefact, or the SAE is missing or another one.
    """
    from sa_plugin.concepts.hub import artefact_at

    place = artefact_at(folder, revision)
    tensors, record = read(place, "ConceptBank")
    with naming(place):
        bank = bank_of(tensors, record.get("bank", {}), sae)
    return proven(bank, host, allow_drift=allow_drift)


def proven(bank: ConceptBank, host: Host | None, *, allow_drift: bool) -> ConceptBank:
    """A bank once the canaries were scored again, with what drifted on record.

    Raises:
        DriftError: The model gives them other scores, and that is not allowed.
    """
    drift = "" if host is None else require_canary(bank, host, allow_drift=allow_drift)
    return replace(bank, origin=replace(bank.origin, drift=drift)) if drift else bank


def require_hook_point(bank: ConceptBank, hook_point: str | None) -> None:
    """Refuse a bank read at another hook point than the caller expects.

    Raises:
        ValueError: They differ.
    """
    if hook_point is not None and bank.hook_point != hook_point:
        raise ValueError(
            f"the artefact's vectors live at {bank.hook_point!r}, not {hook_point!r}: a vector of "
            "one hook point means nothing at another. Load it with its own hook point."
        )
