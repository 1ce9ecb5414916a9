"""A model fitted, resumed, logged; on one device or on several."""
