"""Text and tokens: templates and tokenizers, text that is safe to show, stop strings, tool calls."""
