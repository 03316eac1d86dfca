"""Omni models (Qwen2.5-Omni, Qwen3-Omni) in plain transformers: they hear and see while the user speaks, and speak.

A conversation's keys and values are kept in two caches, the thinker's and the talker's, and are always what a fresh
computation over the conversation's items would give. The parts, from the bottom up:

- ``mel`` a log-mel spectrogram of audio in packets; ``positions`` three-dimensional positions; ``tokens``
- ``rows`` caches of answers that decode together; ``graphs`` CUDA graphs; ``sampling``
- ``vocoder`` and ``dit`` codes to samples; ``words`` when words are spoken
- ``state`` where an answer stands; ``model`` what both families share, ``qwen2_5`` and ``qwen3`` what they do not;
  ``assemble`` which is which
- ``context`` a conversation's caches; ``turn`` the user's turn; ``memory`` caches in line with the conversation
- ``answer`` one answer; ``stage`` all that happens in the model's thread; ``rounds`` steps of all answers, merged
- ``engine`` and ``load``

Only ``load`` and ``engine`` may be imported without torch.
"""
