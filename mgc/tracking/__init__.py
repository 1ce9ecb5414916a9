"""MLflow: its store, its runs, its model registry, and where a run comes from."""
