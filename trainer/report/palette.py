"""The colours of plots, by number: one palette for light paper, one for a dark page."""

LIGHT = ("#1d5a85", "#c7692b", "#4f7f52", "#77588f", "#8a6d1f", "#2f7f86", "#8c877c", "#b3261e")
DARK = ("#7fb5e0", "#eba062", "#92c295", "#c3a4dd", "#d9bd6c", "#7fcbd1", "#8d897f", "#ff8a80")
