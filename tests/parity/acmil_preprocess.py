"""Tissue, coordinates and heat map of a real slide against files of the authors' code."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from comparison import Reference

cv2 = pytest.importorskip("cv2", reason="needs the extra wsi")

from manyhead.acmil.annotations import inside_any  # noqa: E402
from manyhead.acmil.coordinates import GridOptions, patch_coordinates  # noqa: E402
from manyhead.acmil.explain.heatmap import HeatmapOptions, draw_heatmap  # noqa: E402
from manyhead.acmil.slides import open_slide  # noqa: E402
from manyhead.acmil.tissue import (  # noqa: E402
    SegmentationOptions,
    contours_of,
    median_saturation,
    tissue_level,
    tissue_mask,
)


def replay_preprocess(reference: Reference) -> None:
    """Every step, exact but for the grey levels of a JPEG decoder."""
    config = reference.config
    path = reference.data_file(config["slide"])
    names = ("sthresh", "mthresh", "close", "a_t", "a_h", "max_n_holes", "seg_level")
    options = SegmentationOptions(**{name: config[name] for name in names})
    outputs = reference.group("output")
    with open_slide(path, "openslide") as slide:
        level = tissue_level(slide, options.seg_level)
        saturation = median_saturation(slide, level, options.mthresh)
        exact(reference, "saturation_median_sum_rows", saturation.sum(1, dtype=np.int64))
        mask = tissue_mask(saturation, options)
        exact(reference, "tissue_mask_packed", np.packbits(mask.reshape(-1) > 0))
        otsu = cv2.threshold(saturation, 0, 255, cv2.THRESH_BINARY | cv2.THRESH_OTSU)[0]
        assert otsu == config["otsu_threshold"]
        tissue = contours_of(mask, slide.downsamples[level], level, options)
        for number, contour in enumerate(tissue.contours):
            exact(reference, f"contour_{number}", contour)
            for hole, border in enumerate(tissue.holes[number]):
                exact(reference, f"hole_{number}_{hole}", border)
        grid = GridOptions(
            **{
                name: config[name]
                for name in (
                    "patch_size", "step_size", "patch_level", "contour_fn", "use_padding"
                )
            }
        )  # fmt: skip
        patches = patch_coordinates(slide, tissue, grid, mode="reference")
        exact(reference, "coords", patches.coords)
        polygons = [t.numpy() for n, t in sorted(reference.group("input").items()) if "annot" in n]
        exact(reference, "labels", inside_any(polygons, patches).astype(np.int64))
        means = [
            slide.read(tuple(xy), patches.level, (patches.read_size,) * 2).mean((0, 1))
            for xy in patches.coords.tolist()
        ]
        close(reference, "patch_mean_rgb", np.stack(means), 0.5)
        heat = config["heatmap"]
        scores = reference.tensors["input/scores"].numpy()
        if heat["scores_scaled_by_n"]:
            scores = scores * len(scores)
        drawn = draw_heatmap(
            slide,
            patches.coords,
            scores,
            HeatmapOptions(
                level=heat["vis_level"],
                patch_size_level0=config["patch_size"],
                region=(tuple(heat["top_left"]), tuple(heat["bot_right"])),
                percentiles=heat["convert_to_percentiles"],
                colormap=heat["cmap"],
                alpha=heat["alpha"],
            ),
            outlines=polygons,
        )
        close(reference, "heatmap_rgb", drawn, 2.0)
    assert outputs.keys() == {name.split("/", 1)[1] for name in reference.compared}


def exact(reference: Reference, name: str, ours: np.ndarray) -> None:
    """Whole numbers are equal."""
    reference.compared.add(f"output/{name}")
    wanted = reference.tensors[f"output/{name}"]
    assert torch.equal(torch.as_tensor(ours).long(), wanted.long()), f"{name} differs"


def close(reference: Reference, name: str, ours: np.ndarray, bound: float) -> None:
    """Grey levels are equal up to rounding of the decoder."""
    reference.compared.add(f"output/{name}")
    wanted = reference.tensors[f"output/{name}"].double().numpy()
    assert wanted.shape == ours.shape, f"{name}: {ours.shape} instead of {wanted.shape}"
    assert np.abs(ours - wanted).max() <= bound, f"{name}: off by {np.abs(ours - wanted).max()}"
