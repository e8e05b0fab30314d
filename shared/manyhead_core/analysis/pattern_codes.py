"""Codes of attention maps and their clusters, for `patterns`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from torch import nn

from manyhead_core.errors import DataError

Array = NDArray[Any]

CODE = 32
HIDDEN = 256
EPOCHS = 50
LEARNING_RATE = 1e-3
BATCH = 64


def pca_codes(values: Array, seed: int = 0, size: int = CODE) -> Array:
    """Scores on the first principal components, `(maps, at most size)`.

    Args:
        values: `(maps, cells)`.
        seed: Seed of the solver that large tables get.
        size: Components.
    """
    from sklearn.decomposition import PCA

    parts = min(size, *values.shape)
    # Equal maps have no variance to explain: 0 / 0 in a number that nobody asks for.
    with np.errstate(invalid="ignore"):
        return np.asarray(PCA(parts, random_state=seed).fit_transform(values))


def autoencoder_codes(values: Array, seed: int, epochs: int = EPOCHS) -> Array:
    """Codes of an autoencoder trained on the maps themselves, `(maps, 32)`.

    Layers cells, 256, 32, 256, cells with ReLU after the hidden ones, mean squared error, Adam with
    rate 1e-3.

    Args:
        values: `(maps, cells)`.
        seed: Seed of the weights and of the order.
        epochs: Passes over the maps.
    """
    data = torch.as_tensor(values, dtype=torch.float32)
    cells = data.shape[1]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        encoder = nn.Sequential(nn.Linear(cells, HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, CODE))
        decoder = nn.Sequential(nn.Linear(CODE, HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, cells))
        parameters = [*encoder.parameters(), *decoder.parameters()]
        optimiser = torch.optim.Adam(parameters, lr=LEARNING_RATE)
        for _ in range(epochs):
            for index in torch.randperm(len(data)).split(BATCH):
                loss = nn.functional.mse_loss(decoder(encoder(data[index])), data[index])
                optimiser.zero_grad()
                loss.backward()
                optimiser.step()
    with torch.no_grad():
        return np.asarray(encoder(data).numpy())


def choose_clusters(codes: Array, numbers: Sequence[int], seed: int) -> tuple[Array, pd.DataFrame]:
    """Clusters of k-means, with the number of clusters of the best silhouette.

    Args:
        codes: `(maps, dims)`.
        numbers: Numbers of clusters to try; those that the maps cannot fill are left out.
        seed: Seed of k-means.

    Returns:
        Cluster of each map, `(maps,)`, and a table with columns k and score.

    Raises:
        DataError: No number is possible.
    """
    from sklearn.cluster import KMeans
    from sklearn.metrics import silhouette_score

    # Equal maps may differ by rounding after a product.
    distinct = len(np.unique(codes.round(6), axis=0))
    possible = [k for k in numbers if 2 <= k <= min(distinct, len(codes) - 1)]
    if not possible:
        raise DataError(
            f"clusters: {distinct} different maps are too few for {min(numbers)} or more clusters; "
            "pass more batches or fewer clusters"
        )
    tried = [KMeans(k, n_init=10, random_state=seed).fit_predict(codes) for k in possible]
    scores = [float(silhouette_score(codes, labels)) for labels in tried]
    best = int(np.argmax(scores))
    return np.asarray(tried[best]), pd.DataFrame({"k": possible, "score": scores})
