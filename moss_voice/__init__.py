"""The memory of a voice agent, inside the agent's own process."""

__version__ = "0.1.0"
