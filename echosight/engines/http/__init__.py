"""Parts that other servers make, reached by the HTTP API that OpenAI began."""
