"""The page of a result: one HTML file that explains it."""
