"""From words to bytes: the file format, and checkpoints of one file or of several."""
