"""What attribution asks of a host: the residual stream as a differentiable function of the input.

The input is the sum of token embeddings as the first block's predecessor sees it for texts
(`inputs_embeds`: token embeddings, before positions are added), and pixel values for images.
"""

from __future__ import annotations

from typing import Protocol, runtime_checkable

from jaxtyping import Float
from torch import Tensor

from sa_plugin.host import Batch, Host, Site


@runtime_checkable
class DifferentiableHost(Host, Protocol):
    """A host whose forward pass can start from embeddings or pixels and carry gradients."""

    def input_values(self, batch: Batch) -> Float[Tensor, "batch ..."]:
        """Token embeddings `[batch, token, d_embed]` or pixels `[batch, 3, height, width]`.

        Detached, on the model's device and in its number format.
        """

    def forward_from(
        self, values: Float[Tensor, "batch ..."], batch: Batch, site: Site
    ) -> Float[Tensor, "batch token d_model"]:
        """The activations at a site, with their graph where gradients are enabled.

        Blocks after the site are not computed. `values` may hold more rows than the batch has
        samples, a whole multiple: the batch's mask and positions are then repeated in turn
        (`[a, b, a, b, ...]`).

        Raises:
            ValueError: The number of rows is no multiple of the batch's, or the number of tokens
                differs.
        """


def require_differentiable(host: Host) -> DifferentiableHost:
    """The host, if gradients flow through it.

    Raises:
        TypeError: They do not.
    """
    if isinstance(host, DifferentiableHost):
        return host
    raise TypeError(
        f"{type(host).__name__} ({host.info.host}) gives no gradients and takes no embeddings: it "
        "lacks `input_values` and `forward_from`. Attach the model locally, or give the host these "
        "methods (see sa_plugin.differentiable.DifferentiableHost)."
    )
