"""Where pairs come from, one file a layout, and what they share."""
