"""What the rivals of `baselines.py` reckon with: a file for each kind of selector."""
