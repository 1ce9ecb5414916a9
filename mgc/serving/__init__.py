"""A model behind HTTP: a page and an API, for one person on this machine or for a cluster."""
