"""The curated set as trainers read it."""
