"""What the heads of a model do: importance, profiles, patterns, sinks, relevance, circuits.

All tools go from a model, a `forward(batch) -> logits` and batches to pandas tables and arrays,
and write nothing.
"""
