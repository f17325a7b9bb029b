"""The stages of a run and what each leaves behind; pipeline.py says in which order."""
