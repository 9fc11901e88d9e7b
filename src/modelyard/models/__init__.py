"""What is served: artifacts, their cards, their sources, the store and the file gate."""
