"""Is this cluster fit for skerch? `table` prints what the other files find, each of one subject."""
