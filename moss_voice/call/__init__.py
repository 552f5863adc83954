"""The life of one call: turns heard, context given, the index pushed at hang-up."""
