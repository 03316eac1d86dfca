"""The models: each family's forward passes, with explicit positions and KV caches, one step for many replies."""
