"""Omni models (Qwen2.5-Omni, Qwen3-Omni) in plain transformers: they hear and see while the user speaks, and speak.

Two KV caches of a conversation, the thinker's and the talker's, always equal those of a fresh computation over the
conversation's items. From the bottom up:

- ``graphs`` CUDA graphs; ``vocoder`` codec frames to samples; ``word_timer`` times of spoken words
- ``models`` both model families, their common base, KV caches, positions, tokens and spectrogram
- ``context`` writes to a conversation's caches; ``user_turn`` writes a turn while the user speaks;
  ``conversation_cache`` keeps the caches in line with the conversation
- ``generation`` one reply; ``model_runner`` everything that runs in the model's thread; ``batch_scheduler`` merges the
  steps of all replies
- ``engine`` the `Engine`; ``load`` from a model's name to an engine

Only ``load``, ``engine`` and ``batch_scheduler`` may be imported without torch.
"""
