"""The self-hosted cloud: projects, keys and the log of every index over HTTP, stateless over any store."""
