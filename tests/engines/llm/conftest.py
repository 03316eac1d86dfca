"""Leaves out tests whose packages are not installed."""

from __future__ import annotations

from importlib.util import find_spec

NEEDED = {"test_transformers_serve.py": ("torch", "transformers", "openai", "sniffio")}

collect_ignore = [file for file, modules in NEEDED.items() if not all(find_spec(module) for module in modules)]
