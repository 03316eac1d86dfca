"""LLMs (text and images in, text and tool calls out): one file for each provider."""
