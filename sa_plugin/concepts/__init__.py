"""Concept vectors: the kinds, what they are fitted from, and the bank that holds them."""

from typing import TYPE_CHECKING

from sa_plugin._face import face_room
from sa_plugin._lazy import lazily
from sa_plugin.concepts.bank import ConceptBank, Origin, VectorSet
from sa_plugin.concepts.collect import SortedCorpusWarning, collect, collect_blocks
from sa_plugin.concepts.fit import fit
from sa_plugin.concepts.kinds import KINDS, kind_of, lda, prototype
from sa_plugin.concepts.kmeans import kmeans, kmeans_separator
from sa_plugin.concepts.nulls import (
    StoredRefits,
    StreamedRefits,
    exchangeable,
    isotropic,
    null_vectors,
    permutations,
    permute_labels,
    relabelled,
    unit,
)
from sa_plugin.concepts.separator import LAM, ROUNDING, NotConvergedWarning, separator, separator_adam
from sa_plugin.concepts.train_statistics import LayerStatistics, RowLimits, Rows, draw_rows, row_blocks

if TYPE_CHECKING:
    from sa_plugin.concepts.artefact import OldArtefactWarning
    from sa_plugin.concepts.canary import TOLERANCE, drift_between
    from sa_plugin.concepts.canary_scores import CanaryWarning, DriftError, canary_samples, make_canary
    from sa_plugin.concepts.exports import (
        NeuronpediaVector,
        neuronpedia_vector,
        push_vector,
        write_control_vector,
    )
    from sa_plugin.concepts.refits import LeftOut, leave_out
    from sa_plugin.concepts.sae import LatentSet, hash_of
    from sa_plugin.concepts.sae_units import Activity, Pruning, pruning_of, sae_bank
    from sa_plugin.concepts.saved import load_bank, push_bank, save_bank
else:
    __getattr__ = lazily(
        __name__,
        {
            "artefact": ("OldArtefactWarning",),
            "canary": ("TOLERANCE", "drift_between"),
            "canary_scores": ("CanaryWarning", "DriftError", "canary_samples", "make_canary"),
            "exports": ("NeuronpediaVector", "neuronpedia_vector", "push_vector", "write_control_vector"),
            "refits": ("LeftOut", "leave_out"),
            "saved": ("load_bank", "push_bank", "save_bank"),
            "sae": ("LatentSet", "hash_of"),
            "sae_units": ("Activity", "Pruning", "pruning_of", "sae_bank"),
        },
    )


__all__ = [
    "KINDS",
    "LAM",
    "ROUNDING",
    "TOLERANCE",
    "Activity",
    "CanaryWarning",
    "ConceptBank",
    "DriftError",
    "LatentSet",
    "LayerStatistics",
    "LeftOut",
    "NeuronpediaVector",
    "NotConvergedWarning",
    "OldArtefactWarning",
    "Origin",
    "Pruning",
    "RowLimits",
    "Rows",
    "SortedCorpusWarning",
    "StoredRefits",
    "StreamedRefits",
    "VectorSet",
    "canary_samples",
    "collect",
    "collect_blocks",
    "draw_rows",
    "drift_between",
    "exchangeable",
    "fit",
    "hash_of",
    "isotropic",
    "kind_of",
    "kmeans",
    "kmeans_separator",
    "lda",
    "leave_out",
    "load_bank",
    "make_canary",
    "neuronpedia_vector",
    "null_vectors",
    "permutations",
    "permute_labels",
    "prototype",
    "pruning_of",
    "push_bank",
    "push_vector",
    "relabelled",
    "row_blocks",
    "sae_bank",
    "save_bank",
    "separator",
    "separator_adam",
    "unit",
    "write_control_vector",
]

face_room(globals())
