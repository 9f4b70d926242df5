"""Tools for working on the project itself: benchmarks, fuzzers, kill tests, how the shipped models were made."""
