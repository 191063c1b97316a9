"""What is saved: settings, provenance and the store; imports nothing of the project."""
