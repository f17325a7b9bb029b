"""Interactions, splits and candidates: numpy only."""
