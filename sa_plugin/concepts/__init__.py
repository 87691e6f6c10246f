"""Concept vectors: the kinds, what they are fitted from, and the bank that holds them."""
