"""Network files: reads untrusted files and builds, inspects, converts and writes networks."""
