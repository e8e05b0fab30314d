"""Outlines drawn on slides: ASAP XML and QuPath GeoJSON in, GeoJSON out."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import numpy.typing as npt
import shapely

from manyhead.acmil.coordinates import Patches
from manyhead.acmil.polygons import locate
from manyhead.acmil.tissue import Mode, Tissue
from manyhead_core.errors import DataError

# Groups of outlines that are no lesion: `_2` in CAMELYON16.
EXCLUDED = ("_2", "exclusion", "exclude", "excluded")


@dataclass(frozen=True)
class Outline:
    """An area that somebody has drawn.

    Args:
        polygon: Corners, x and y in level-0 pixels, `(corners, 2)`.
        name: What it is called, or an empty string.
        holes: What is cut out of it.
    """

    polygon: npt.NDArray[np.float64]
    name: str = ""
    holes: tuple[npt.NDArray[np.float64], ...] = ()


def read_outlines(path: Path) -> list[Outline]:
    """Outlines of an ASAP XML or a GeoJSON file.

    Raises:
        DataError: The file is missing, damaged or of another kind.
    """
    if not path.is_file():
        raise DataError(f"annotations: no file {path}")
    if path.suffix.lower() == ".xml":
        return _asap(path)
    if path.suffix.lower() in (".geojson", ".json"):
        return _geojson(path)
    raise DataError(f"annotations: {path.name} is neither ASAP .xml nor .geojson")


def find_outlines(folder: Path, slide_id: str) -> Path | None:
    """The file of a slide in a folder of annotations, or None."""
    candidates = (folder / f"{slide_id}{suffix}" for suffix in (".xml", ".geojson", ".json"))
    return next((path for path in candidates if path.is_file()), None)


def _asap(path: Path) -> list[Outline]:
    try:
        root = ElementTree.parse(path).getroot()  # noqa: S314 - expat expands no external entity
        found = []
        for annotation in root.iter("Annotation"):
            points = [
                (float(c.attrib["X"]), float(c.attrib["Y"])) for c in annotation.iter("Coordinate")
            ]
            if len(points) > 2:
                name = annotation.attrib.get("PartOfGroup", annotation.attrib.get("Name", ""))
                found.append(Outline(np.array(points), name))
    except (ElementTree.ParseError, KeyError, ValueError) as err:
        raise DataError(f"annotations: {path.name} is no ASAP file ({err})") from err
    return found


def _geojson(path: Path) -> list[Outline]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        single = isinstance(content, dict) and content.get("type") == "Feature"
        features = [content] if single else content
        if isinstance(features, dict):
            features = features["features"]
        return [outline for feature in features for outline in _outlines(feature)]
    except (LookupError, TypeError, ValueError, AttributeError) as err:
        raise DataError(f"annotations: {path.name} is no GeoJSON ({err})") from err


def _outlines(feature: Mapping[str, Any]) -> Iterable[Outline]:
    geometry = feature["geometry"]
    polygons = {"Polygon": [geometry["coordinates"]], "MultiPolygon": geometry["coordinates"]}
    about = feature.get("properties") or {}
    name = (about.get("classification") or {}).get("name") or about.get("name") or ""
    for rings in polygons.get(geometry["type"], []):
        outer, *holes = (np.asarray(ring, np.float64)[:, :2] for ring in rings)
        yield Outline(outer, name, tuple(holes))


def inside_any(polygons: Sequence[npt.NDArray[Any]], patches: Patches) -> npt.NDArray[np.bool_]:
    """Whether the centre of a patch lies strictly inside an outline, `(patches,)`.

    Args:
        polygons: Corners in level-0 pixels, each `(corners, 2)`.
        patches: The patches.
    """
    # Doubled, because the centre of an odd patch lies between pixels.
    centres = 2 * patches.coords + patches.size_level0
    found = np.zeros(len(centres), bool)
    for polygon in polygons:
        found |= locate(np.rint(2 * np.asarray(polygon, np.float64)).astype(np.int64), centres) > 0
    return found


def labels_of(
    outlines: Sequence[Outline], patches: Patches, mode: Mode = "default"
) -> npt.NDArray[np.bool_]:
    """Whether the centre of a patch lies in an outline and in nothing that is cut out of it.

    Args:
        outlines: As from `read_outlines`.
        patches: The patches.
        mode: `reference` counts every outline and no hole, as the published code does; `default`
            takes out holes and the outlines that CAMELYON and ASAP mark as excluded.
    """
    if mode == "reference":
        return inside_any([outline.polygon for outline in outlines], patches)
    found = np.zeros(len(patches.coords), bool)
    for outline in (o for o in outlines if not excluded(o)):
        inside = inside_any([outline.polygon], patches)
        found |= inside & ~inside_any(outline.holes, patches)
    return found & ~inside_any([o.polygon for o in outlines if excluded(o)], patches)


def excluded(outline: Outline) -> bool:
    """Whether an outline is cut out of the others."""
    return outline.name.strip().lower() in EXCLUDED


def tissue_geojson(tissue: Tissue) -> dict[str, Any]:
    """Contours with their holes as QuPath reads them; each is one or more valid polygons."""
    return collection(
        feature(rings, "Tissue", (0, 160, 60))
        for contour, holes in zip(tissue.contours, tissue.holes, strict=True)
        for rings in valid_rings(contour, holes)
    )


def valid_rings(
    contour: npt.NDArray[Any], holes: Sequence[npt.NDArray[Any]]
) -> list[list[npt.NDArray[np.float64]]]:
    """Outer ring and holes of the valid polygons that a contour encloses.

    A border that follows pixels runs to and fro along pieces one pixel wide, which makes a polygon
    that viewers refuse.
    """
    if len(contour) < 3:
        return []
    inner = [hole for hole in holes if len(hole) > 2]
    whole = shapely.Polygon(contour, inner)
    if whole.is_valid:
        return [[contour, *inner]]
    # Lines that are left over enclose nothing.
    parts = shapely.get_parts(shapely.make_valid(whole, method="structure"))
    return [
        [shapely.get_coordinates(ring)[:-1] for ring in (part.exterior, *part.interiors)]
        for part in parts
        if isinstance(part, shapely.Polygon)
    ]


def collection(features: Iterable[dict[str, Any]]) -> dict[str, Any]:
    """A GeoJSON FeatureCollection."""
    return {"type": "FeatureCollection", "features": list(features)}


def feature(
    rings: Sequence[npt.NDArray[Any]],
    name: str,
    colour: tuple[int, int, int],
    measurements: Mapping[str, float] | None = None,
) -> dict[str, Any]:
    """A GeoJSON feature with the properties that QuPath shows.

    Args:
        rings: Outer border, then holes, each `(corners, 2)` in level-0 pixels.
        name: Class of the object.
        colour: Red, green and blue, 0 to 255.
        measurements: Numbers of the object by name.
    """
    closed = [np.vstack([ring, ring[:1]]).tolist() for ring in rings if len(ring) > 2]
    about: dict[str, Any] = {
        "objectType": "annotation" if measurements is None else "detection",
        "classification": {"name": name, "color": list(colour)},
    }
    if measurements is not None:
        about["measurements"] = dict(measurements)
    return {
        "type": "Feature",
        "geometry": {"type": "Polygon", "coordinates": closed},
        "properties": about,
    }


def write_geojson(path: Path, content: Mapping[str, Any]) -> None:
    """Write under a temporary name first: a file that exists is complete."""
    partial = path.with_name(f"{path.name}.partial")
    partial.write_text(json.dumps(content, separators=(",", ":")), encoding="utf-8")
    partial.replace(path)
