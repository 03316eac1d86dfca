"""Speech to text, one file a provider."""
