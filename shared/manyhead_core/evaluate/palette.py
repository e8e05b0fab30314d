"""The colours of figures and pages: one hexadecimal token each, and its value in the dark.

Figures are drawn with the light values. On a page the tokens become CSS variables, so a figure
follows the reader's colour scheme.
"""

from __future__ import annotations

INK = "#1d2733"
MUTED = "#5b6774"
GRID = "#dde3e9"
SURFACE = "#fdfdfc"
# Distinct to colour-blind readers, and of enough contrast on either background.
SERIES = ("#2a6f97", "#c8553d", "#5a8f3c", "#8a5a9e", "#b8860b", "#4d7c8a")

DARK = {
    INK: "#e4e9ee",
    MUTED: "#9fabb8",
    GRID: "#343d47",
    SURFACE: "#161a1f",
    "#2a6f97": "#6db3dc",
    "#c8553d": "#ee8d77",
    "#5a8f3c": "#9ccb7b",
    "#8a5a9e": "#c79cdb",
    "#b8860b": "#e0b64a",
    "#4d7c8a": "#8fc0ce",
}
NAMES = {INK: "ink", MUTED: "muted", GRID: "grid", SURFACE: "surface"} | {
    colour: f"series-{number}" for number, colour in enumerate(SERIES, start=1)
}
