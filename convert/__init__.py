"""Everything that reads or writes GGUF: routers, the container, embedding, validation, pruning."""
