"""Models that the libraries lack: SAM as a segmenter, a 1-bit head, `timm://` weights."""
