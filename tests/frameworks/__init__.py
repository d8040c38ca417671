"""Our loader inside other tools: the real packages, in processes of their own."""
