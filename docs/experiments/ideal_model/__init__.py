"""The idealised model of docs/theory.md as a simulation, its gaps and its predictions."""
