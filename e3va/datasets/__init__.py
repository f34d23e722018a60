"""Data that the mm libraries lack, and generated stand-ins for what one downloads: data sets and checkpoints."""
