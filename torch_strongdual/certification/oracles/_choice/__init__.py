"""What the choice among oracles for one activation goes by: measured tightness, and what has nothing more to say."""
