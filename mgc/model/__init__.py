"""The CNN, its checkpoint, and how it is run on a device."""
