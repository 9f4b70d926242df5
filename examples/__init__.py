"""Scripts to read and run; what they share is in training.py."""
