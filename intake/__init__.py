"""Stage 1 shard by shard: images, captions and given embeddings, each piece by any worker."""
