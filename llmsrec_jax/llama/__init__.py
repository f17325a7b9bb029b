"""The LLM engine: a frozen LLaMA with prefill and extend; knows nothing of recommendation."""
