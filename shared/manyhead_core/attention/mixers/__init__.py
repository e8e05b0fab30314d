"""The mixers: one module a mechanism, named after it."""
