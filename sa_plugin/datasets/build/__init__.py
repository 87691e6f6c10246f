"""Builds the embedded supersense data set; not part of the wheel.

Run `python -m sa_plugin.datasets.build --work DIR`; see docs/supersense.md.
"""
