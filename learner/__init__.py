"""The dual encoder, its pairs and its training."""
