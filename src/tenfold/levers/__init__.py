"""The levers, a folder each."""
