"""Training of routers (stage R). Needs the [train] extra; nothing outside this folder imports PyTorch."""
