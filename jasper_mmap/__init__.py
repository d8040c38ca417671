"""Memory-mapped safetensors datasets for training on pre-computed embeddings."""
