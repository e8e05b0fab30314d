"""Seizure detection in intracranial EEG by multi-variate parallel attention."""

from manyhead.mvpformer.model import MVPFormer, MVPFormerConfig, MVPFormerOutput

__all__ = ["MVPFormer", "MVPFormerConfig", "MVPFormerOutput"]
