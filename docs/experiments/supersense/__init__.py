"""Builds the embedded supersense data set; not part of the wheel.

Run `python -m supersense --work DIR`; see docs/supersense.md.
"""

from __future__ import annotations
