"""The child that holds the model and the device. Imports nothing of screentest; both sides import `protocol`."""
