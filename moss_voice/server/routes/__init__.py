"""The paths of the API; see docs/server-api.md."""
