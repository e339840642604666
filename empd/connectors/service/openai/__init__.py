"""Connectors to the OpenAI API, and to every server that speaks it (vLLM, llama.cpp, LiteLLM, …)."""
