"""From a run directory to figures that can be read, compared and sent in."""
