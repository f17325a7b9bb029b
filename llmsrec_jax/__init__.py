"""LLM-based sequential recommendation in JAX/Flax."""
