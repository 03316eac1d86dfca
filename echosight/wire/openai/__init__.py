"""The plain OpenAI endpoints' formats."""
