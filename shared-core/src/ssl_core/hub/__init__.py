"""Weights in and out, by file and by Hub: what is damaged or hostile is an error."""
