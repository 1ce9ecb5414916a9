"""The jobs: recipes of steps, for ``ray job submit`` or as plain scripts."""
