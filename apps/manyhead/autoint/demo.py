"""The AutoInt demo: a click log with planted interactions, found again."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd

from manyhead.__main__ import main
from manyhead.autoint.interactions import field_maps, pair_interaction, permutation_importance
from manyhead_core.cli import console
from manyhead_core.demo import Check, Story
from manyhead_core.evaluate import figures
from manyhead_core.evaluate.predictions import read_results
