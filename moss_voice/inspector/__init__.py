"""The call inspector: a recorded call, looked at turn by turn and asked again.

The law: a page shows what the recording holds, all of it, and what it cannot know it does not guess.
"""
