"""The command line: settings, runs, logs and the preview."""
