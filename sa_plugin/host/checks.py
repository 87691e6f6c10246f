"""The laws every host must keep, measured on a model the project has never seen.

What a law compares, and how, is in `sa_plugin.host.laws`. A passed check says that the host reads
what it says it reads; it says nothing about concepts.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from torch import Tensor

from sa_plugin._face import face
from sa_plugin.data.images import Image
from sa_plugin.data.sample import Sample
from sa_plugin.host.folders import load_for_host
from sa_plugin.host.laws import Law, read_sites, relative_difference, tolerance
from sa_plugin.host.protocol import FINAL_NORM, Batch, Host, Site, attach
from sa_plugin.host.texts import TEXTS
from sa_plugin.show.result import Result, Sheet, exact

# Where differences of zero are drawn.
SMALLEST = 1e-12


@dataclass(frozen=True, repr=False)
class CheckReport(Result):
    """The laws measured on one model; prints one line a law.

    Attributes:
        model: Name and sizes.
        laws: As they were measured.
    """

    about = "A passed check says that what is read is what its name says; it says nothing about concepts."

    model: str
    laws: tuple[Law, ...]

    @property
    def passed(self) -> bool:
        """Whether every law holds."""
        return all(law.passed for law in self.laws)

    def headline(self) -> str:
        """How many laws, and which failed."""
        failed = [law.name for law in self.laws if not law.passed]
        verdict = f"FAILED: {', '.join(failed)}" if failed else "all passed"
        return f"{self.model}, {len(self.laws)} laws, {verdict}"

    def summary(self) -> str:
        """One line a law."""
        return "\n".join([repr(self), *map(str, self.laws)])

    def sheets(self) -> list[Sheet]:
        """One row a law."""
        rows = [
            (law.name, law.verdict, *(_power(x) for x in (law.difference, law.limit)), law.note)
            for law in self.laws
        ]
        return [Sheet(("law", "verdict", "difference", "limit", "note"), rows)]

    def rows(self) -> list[dict[str, Any]]:
        """The difference and the limit of each law."""
        return [
            exact(measure, np.nan if value is None else value, law=law.name)
            for law in self.laws
            for measure, value in (("difference", law.difference), ("limit", law.limit))
        ]

    def plot(self) -> Any:
        """Each law's difference, on a logarithmic axis, and the limit it has to stay under."""
        from sa_plugin.show import plots

        measured = [law for law in self.laws if law.difference is not None]
        figure, ax = plots.new_figure(8.0, 1.2 + 0.35 * len(measured))
        for k, law in enumerate(measured):
            # A difference of zero, or one without bounds, has no place on a logarithm.
            at = float(np.clip(law.difference or 0.0, SMALLEST, 1.0))
            colour, mark = (plots.IN_COLOUR, "o") if law.passed else (plots.TAIL_COLOUR, "X")
            ax.plot(at, k, mark, color=colour)
            ax.plot(max(law.limit, SMALLEST), k, "|", color=plots.TEXT_COLOUR, markersize=12)
        ax.set_xscale("log")
        plots.rows(ax, [law.name for law in measured])
        plots.words(ax, x="relative difference; stroke: its limit")
        figure.suptitle(self.headline(), fontsize=9, x=0.01, ha="left", parse_math=False)
        plots.note(figure, self.about)
        return figure


@runtime_checkable
class OwnSamples(Protocol):
    """A host that reads no texts, with samples to check it on."""

    def check_samples(self) -> list[Sample]:
        """Two or more samples of unlike size."""


@runtime_checkable
class OwnLaws(Protocol):
    """A host with laws of its own library."""

    def laws(self, samples: Sequence[Sample]) -> list[Law]:
        """Measure them."""


@face
def check(host_or_model: Any, texts: Sequence[str] | None = None, **options: Any) -> CheckReport:
    """Measure every law on a model.

    Costs about `10 + 2 * len(texts)` short forward passes.

    Args:
        host_or_model: A host, or a model `attach` accepts.
        texts: Two or more texts of unlike length; by default four short ones, or for a vision
            model four images of noise.
        **options: Of `attach`.

    Returns:
        The report; a model that cannot be attached fails its first law, with the reason.

    Raises:
        TypeError: No adapter accepts the model.
        ValueError: Fewer than two texts.
    """
    wanted = list(TEXTS if texts is None else texts)
    if len(wanted) < 2:
        raise ValueError(f"{len(wanted)} text given: batching needs two or more.")
    samples = [Sample(f"text {k}", text, str(k)) for k, text in enumerate(wanted)]
    name = type(host_or_model).__name__
    try:
        host = attach(host_or_model, **options)
        if texts is None and isinstance(host, OwnSamples):
            samples = host.check_samples()
        return CheckReport(_title(host), (*_generic(host, samples), *_own(host, samples)))
    except (ValueError, RuntimeError) as error:
        return CheckReport(name, (Law("the model can be attached and read", np.inf, 0.0, str(error)),))


def check_folder(
    folder: str | Path,
    texts: Sequence[str] | None = None,
    *,
    host: str = "transformer_lens",
    tower: str | None = None,
) -> CheckReport:
    """Load a Hugging Face model folder, without network, and check it.

    Args:
        folder: What `save_pretrained` wrote.
        texts: See `check`.
        host: "transformer_lens", "nnsight" or "interp_engine".
        tower: "vision" or "text", for a folder of two towers.

    Returns:
        The report; a model that cannot be attached fails its first law, with the reason.

    Raises:
        FileNotFoundError: The folder holds no model.
        ImportError: The host's library is not installed.
        ValueError: Unknown host, or a missing or needless tower.
    """
    model, options = load_for_host(folder, host, tower=tower)
    return check(model, texts, **options)


def _power(value: float | None) -> str:
    return "-" if value is None else f"{value:.1e}"


def _title(host: Host) -> str:
    info = host.info
    return f"{info.model}: {info.architecture}, {info.block}, {info.dtype}, {info.host}"


def _own(host: Host, samples: Sequence[Sample]) -> list[Law]:
    return host.laws(samples) if isinstance(host, OwnLaws) else []


def _generic(host: Host, samples: Sequence[Sample]) -> list[Law]:
    limit = tolerance(host.info.dtype)
    offsets = _boxes_tile if samples[0].image is not None else _offsets_cover
    return [
        offsets(host, samples),
        _batch_is_loop(host, samples, limit),
        _restored(host, samples[:1]),
        _parts_add_up(host, samples[:1], limit),
        _heads_write_attention(host, samples[:1], limit),
    ]


def _offsets_cover(host: Host, samples: Sequence[Sample]) -> Law:
    missed = total = 0
    for batch in host.batches(samples):
        for k, row in enumerate(batch.rows.tolist()):
            text = samples[row].text
            covered = np.zeros(len(text), dtype=bool)
            # Special tokens that the text holds stand for their characters, though they are no rows.
            for start, end in batch.offsets[k].tolist():
                covered[start:end] = True
            solid = np.array([not character.isspace() for character in text])
            missed, total = missed + int((solid & ~covered).sum()), total + int(solid.sum())
    return Law("token offsets cover every character but white space", missed / max(total, 1))


def _boxes_tile(host: Host, samples: Sequence[Sample]) -> Law:
    """What a processor cuts off is outside the rectangle that all boxes span."""
    missed = total = 0
    for batch in host.batches(samples):
        for k, row in enumerate(batch.rows.tolist()):
            boxes = batch.offsets[k][batch.valid[k]].double().numpy()
            height, width = _image(samples[row]).pixels.shape[:2]
            y, x = np.arange(height) + 0.5, np.arange(width) + 0.5
            (top, left), (bottom, right) = boxes[:, :2].min(0), boxes[:, 2:].max(0)
            covered = np.zeros((height, width), dtype=int)
            for box in boxes:
                rows, columns = (y >= box[0]) & (y < box[2]), (x >= box[1]) & (x < box[3])
                covered += np.outer(rows, columns)
            inside = np.outer((y >= top) & (y < bottom), (x >= left) & (x < right))
            missed, total = missed + int((covered[inside] != 1).sum()), total + int(inside.sum())
    return Law("every pixel shown is in one patch's box", missed / max(total, 1))


def _image(sample: Sample) -> Image:
    if sample.image is None:
        raise ValueError(f"sample {sample.id!r} has no image; the others do.")
    return sample.image


def _batch_is_loop(host: Host, samples: Sequence[Sample], limit: float) -> Law:
    sites = [Site(layer, "resid_post") for layer in range(host.info.n_layers)]
    together = _by_sample(host, host.batches(samples, batch_tokens=1_000_000), sites)
    worst = 0.0
    for row, sample in enumerate(samples):
        alone = _by_sample(host, host.batches([sample]), sites)[0]
        if alone.shape != together[row].shape:
            return Law("batch = loop", np.inf, limit, f"sample {row} has another number of tokens")
        worst = max(worst, relative_difference(together[row], alone))
    return Law("batch = loop, padding changes nothing (all layers)", worst, limit)


def _by_sample(host: Host, batches: Sequence[Batch], sites: Sequence[Site]) -> dict[int, Tensor]:
    """`[site, token, d_model]` of each sample, valid tokens only."""
    found = {}
    for batch in batches:
        read = read_sites(host, batch, sites)
        stacked = torch.stack([read[site] for site in sites])
        for k, row in enumerate(batch.rows.tolist()):
            found[row] = stacked[:, k, batch.valid[k]]
    return found


class _Interrupted(Exception):
    pass


def _restored(host: Host, samples: Sequence[Sample]) -> Law:
    name = "the model is the same after a failed read"
    batch = host.batches(samples)[0]
    site = Site(host.info.n_layers - 1, "resid_post")
    before = read_sites(host, batch, [site])[site]
    try:
        host.read(batch, [site], _interrupt)
    except _Interrupted:
        after = read_sites(host, batch, [site])[site]
        return Law(name, relative_difference(after, before))
    return Law(name, np.inf, 0.0, "an exception in reduce was swallowed")


def _interrupt(read: Any) -> dict[str, Tensor]:
    raise _Interrupted


def _parts_add_up(host: Host, samples: Sequence[Sample], limit: float) -> Law:
    name = "embedding + attention + MLPs = last residual"
    if host.info.block == "post_ln":
        return Law(name, None, note="a post_ln residual is renormalised in each block")
    if FINAL_NORM in host.info.processing:
        return Law(name, None, note="the last residual is read behind the final norm")
    if host.info.block == "staged":
        return Law(name, None, note="the residual is renormalised between two stacks of blocks")
    layers = range(host.info.n_layers)
    parts = [Site(0, "resid_pre")]
    parts += [Site(layer, point) for layer in layers for point in ("attn_out", "mlp_out")]
    last = Site(layers[-1], "resid_post")
    read = read_sites(host, host.batches(samples)[0], [*parts, last])
    return Law(name, relative_difference(read[last], *(read[site] for site in parts)), limit)


def _heads_write_attention(host: Host, samples: Sequence[Sample], limit: float) -> Law:
    name = "sum of heads' z @ W_O + b_O = attention output"
    if host.info.block == "post_norm":
        return Law(name, None, note="attn_out is read after the post-norm")
    layers = range(host.info.n_layers)
    sites = [Site(layer, point) for layer in layers for point in ("z", "attn_out")]
    read = read_sites(host, host.batches(samples)[0], sites)
    worst = 0.0
    for layer in layers:
        weight, bias = host.output_projection(layer)
        written = torch.einsum("bthe,hed->btd", read[Site(layer, "z")].float().cpu(), weight)
        written = written if bias is None else written + bias
        worst = max(worst, relative_difference(read[Site(layer, "attn_out")], written))
    return Law(name, worst, limit)
