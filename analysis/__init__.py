"""What the results mean: masks, overlap and figures, from results handed in, never from paths."""
