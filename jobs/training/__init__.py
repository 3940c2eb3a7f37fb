"""How parameters come about: a training here, or state dicts of one elsewhere."""
