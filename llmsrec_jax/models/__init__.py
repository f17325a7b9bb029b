"""Recommenders as modules: parameters and forward passes, no data access, no optimiser."""
