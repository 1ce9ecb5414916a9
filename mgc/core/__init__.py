"""Errors, progress, storage, atomic files, joining Ray: what every room stands on."""
