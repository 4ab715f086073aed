"""Tool calls as model families write them: read out of text, held to it, and written."""
