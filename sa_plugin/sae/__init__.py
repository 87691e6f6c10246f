"""Latents of a sparse autoencoder as concept units."""

from sa_plugin.sae.bank import sae_bank
from sa_plugin.sae.latents import LatentSet
from sa_plugin.sae.prune import Pruning

__all__ = ["LatentSet", "Pruning", "sae_bank"]
