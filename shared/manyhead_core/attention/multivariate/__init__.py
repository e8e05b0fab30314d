"""Attention over a grid of time steps and channels whose scores are content + time + channel."""
