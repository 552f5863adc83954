"""The far side: a log of immutable files that readers and writers share."""
