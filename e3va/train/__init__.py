"""What a run needs whatever the method: checkpoints, resume, random state, report, optimizer, changes of the model."""
