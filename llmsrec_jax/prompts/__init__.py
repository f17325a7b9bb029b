"""Prompts as token arrays: templates, cached pieces, static shapes."""
