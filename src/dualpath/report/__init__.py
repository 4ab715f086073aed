"""What measurements come to: summaries, tables, pictures, pages, and the files they are written to."""
