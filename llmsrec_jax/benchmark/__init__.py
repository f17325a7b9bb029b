"""What the engine does in a given time on this machine: `python -m llmsrec_jax.benchmark --help`."""
