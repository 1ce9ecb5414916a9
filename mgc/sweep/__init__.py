"""A space of configurations searched, the best trained with fresh seeds, ablated, shown."""
