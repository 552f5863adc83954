"""Moss-voice beside what people use in its place, on the same texts and the same model's weights.

| module | one idea |
| --- | --- |
| `contender.py` | what each contender must do, and who they are |
| `encoders.py` | all-MiniLM-L6-v2, as float32 in PyTorch and as our int8 graph |
| `ours.py`, `chroma.py`, `lance.py`, `qdrant.py`, `homegrown.py`, `mem_zero.py`, `model.py` | one contender each |
| `process.py` | what is measured in a process of its own |
| `__main__.py` | the rounds, the table, the JSON |
"""
