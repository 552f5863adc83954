"""`python -m moss_voice.cli`, for where the script is not on the path."""

from moss_voice.cli import main

main()
