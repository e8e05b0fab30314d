"""Task-specific attention models: train, evaluate, explain and import them, one domain at a time."""

__version__ = "0.1.0"
