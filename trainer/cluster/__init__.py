"""Control side: which hosts, what to start on them, and watching it."""
