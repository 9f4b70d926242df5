"""Network files: read without trusting them, built, inspected, converted and written."""
