"""The paper's evaluation (arXiv 2602.21548, sections 7 and 8), number by number: a file for each table or figure.

Called by ``cli``. An experiment names the simulations it needs; they run in worker processes, each once however many
experiments ask for it; then the experiment turns their outcomes into rows of paper against ours, and into figures.
"""
