"""What turns images and captions into features and embeddings."""
