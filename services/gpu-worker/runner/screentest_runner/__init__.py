"""The child that holds the model and the device. Imports nothing of screentest; `protocol` is what both sides import."""
