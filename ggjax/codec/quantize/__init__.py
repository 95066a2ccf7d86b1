"""From weights to levels, and from levels to keys: what a compressed array keeps of its weights."""
