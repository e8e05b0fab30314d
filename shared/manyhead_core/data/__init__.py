"""The catalogue of data sets: one card each, and a check of a folder against its card."""
