"""Tools to prove that a decoder, a drafter or a policy keeps its promises; for plug-ins too."""
