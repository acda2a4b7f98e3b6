"""The test of a bundle: what it is asked, who answers, and what the answers are worth."""
