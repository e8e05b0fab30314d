"""From a recording as it is stored to the signal that the network takes."""

from manyhead.mvpformer.preparing.cache import open_prepared
from manyhead.mvpformer.preparing.contract import ChannelContract, compare
from manyhead.mvpformer.preparing.options import PrepareOptions
from manyhead.mvpformer.preparing.prepared import Prepared

__all__ = ["ChannelContract", "PrepareOptions", "Prepared", "compare", "open_prepared"]
