"""Readers: recordings from files of many formats, in µV and read piece by piece."""

from manyhead.mvpformer.readers.opening import open_recording
from manyhead.mvpformer.readers.options import ReadOptions
from manyhead.mvpformer.readers.source import Source
from manyhead.mvpformer.readers.sources import FORMATS, find_recordings

__all__ = ["FORMATS", "ReadOptions", "Source", "find_recordings", "open_recording"]
