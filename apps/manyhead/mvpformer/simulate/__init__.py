"""Simulated intracranial EEG: a published neural mass model, patients, and two file layouts."""
