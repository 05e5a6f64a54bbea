"""Online learning: what the verifier's feedback may teach the draft head, between steps."""
