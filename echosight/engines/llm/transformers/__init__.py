"""A Hugging Face model as the LLM of a cascade, in this process; its KV cache follows each conversation."""
