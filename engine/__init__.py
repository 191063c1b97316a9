"""Where work runs: this process' threads, or a cluster. Stages do not know which."""
