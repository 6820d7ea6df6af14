"""A search's result, turned into what its page says."""
