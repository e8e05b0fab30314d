"""Simple networks in the calling convention of MVPFormer, for comparison on equal terms.

Every one takes an `MVPFormerConfig`, uses of it what it has a use for, and classifies the newest
segment of a window. `encode` looks at one segment of one channel at a time, so that a stream
computes every segment once.
"""
