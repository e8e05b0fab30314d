"""A folder of small feature files with a label table, for the tests of this folder."""

from __future__ import annotations

from pathlib import Path

import h5py
import numpy as np
import pandas as pd

WIDTH = 6


def write_features(path: Path, features: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with h5py.File(path, "w") as file:
        file["features"] = features
        corners = np.stack([np.arange(len(features)) * 256, np.zeros(len(features), int)], 1)
        file["coords"] = corners
        file["coords"].attrs["patch_size"] = 256


def write_slides(root: Path, slides: int = 24, seed: int = 0) -> Path:
    """Slides of two per patient; positive ones hold a few patches that stand out.

    Returns:
        The label table.
    """
    generator = np.random.default_rng(seed)
    rows = []
    for number in range(slides):
        features = generator.normal(size=(4 + number % 5, WIDTH)).astype(np.float16)
        label = number // 2 % 2
        features[: 2 * label, 0] += 8
        write_features(root / "features" / f"s{number:02d}.h5", features)
        rows.append((f"s{number:02d}", f"p{number // 2}", label, "AB"[number % 3 == 0]))
    table = pd.DataFrame(rows, columns=["slide_id", "case_id", "label", "hospital"])
    table.to_csv(root / "labels.csv", index=False)
    return root / "labels.csv"
