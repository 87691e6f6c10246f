"""The idealised model of docs/findings/theory.md as a simulation, its gaps and its predictions."""
