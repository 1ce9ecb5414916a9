"""The music as it lies there: its tracks table, its splits, its audit, its download."""
