"""The engine made of three parts: STT, LLM and TTS."""
