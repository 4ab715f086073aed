"""What GPUs, NICs and models are, as their makers publish it, and the costs that follow from it.

Called by ``sim`` and ``cli``. Data and arithmetic: a model is a Hugging Face configuration, here or in a user's
file, read as plain JSON without torch or transformers. Every figure names its public source.
"""
