"""moss_voice for Pipecat: one processor gives a bot the memory of its call."""

from moss_voice import __version__
from pipecat_moss_voice.processor import MossVoiceMemory

__all__ = ["MossVoiceMemory", "__version__"]
