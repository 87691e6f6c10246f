"""What an ablation does to the model's own output, beside what it does to concepts.

| metric | is, as a mean over kept tokens | unablated |
|---|---|---|
| output_kl | KL(p_clean || p_ablated) in nats, p = softmax of the logits `output` gives | 0 |
| output_cosine | cosine of the last residual stream, clean and ablated | 1 |

The first where the user hands out logits (`sa_transformer_lens.ablate.logits`), the second on any
host. On at most `OUTPUT_SAMPLES` samples of the measured split, since the passes go through the
whole model; intervals resample their documents.

What they do not show: a small change of the output does not make the ablation harmless, nor a large
one wrong: heads of a concept may serve much else. The cosine is dominated by the few dimensions
that are large in every token, and is read before the last norm.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from sa_plugin._names import require_known
from sa_plugin.collect import Layout, lay_out, rows_kept_in
from sa_plugin.data import Sample
from sa_plugin.editing import Edit, EditableHost, Output
from sa_plugin.host import Batch, Host, Site
from sa_plugin.statistics import Resamples
from sa_plugin.statistics.confusion import ratio
from sa_plugin.tokens import TokenTable

KL, COSINE = "output_kl", "output_cosine"
HIDDEN = "hidden"
OUTPUT_SAMPLES = 16
BATCH_TOKENS = 512
CACHE_BYTES = 1 << 28


@dataclass(frozen=True, eq=False)
class OutputProbe:
    """The unablated output of some samples, to hold ablated ones against.

    Attributes:
        output: Gives logits; None reads the last residual stream.
        layout: Of the samples.
        keep: Rows that count.
        clean: Unablated output of kept tokens, batch by batch; empty where it is too large to keep
            and is made anew each time.
        resamples: Draws over the documents of the whole split.
    """

    output: Output | None
    layout: Layout
    keep: Bool[np.ndarray, " row"]
    clean: tuple[Tensor, ...]
    resamples: Resamples

    @property
    def metric(self) -> str:
        """Name of the metric."""
        return COSINE if self.output is None else KL

    @property
    def before(self) -> Float[np.ndarray, " column"]:
        """The metric without an ablation."""
        return np.full(self.resamples.draws + 1, 1.0 if self.output is None else 0.0)


def output_probe(
    host: Host,
    samples: Sequence[Sample],
    tokens: TokenTable,
    output: Output | str,
    resamples: Resamples,
) -> OutputProbe:
    """Run the first samples of a split through the whole model once.

    Args:
        host: The model.
        samples: Of the measured split, in order.
        tokens: Rows of the unablated run.
        output: Gives logits, or "hidden".
        resamples: Draws over the documents of all samples of the split.

    Raises:
        ValueError: `output` is another word.
    """
    if isinstance(output, str):
        require_known("output", output, (HIDDEN,))
    chosen = tuple(samples[:OUTPUT_SAMPLES])
    layout = lay_out(host, chosen, (), batch_tokens=BATCH_TOKENS)
    given = None if isinstance(output, str) else output
    probe = OutputProbe(given, layout, rows_kept_in(tokens, layout, chosen), (), resamples)
    clean: list[Tensor] = []
    size = 0
    for batch in layout.batches:
        clean.append(_output(host, batch, probe))
        size += clean[-1].nbytes
        if size > CACHE_BYTES:
            return probe
    return replace(probe, clean=tuple(clean))


def output_change(
    host: EditableHost, probe: OutputProbe, edits: Mapping[Site, Edit]
) -> Float[np.ndarray, " column"]:
    """The output metric of one ablation on the split's first samples and on every resample.

    Costs one pass through the whole model for each of the samples, two where the unablated output
    is too large to keep.
    """
    n = len(probe.layout.bounds) - 1
    sums, counts = np.zeros(n), np.zeros(n)
    for k, batch in enumerate(probe.layout.batches):
        clean = probe.clean[k] if probe.clean else _output(host, batch, probe)
        with host.edited(edits):
            moved = _output(host, batch, probe)
        values = _cosine(clean, moved) if probe.output is None else kl_divergence(clean, moved)
        rows = torch.nonzero(probe.layout.mask(batch, probe.keep))[:, 0]
        of = batch.rows.numpy()[rows.numpy()]
        np.add.at(sums, of, values.double().cpu().numpy())
        np.add.at(counts, of, 1.0)
    draws = probe.resamples.with_data().of(np.arange(n))
    weights = draws.sample_weights.astype(np.float64)
    return ratio(weights @ sums, weights @ counts, empty=np.nan)


def _output(host: Host, batch: Batch, probe: OutputProbe) -> Float[Tensor, "token width"]:
    mask = probe.layout.mask(batch, probe.keep)
    if probe.output is None:
        site = Site(host.info.n_layers - 1, "resid_post")
        return host.read(batch, [site], lambda r: {"h": r[site].float()})["h"][mask]
    out = probe.output(host, batch)
    return out[mask.to(out.device)].float()


def kl_divergence(
    clean: Float[Tensor, "token width"], moved: Float[Tensor, "token width"]
) -> Float[Tensor, " token"]:
    """KL(softmax(clean) || softmax(moved)) in nats."""
    p, q = clean.log_softmax(-1), moved.log_softmax(-1)
    return (p.exp() * (p - q)).sum(-1)


def _cosine(clean: Tensor, moved: Tensor) -> Tensor:
    return torch.nn.functional.cosine_similarity(clean, moved, dim=-1)
