"""A new bundle into service, by steps, and out again where it does worse. Imports no torch, but for a comparison on data."""
