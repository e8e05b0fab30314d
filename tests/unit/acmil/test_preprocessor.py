"""Scales, and what is kept with the weights."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from manyhead.acmil import preprocessor
from manyhead.acmil.preprocessor import BagPreprocessor, z_scores
from manyhead_core.errors import DataError, WeightsError


def test_scales_are_those_of_all_instances_together(monkeypatch):
    monkeypatch.setattr(preprocessor, "CHUNK", 4)
    generator = np.random.default_rng(0)
    bags = [(generator.normal(1e3, 2, (n, 3))).astype(np.float32) for n in (1, 9, 5, 20)]
    for bag in bags:
        bag[:, 2] = 7
    mean, scale = z_scores(iter(bags))
    whole = np.concatenate(bags).astype(np.float64)
    np.testing.assert_allclose(mean, whole.mean(0), rtol=1e-6)
    np.testing.assert_allclose(scale[:2], whole.std(0)[:2], rtol=1e-5)
    assert scale[2] == 1


def test_half_precision_stays_without_scales_and_a_mapped_file_is_not_copied(tmp_path):
    raw = np.arange(6, dtype=np.float16).reshape(3, 2)
    np.save(tmp_path / "a.npy", raw)
    mapped = np.load(tmp_path / "a.npy", mmap_mode="r")
    found = BagPreprocessor(2, ("a", "b")).features(mapped)
    assert found.dtype == torch.float16
    assert found.data_ptr() == mapped.__array_interface__["data"][0]
    np.testing.assert_array_equal(found.numpy(), raw)
    scaled = BagPreprocessor(
        2, ("a", "b"), mean=np.float32([1, 2]), scale=np.float32([2, 4])
    ).features(mapped)
    np.testing.assert_allclose(scaled.numpy(), (raw - [1, 2]) / [2, 4])


def test_another_width_is_refused_by_name():
    message = "s1: features are 3 wide, the network was trained with 2"
    with pytest.raises(DataError, match=message):
        BagPreprocessor(2, ("a", "b")).features(np.zeros((0, 3)), "s1")


def test_the_state_survives_json_and_comes_back():
    fitted = BagPreprocessor(
        2, ("a", "b"), "regression", "patient", np.float32([1, 2]), np.float32([3, 4]), 5.0, 2.0
    )
    meta, tensors = fitted.state()
    again = BagPreprocessor.from_state(json.loads(json.dumps(meta)), tensors)
    np.testing.assert_array_equal(again.mean, fitted.mean)
    assert again.state()[0] == meta
    assert again.label(9.0) == 2.0
    assert again.number(torch.tensor([2.0])).tolist() == [9.0]
    plain = BagPreprocessor(2, ("a", "b"))
    assert BagPreprocessor.from_state(*plain.state()) == plain
    with pytest.raises(WeightsError, match="has format 9"):
        BagPreprocessor.from_state(meta | {"format": 9}, tensors)
