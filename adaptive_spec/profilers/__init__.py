"""What has just been measured on this machine: latency and acceptance models."""

if __name__ != "adaptive_spec.profilers":
    raise ImportError("this folder is a door for readers: import adaptive_spec.profilers instead")
