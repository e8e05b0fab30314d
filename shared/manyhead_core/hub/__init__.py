"""Weights in and out: folders, hub, checkpoints of others, ONNX. Nothing here runs foreign code."""
